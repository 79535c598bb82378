//! Results of re-reading the configuration while the service runs, for `/readyz`, the metrics, the
//! status and the status page.

use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::escape::escape;
use crate::table::{ConfigurationStatus, ReloadRefusal};
use crate::time_text;

/// Which configuration is in force, and what became of later ones. Clones share their state.
#[derive(Debug, Clone)]
pub struct Reloads {
    clock: Clock,
    state: Arc<Mutex<ConfigurationStatus>>,
}

impl Default for Reloads {
    fn default() -> Self {
        Self::new(Clock::system())
    }
}

impl Reloads {
    /// The configuration is read now, for the first time.
    pub fn new(clock: Clock) -> Self {
        let state = ConfigurationStatus {
            read_ms: clock.wall().as_millis(),
            applied: 0,
            refused: 0,
            refusal: None,
            restart: Vec::new(),
        };
        Self { clock, state: Arc::new(Mutex::new(state)) }
    }

    /// A configuration was read again and is in force, except for the keys in `restart`, which take
    /// effect after a restart.
    pub fn applied(&self, restart: Vec<String>) {
        let now = self.clock.wall().as_millis();
        self.update(|state| {
            state.applied += 1;
            (state.read_ms, state.refusal, state.restart) = (now, None, restart);
        });
    }

    /// A configuration was refused; the earlier one is still in force.
    pub fn refused(&self, reason: String) {
        let at_ms = self.clock.wall().as_millis();
        self.update(|state| {
            state.refused += 1;
            state.refusal = Some(ReloadRefusal { at_ms, reason });
        });
    }

    /// The current state.
    pub fn status(&self) -> ConfigurationStatus {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn update(&self, change: impl FnOnce(&mut ConfigurationStatus)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Lines for `/readyz`, which any client may read: without the reason of a refusal, which may
    /// name files.
    pub(super) fn notes(&self) -> Vec<String> {
        let ConfigurationStatus { refusal, restart, .. } = self.status();
        let refused = refusal.map(|refusal| {
            let at = time_text::show(refusal.at_ms);
            format!(
                "the configuration of {at} was refused, see the log; the earlier one is in force"
            )
        });
        let waiting = (!restart.is_empty()).then(|| {
            let keys = escape(&restart.join(", ")).into_owned();
            format!("changes of the configuration take effect after a restart: {keys}")
        });
        refused.into_iter().chain(waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_result_is_told_until_another_one_follows() {
        let reloads = Reloads::default();
        assert_eq!((reloads.notes(), reloads.status().refusal), (Vec::new(), None));
        reloads.refused("keys.toml: no such file".to_owned());
        let told = reloads.notes();
        assert!(told.len() == 1 && told[0].contains("refused"), "{told:?}");
        assert!(!told[0].contains("keys.toml"), "{told:?}");
        reloads.applied(vec!["memory".to_owned(), "source[0].url".to_owned()]);
        let told = reloads.notes();
        assert_eq!(told.len(), 1);
        assert!(told[0].ends_with("after a restart: memory, source[0].url"), "{told:?}");
        let status = reloads.status();
        assert_eq!((status.applied, status.refused, status.refusal), (1, 1, None));
        reloads.applied(Vec::new());
        assert_eq!(reloads.notes(), Vec::<String>::new());
    }
}
