//! Repeats calls while a service is down, if they can safely be repeated.
//!
//! ```text
//!  call ──answer, or an error of the service──▶ caller
//!    │ no answer: the connection broke, no service listens, the service is stopping
//!    ▼
//!  pause: 20 ms, 40 ms … 1 s, each shortened by up to a half at random ──▶ call again, until the
//!  time limit of the caller
//! ```
//!
//! An error "unavailable" of the service itself (a source is down, memory is pinned) is returned at
//! once: the service has waited already.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use super::error::ClientError;

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Repeats `call` until a service answers, for at most `limit`, which is asked for after each call
/// that had no answer. From the second time on, `call` gets the time that remains.
///
/// # Errors
/// The error of the service. After the time limit: [`ClientError::Lost`], or the last error in
/// place of an answer.
pub(super) async fn until_answered<T, F>(
    limit: impl Fn() -> Duration,
    mut call: impl FnMut(Option<Duration>) -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let began = Instant::now();
    let (mut pause, mut left) = (FIRST_PAUSE, None);
    loop {
        let error = match call(left).await {
            Err(error) if error.is_no_answer() => error,
            answered => return answered,
        };
        let deadline = began + limit();
        let rest = shortened(pause);
        if Instant::now() + rest >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, "the service is gone: asked again in {rest:?}");
        tokio::time::sleep(rest).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        left = Some(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Shortens a pause by up to a half at random, so that clients of the same service do not retry
/// together.
fn shortened(pause: Duration) -> Duration {
    // Each `RandomState` differs, which is random enough here.
    let chance = RandomState::new().build_hasher().finish() >> 11;
    let share = chance as f64 / (1_u64 << 53) as f64;
    pause.mul_f64(1.0 - share / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, ErrorKind};

    fn lost() -> ClientError {
        ClientError::Lost { reason: "on purpose".to_owned() }
    }

    #[tokio::test]
    async fn calls_are_made_again_with_longer_and_longer_pauses_until_the_time_is_over() {
        let (limit, began) = (Duration::from_millis(400), Instant::now());
        let mut at = Vec::new();
        let answered = until_answered(
            || limit,
            |left| {
                assert_eq!(left.is_none(), at.is_empty());
                assert!(left.is_none_or(|left| left < limit));
                at.push(began.elapsed());
                async { Err::<(), _>(lost()) }
            },
        );
        assert!(matches!(answered.await, Err(ClientError::Lost { .. })));
        let mut longest = FIRST_PAUSE;
        for two in at.windows(2) {
            assert!(two[1] - two[0] >= longest / 2, "{at:?}");
            longest = (longest * 2).min(LONGEST_PAUSE);
        }
        assert!((2..8).contains(&at.len()), "{at:?}");
    }

    #[tokio::test]
    async fn an_error_of_the_service_is_returned_at_once() {
        let mut calls = 0;
        let answered = until_answered(
            || Duration::from_secs(10),
            |_| {
                calls += 1;
                let kind = ErrorKind::Unavailable;
                let (code, message) = (Code(4010), "memory is pinned".to_owned());
                let told = ClientError::Service { kind, code, message };
                let answer = if calls < 3 { lost() } else { told };
                async { Err::<(), _>(answer) }
            },
        );
        assert!(matches!(answered.await, Err(ClientError::Service { .. })));
        assert_eq!(calls, 3);
    }

    #[test]
    fn pauses_are_shortened_by_chance_and_by_half_at_most() {
        let pauses: Vec<Duration> = (0..100).map(|_| shortened(LONGEST_PAUSE)).collect();
        assert!(pauses.iter().all(|pause| (LONGEST_PAUSE / 2..=LONGEST_PAUSE).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause < LONGEST_PAUSE.mul_f64(0.7)));
        assert!(pauses.iter().any(|pause| *pause > LONGEST_PAUSE.mul_f64(0.8)));
    }
}
