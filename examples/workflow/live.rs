//! One line per device on stderr, if that is a terminal.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The lines; hidden if stderr is no terminal.
pub(crate) struct Live {
    all: MultiProgress,
    lines: BTreeMap<String, ProgressBar>,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self { all: MultiProgress::new(), lines: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, device: &str) {
        let line = self.all.add(ProgressBar::new_spinner().with_prefix(device.to_owned()));
        if let Ok(style) = ProgressStyle::with_template("{prefix:>14.cyan} {wide_msg}") {
            line.set_style(style);
        }
        line.set_message("starting");
        self.lines.insert(device.to_owned(), line);
    }

    pub(crate) fn say(&self, device: &str, what: &str) {
        if let Some(line) = self.lines.get(device) {
            line.set_message(what.to_owned());
            line.tick();
        }
    }

    pub(crate) fn clear(&self) {
        let _ = self.all.clear();
    }
}
