//! What is wrong with what lies on a disk, and what was done about it.

use std::path::PathBuf;

/// Something that is not right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Which file or folder.
    pub file: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// What was done about it.
    pub done: RepairOutcome,
}

/// What was done about something that is not right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairOutcome {
    /// Nothing: nothing was to be done, or it is not ours.
    LeftAlone,
    /// It is gone.
    Removed,
    /// It lies beside its old place, under a name that no reader looks at: `.NAME.damaged`.
    SetAside,
}

impl RepairOutcome {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeftAlone => "left alone",
            Self::Removed => "removed",
            Self::SetAside => "set aside",
        }
    }
}

/// What lies there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Files, or versions, that are right.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is not.
    pub damaged: Vec<Damage>,
}

impl VerifyReport {
    pub(super) fn wrong(&mut self, file: PathBuf, reason: impl Into<String>, done: RepairOutcome) {
        self.damaged.push(Damage { file, reason: reason.into(), done });
    }
}
