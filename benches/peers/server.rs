//! The server process of a peer: started in its own folder, ended by its pid.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::work::Left;

const START_LIMIT: Duration = Duration::from_secs(20);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    child: Child,
    folder: TempDir,
}

impl Server {
    /// Starts `program`; `prepare` adds its arguments, given the folder and the socket in it.
    pub(crate) fn start(
        program: &str,
        prepare: impl FnOnce(&mut Command, &std::path::Path, PathBuf),
    ) -> Result<Self, Left> {
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        prepare(&mut command, folder.path(), folder.path().join("socket"));
        match command.spawn() {
            Ok(child) => Ok(Self { child, folder }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Left::NotThere(format!("{program} is not installed")))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn connect(&mut self) -> Result<BufReader<UnixStream>, Left> {
        let (socket, deadline) = (self.folder.path().join("socket"), Instant::now() + START_LIMIT);
        loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                    stream.set_write_timeout(Some(ANSWER_LIMIT))?;
                    return Ok(BufReader::with_capacity(1 << 20, stream));
                }
                Err(error) => {
                    if let Some(status) = self.child.try_wait()? {
                        return Err(Left::Failed(format!("it ended at once: {status}")));
                    }
                    if Instant::now() > deadline {
                        return Err(error.into());
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
