//! The priority of commands that work through many versions.

use clap::ValueEnum;

/// Share of the processors that a command takes while others need them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Priority {
    /// Processor time that other programs, like a service on this node, leave over.
    Low,
    /// As much processor time as other programs.
    Normal,
}

/// Priority of [`Priority::Low`], as of `nice`.
const LOW: i32 = 10;

impl Priority {
    /// Sets the priority of this thread and of those that it starts from here on. A priority that is
    /// lower already is kept.
    pub(crate) fn begin(self) {
        let lowered = match self {
            Self::Normal => Ok(()),
            Self::Low => rustix::process::getpriority_process(None).and_then(|priority| {
                match priority < LOW {
                    true => rustix::process::setpriority_process(None, LOW),
                    false => Ok(()),
                }
            }),
        };
        if let Err(error) = lowered {
            tracing::debug!(%error, "the priority is not lowered");
        }
    }
}
