//! The exchange: a long stream of one consumer, which sends timestamps and receives tables.
//!
//! ```text
//!  timestamps of 7 ─▶ answer ─▶ table of 7 ──┐
//!  timestamps of 8 ─▶ answer ─▶ table of 8 ──┤ leases by timeframe
//!  consumed [7] ─▶ lease of 7 ends ◀─────────┘
//!  end of the stream, for any cause ─▶ all its leases end
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use super::answer::Answer;
use super::handle::Cache;
use crate::budget::ClientBudget;
use crate::cache::error::CacheError;
use crate::cache::holders::caller::Caller;
use crate::cache::holders::lease::LeaseId;
use crate::cache::holders::origin::Origin;
use crate::cache::tables::column_sets::{SchemaKey, StreamSchema};
use crate::sync::{Mutex, MutexGuard};
use crate::table::{Request, TableRows, When, key_names};

/// The state of one stream. Dropping it releases everything that the stream holds.
///
/// ```
/// use iovcache::Cache;
/// use iovcache::index::Timestamps;
/// use iovcache::table::Request;
/// # use std::sync::Arc;
/// # use iovcache::shm::PoolOptions;
/// # use iovcache::source::MemorySource;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let memory = PoolOptions { memory_bytes: 4 << 20, ..PoolOptions::default() };
/// # let source = Arc::new(MemorySource::new());
/// # let cache = Cache::builder().source(source).memory(memory).build()?;
/// let template = br#"{"columns": {"drift": "TPC/Calib/VDrift"}, "missing": "null"}"#;
/// let stream = cache.exchange(Request::parse_template(template)?)?;
/// for timeframe in 1..=3 {
///     let times = Timestamps::new(vec![timeframe as i64 * 1_000], None);
///     let answer = stream.answer(timeframe, times).await?;
///     assert_eq!(answer.rows(), 1);
/// }
/// // The objects of timeframe 3 stay pinned.
/// stream.oldest_possible(3);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Exchange {
    cache: Cache,
    /// The request for each table, without timestamps.
    template: Request,
    stream_schema: StreamSchema,
    /// Names of the keys that its columns depend on.
    keys: Vec<Arc<str>>,
    origin: Origin,
    /// The number of its claim on the name of its consumer.
    claim: Option<u64>,
    budget: ClientBudget,
    state: Mutex<ExchangeState>,
}

/// The leases, watermark and queued tables of one exchange.
#[derive(Debug, Default)]
struct ExchangeState {
    /// Leases by timeframe; a timeframe requested twice has two.
    held: BTreeMap<u64, Vec<LeaseId>>,
    /// All timeframes below are consumed. Never decreases.
    oldest: u64,
    /// Requested tables whose work has not begun, by timeframe, in order.
    queued: BTreeMap<u64, VecDeque<Arc<Ordered>>>,
    /// Tables whose work has begun.
    in_work: Vec<(u64, Weak<Ordered>)>,
}

/// A requested table; true once its consumer has reported it consumed before it was sent.
#[derive(Debug, Default)]
struct Ordered(AtomicBool);

impl ExchangeState {
    /// Moves the next queued table of a timeframe into work.
    fn begin(&mut self, timeframe: u64) -> Arc<Ordered> {
        let queued = self.queued.get_mut(&timeframe);
        let ordered = queued.and_then(VecDeque::pop_front).unwrap_or_default();
        self.queued.retain(|_, queued| !queued.is_empty());
        self.in_work.retain(|(_, ordered)| ordered.strong_count() > 0);
        self.in_work.push((timeframe, Arc::downgrade(&ordered)));
        ordered
    }

    /// Marks the tables of a timeframe that are not sent yet as consumed.
    fn consume_ordered(&self, timeframe: u64) {
        let queued = self.queued.get(&timeframe).into_iter().flatten().map(Arc::clone);
        let in_work = self.in_work.iter().filter(|(other, _)| *other == timeframe);
        let in_work = in_work.filter_map(|(_, ordered)| ordered.upgrade());
        queued.chain(in_work).for_each(|ordered| ordered.0.store(true, Ordering::Relaxed));
    }
}

impl Exchange {
    fn state(&self) -> MutexGuard<'_, ExchangeState> {
        self.state.lock()
    }

    /// The request for each table, without timestamps.
    pub fn template(&self) -> &Request {
        &self.template
    }

    /// Names of the keys that its columns depend on: further columns of each batch.
    pub fn keys(&self) -> &[Arc<str>] {
        &self.keys
    }

    /// Announces a request for the table of a timeframe. Reports of consumption from now on apply
    /// to it, too.
    pub fn expect(&self, timeframe: u64) {
        self.state().queued.entry(timeframe).or_default().push_back(Arc::default());
    }

    /// Makes the table of a timeframe for these timestamps and keys, held until it is consumed or
    /// the stream ends. If the stream has reported it as consumed meanwhile, it is returned and not
    /// held.
    ///
    /// # Errors
    /// As [`Cache::answer`]. The stream goes on after an error.
    pub async fn answer(
        &self,
        timeframe: u64,
        rows: impl Into<TableRows>,
    ) -> Result<Answer, CacheError> {
        let ordered = self.state().begin(timeframe);
        let when = When::Timestamps(rows.into());
        let stream_timeframe = Some(timeframe);
        let (origin, budget) = (self.origin.clone(), self.budget.clone());
        let of_stream = true;
        let caller = Caller { of_stream, stream_timeframe, origin, budget, ..Caller::default() };
        let answer = self
            .cache
            .answer_for(&self.template, &when, &caller, Some(&self.stream_schema))
            .await?;
        let mut state = self.state();
        if timeframe < state.oldest || ordered.0.load(Ordering::Relaxed) {
            // Consumed before it was sent: the table is sent, but not held.
            drop(state);
            self.cache.release(answer.lease());
        } else {
            state.held.entry(timeframe).or_default().push(answer.lease().clone());
        }
        Ok(answer)
    }

    /// Releases the tables of these timeframes.
    pub fn consumed(&self, timeframes: &[u64]) {
        let done: Vec<LeaseId> = {
            let mut state = self.state();
            timeframes.iter().for_each(|id| state.consume_ordered(*id));
            timeframes.iter().filter_map(|id| state.held.remove(id)).flatten().collect()
        };
        self.end(&done);
    }

    /// Releases the tables of all timeframes below `oldest`.
    pub fn oldest_possible(&self, oldest: u64) {
        let done: Vec<LeaseId> = {
            let mut state = self.state();
            state.oldest = state.oldest.max(oldest);
            let kept = state.held.split_off(&oldest);
            std::mem::replace(&mut state.held, kept).into_values().flatten().collect()
        };
        self.end(&done);
    }

    fn end(&self, leases: &[LeaseId]) {
        for lease in leases {
            self.cache.release(lease);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let held = std::mem::take(&mut self.state().held);
        let held: Vec<LeaseId> = held.into_values().flatten().collect();
        self.end(&held);
        if let (Some(consumer), Some(claim)) = (&self.template.consumer, self.claim) {
            self.cache.0.leases.end_claim(consumer, claim);
        }
    }
}

impl Cache {
    /// Opens a stream for a consumer that repeatedly requests the same columns. The memory that its
    /// tables take outside the segments is charged to no budget.
    ///
    /// # Errors
    /// [`CacheError`] if the request itself is wrong.
    pub fn exchange(&self, template: Request) -> Result<Exchange, CacheError> {
        self.exchange_of(template, Origin::Embedded, ClientBudget::default())
    }

    /// Like [`exchange`](Self::exchange), for a client: the memory that its tables take outside the
    /// segments is charged to `budget`. The name of its consumer, if the template has one, is in
    /// use as long as the stream lasts.
    ///
    /// # Errors
    /// [`CacheError`] if the request itself is wrong, or names the session of another user.
    pub fn exchange_of(
        &self,
        template: Request,
        origin: Origin,
        budget: ClientBudget,
    ) -> Result<Exchange, CacheError> {
        self.check_open()?;
        if let Some(session) = &template.session {
            self.check_session(session, &origin)?;
        }
        let columns = self.0.columns.requested(&template.columns, None)?;
        let keys = key_names(columns);
        let columns = self.0.column_sets.intern(columns);
        let table_schema = self.table_schema(SchemaKey::of_stream(&template), &columns);
        let stream_schema = StreamSchema { columns, table_schema };
        let consumer = template.consumer.as_deref();
        let claim = consumer.map(|consumer| self.0.leases.claim(consumer, origin.clone()));
        if let (Some(_), Some(publisher)) = (claim, &self.0.publisher) {
            publisher.note_claim();
        }
        let (cache, state) = (self.clone(), Mutex::default());
        Ok(Exchange { cache, template, stream_schema, keys, origin, claim, budget, state })
    }
}
