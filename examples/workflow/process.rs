//! A device as the driver sees it: a child process, ended by its id.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::device::{Order, Told};
use crate::plan::{Plan, Seat};
use crate::{Outcome, PATIENCE};

/// An event of a device, as the driver sees it.
pub(crate) enum News {
    Told(Seat, Told),
    /// Its stdout ended: it is dead or about to end.
    Silent(Seat),
}

pub(crate) struct Process {
    pub(crate) seat: Seat,
    child: Child,
    orders: Option<ChildStdin>,
}

impl Process {
    /// Starts this program again, as a device.
    pub(crate) fn start(
        plan: &Plan,
        seat: Seat,
        hold_at: Option<u64>,
        news: Sender<News>,
    ) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--device").arg(&seat.device);
        command.arg("--incarnation").arg(seat.incarnation.to_string());
        command.arg("--folder").arg(&plan.folder);
        if let Some(hold_at) = hold_at {
            command.arg("--hold-at").arg(hold_at.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (orders, stdout) = (child.stdin.take(), child.stdout.take());
        let told_by = seat.clone();
        std::thread::spawn(move || {
            for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
                // A line cut off by a kill is discarded.
                let Some(told) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else {
                    break;
                };
                if news.send(News::Told(told_by.clone(), told)).is_err() {
                    return;
                }
            }
            let _ = news.send(News::Silent(told_by));
        });
        Ok(Self { seat, child, orders })
    }

    pub(crate) fn order(&mut self, order: &Order) {
        // A process that does not read is dead, as the end of its stdout shows.
        if let (Some(stdin), Ok(line)) = (&mut self.orders, serde_json::to_string(order)) {
            let _ = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        }
    }

    /// Kills with SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end, and returns whether it succeeded.
    pub(crate) fn wait(&mut self) -> Outcome<bool> {
        let deadline = Instant::now() + PATIENCE / 2;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(format!("{} does not stop", self.seat.device).into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
