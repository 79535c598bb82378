//! Reports of consumption, and the end of timeframes.

use super::handle::{Cache, CacheInner};
use crate::budget::ClientBudget;
use crate::cache::error::CacheError;
use crate::cache::holders::origin::Origin;
use crate::table::{Consumed, ConsumedAnswer};

impl Cache {
    /// Like [`consumed`](Self::consumed), for a client, whose budget pays for the kept state. In
    /// the name of a consumer that is attached or has a stream, only its own user or key may
    /// report, or a client that may administer. A client with an administering key sets a watermark
    /// back; without keys the service's own user and root do, to 0.
    ///
    /// # Errors
    /// [`CacheError::ForeignConsumer`], [`CacheError::UnknownTimeframe`],
    /// [`CacheError::UnknownConsumer`], [`CacheError::Budget`].
    pub fn consumed_by(
        &self,
        consumed: &Consumed,
        origin: &Origin,
        budget: &ClientBudget,
    ) -> Result<ConsumedAnswer, CacheError> {
        self.consumed_of(consumed, None, origin, budget)
    }

    /// Like [`consumed_by`](Self::consumed_by). A timeframe must be that of the registration, if one is
    /// given.
    ///
    /// # Errors
    /// As [`consumed_by`](Self::consumed_by).
    pub(crate) fn consumed_of(
        &self,
        consumed: &Consumed,
        registration: Option<u64>,
        origin: &Origin,
        budget: &ClientBudget,
    ) -> Result<ConsumedAnswer, CacheError> {
        let (Consumed::One { consumer, .. } | Consumed::Below { consumer, .. }) = consumed;
        self.0.leases.check_consumer(consumer, origin)?;
        if let (
            Consumed::Below { oldest_possible, .. },
            Origin::Client { administers: true, key, .. },
        ) = (consumed, origin)
            && (key.is_some() || *oldest_possible == 0)
        {
            self.0.timeframes.set_watermark_back(consumer, *oldest_possible);
        }
        self.report_consumed(consumed, registration, budget)
    }

    /// Reports that a consumer has consumed one timeframe, or all timeframes below an id.
    ///
    /// # Errors
    /// [`CacheError::UnknownTimeframe`], [`CacheError::UnknownConsumer`].
    pub fn consumed(&self, consumed: &Consumed) -> Result<ConsumedAnswer, CacheError> {
        self.report_consumed(consumed, None, &ClientBudget::default())
    }

    /// Like [`consumed`](Self::consumed), for an attached process. A timeframe must be that of the
    /// registration, if one is given.
    ///
    /// # Errors
    /// As [`consumed`](Self::consumed).
    pub(super) fn consumed_by_line(
        &self,
        consumed: &Consumed,
        registration: Option<u64>,
    ) -> Result<ConsumedAnswer, CacheError> {
        self.report_consumed(consumed, registration, &ClientBudget::default())
    }

    fn report_consumed(
        &self,
        consumed: &Consumed,
        registration: Option<u64>,
        budget: &ClientBudget,
    ) -> Result<ConsumedAnswer, CacheError> {
        let CacheInner { timeframes, leases, .. } = &*self.0;
        let dropped = match consumed {
            Consumed::One { timeframe, consumer } => {
                let dropped = timeframes.consumed(*timeframe, consumer, registration)?;
                leases.end_reader(*timeframe, consumer);
                dropped.into_iter().collect()
            }
            Consumed::Below { oldest_possible, consumer } => {
                let (done, dropped) =
                    timeframes.oldest_possible(consumer, *oldest_possible, budget)?;
                for timeframe in done {
                    leases.end_reader(timeframe, consumer);
                }
                dropped
            }
        };
        let dropped = dropped.iter().map(|timeframe| timeframe.id()).collect();
        Ok(ConsumedAnswer { dropped, in_flight: timeframes.len() as u64 })
    }

    /// Like [`drop_timeframe`](Self::drop_timeframe), for a client. Fails while another client uses
    /// the name of a consumer of the timeframe and the caller may not act for it.
    ///
    /// # Errors
    /// [`CacheError::ForeignConsumer`], [`CacheError::UnknownTimeframe`].
    pub fn drop_timeframe_by(
        &self,
        timeframe: u64,
        origin: &Origin,
    ) -> Result<ConsumedAnswer, CacheError> {
        let status = self.0.timeframes.get(timeframe)?.status();
        for consumer in status.iter().flat_map(|status| status.consumers.keys()) {
            self.0.leases.check_consumer(consumer, origin)?;
        }
        self.drop_timeframe(timeframe)
    }

    /// Drops a timeframe, even if consumers have not consumed it.
    ///
    /// # Errors
    /// [`CacheError::UnknownTimeframe`].
    pub fn drop_timeframe(&self, timeframe: u64) -> Result<ConsumedAnswer, CacheError> {
        let dropped = self.0.timeframes.drop_timeframe(timeframe)?;
        for consumer in dropped.consumer_names() {
            self.0.leases.end_reader(timeframe, &consumer);
        }
        let in_flight = self.0.timeframes.len() as u64;
        Ok(ConsumedAnswer { dropped: vec![timeframe], in_flight })
    }
}
