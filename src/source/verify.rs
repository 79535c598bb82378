//! Results of the verification of files on a disk.

use std::path::PathBuf;

/// A fault of a file or folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Path of the file or folder.
    pub file: PathBuf,
    /// Description of the fault.
    pub reason: String,
    /// Action taken.
    pub done: RepairOutcome,
}

/// Action taken for a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairOutcome {
    /// None: no action was needed, or the file belongs to another program.
    LeftAlone,
    /// The file was removed.
    Removed,
    /// The file was renamed to `.NAME.damaged` in its folder. No reader uses that name.
    SetAside,
}

impl RepairOutcome {
    /// Name for messages and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeftAlone => "left alone",
            Self::Removed => "removed",
            Self::SetAside => "set aside",
        }
    }
}

/// Result of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Number of valid files, or valid versions.
    pub files: u64,
    /// Total size of the valid files.
    pub bytes: u64,
    /// Faults found.
    pub damaged: Vec<Damage>,
}

impl VerifyReport {
    pub(super) fn wrong(&mut self, file: PathBuf, reason: impl Into<String>, done: RepairOutcome) {
        self.damaged.push(Damage { file, reason: reason.into(), done });
    }
}
