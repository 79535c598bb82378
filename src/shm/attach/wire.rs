//! The protocol of the attach socket: lines of JSON with descriptors, over a Unix stream socket.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::error::coded;
use crate::secret::Secret;
use crate::shm::segment::{Kind, SharedSegment};

/// Maximum number of descriptors per message in the kernel (SCM_MAX_FD).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// Maximum length of a line.
const MAX_LINE_BYTES: usize = 64 << 10;

/// The first line of a client.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// The protocol version: 1.
    pub hello: u32,
    /// The consumer name of the process.
    pub consumer: String,
    /// The token for access, if one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "Secret::reveal_to")]
    pub token: Option<Secret>,
    /// Whether it looks up by itself: then directory and pins page come with the welcome, where the
    /// service offers them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
}

/// A segment that a client asks for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// Segment or region.
    pub kind: Kind,
    /// Its id.
    pub id: u16,
}

/// All later lines of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientMessage {
    /// Asks for a segment again. The answer announces it, or is empty if there is none.
    Need(Need),
    /// Ends a lease of the session.
    Release {
        /// The lease.
        lease: String,
    },
    /// The consumer has received the table of a timeframe.
    Delivered {
        /// The timeframe.
        timeframe: u64,
        /// The consumer; `None`: the one of the hello.
        consumer: Option<String>,
        /// Its registration, if the table was taken from shared memory: an id can be registered
        /// again.
        registration: Option<u64>,
    },
    /// The consumer has consumed timeframes.
    Consumed {
        /// The timeframes.
        done: Done,
        /// The consumer; `None`: the one of the hello.
        consumer: Option<String>,
        /// The registration of a single timeframe, as above.
        registration: Option<u64>,
    },
}

impl ClientMessage {
    /// The report that a consumer has taken a table from shared memory, with its registration.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(crate) fn delivered(timeframe: u64, consumer: &str, registration: u64) -> Self {
        let (consumer, registration) = (Some(consumer.to_owned()), Some(registration));
        Self::Delivered { timeframe, consumer, registration }
    }

    /// The report that a consumer has consumed the timeframe of such a table.
    #[cfg(any(feature = "client", feature = "capi"))]
    pub(crate) fn consumed(timeframe: u64, consumer: &str, registration: u64) -> Self {
        let (consumer, registration) = (Some(consumer.to_owned()), Some(registration));
        Self::Consumed { done: Done::One(timeframe), consumer, registration }
    }

    /// Whether it reports the progress of a consumer: a client waits for the outcome of these lines
    /// alone.
    pub(crate) fn is_report(&self) -> bool {
        matches!(self, Self::Delivered { .. } | Self::Consumed { .. })
    }
}

/// The timeframes that a consumer has consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Done {
    /// One timeframe.
    One(u64),
    /// All timeframes below an id.
    Below {
        /// The id.
        oldest_possible: u64,
    },
}

impl Done {
    fn is_one(&self) -> bool {
        matches!(self, Self::One(_))
    }
}

/// A later line of a client in its wire form: exactly one of the first four fields is set.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClientLine {
    #[serde(skip_serializing_if = "Option::is_none")]
    need: Option<Need>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivered: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumed: Option<Done>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consumer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    registration: Option<u64>,
}

impl Serialize for ClientMessage {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = ClientLine::default();
        match self {
            Self::Need(need) => line.need = Some(*need),
            Self::Release { lease } => line.release = Some(lease.clone()),
            Self::Delivered { timeframe, consumer, registration } => {
                (line.delivered, line.consumer) = (Some(*timeframe), consumer.clone());
                line.registration = *registration;
            }
            Self::Consumed { done, consumer, registration } => {
                (line.consumed, line.consumer) = (Some(*done), consumer.clone());
                line.registration = *registration;
            }
        }
        line.serialize(serializer)
    }
}

/// The kind of file that a descriptor of an announcement leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SharedKind {
    /// A segment of the service.
    Segment,
    /// A region that another process owns.
    Region,
    /// The directory of the local plane (`schemas/directory.md`).
    Directory,
    /// The pins page of this session.
    Pins,
}

impl From<Kind> for SharedKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Segment => Self::Segment,
            Kind::Region => Self::Region,
        }
    }
}

/// One segment of an announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// Its kind.
    pub kind: SharedKind,
    /// Its id.
    pub id: u16,
    /// Its size in bytes.
    pub size: u64,
}

impl From<&SharedSegment> for SegmentEntry {
    fn from(shared: &SharedSegment) -> Self {
        Self { kind: shared.kind().into(), id: shared.id(), size: shared.size_bytes() }
    }
}

/// A line of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The id of the session, for requests.
    pub session: String,
    /// The epoch of the service, in hexadecimal digits.
    pub epoch: String,
    /// The segments whose descriptors come with this line, in the same order.
    pub segments: Vec<SegmentEntry>,
}

/// The last line of the service to a refused client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRefusal {
    /// The name of the kind of error, e.g. `UNAUTHENTICATED`.
    pub kind: String,
    /// The message; it begins with the stable code.
    pub error: String,
}

/// Why a line is rejected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The socket failed.
    #[error("the attach socket")]
    Io(#[from] io::Error),
    /// The peer has hung up.
    #[error("the peer hung up")]
    HungUp,
    /// The line exceeds the limit.
    #[error("a line of more than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// Descriptors were lost because the process has too many open files.
    #[error("descriptors were lost: too many open files")]
    DescriptorsLost,
    /// The line does not follow the protocol.
    #[error("expected {expected}: {reason}")]
    Malformed {
        /// The expected input.
        expected: &'static str,
        /// The reason.
        reason: String,
    },
}

coded! { WireError {
    Io(error) => (match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::Unavailable,
    }) 4060,
    HungUp => Unavailable 4061,
    TooLong => InvalidArgument 4062,
    DescriptorsLost => ResourceExhausted 4063,
    Malformed => InvalidArgument 4064,
} }

/// Parses the first line of a client.
///
/// # Errors
/// [`WireError::Malformed`], which names unknown fields.
pub fn parse_hello(line: &[u8]) -> Result<Hello, WireError> {
    const EXPECTED: &str = r#"{"hello": 1, "consumer": "<name>"}"#;
    let malformed = |reason| WireError::Malformed { expected: EXPECTED, reason };
    let hello: Hello =
        serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    if hello.hello != 1 {
        return Err(malformed(format!("hello is {}, only 1 is spoken", hello.hello)));
    }
    check_consumer(&hello.consumer).map_err(malformed)?;
    Ok(hello)
}

/// Parses a later line of a client.
///
/// # Errors
/// [`WireError::Malformed`], which names unknown fields.
pub fn parse_line(line: &[u8]) -> Result<ClientMessage, WireError> {
    let malformed = |reason: String| WireError::Malformed {
        expected: r#"one of {"need": {"kind", "id"}}, {"release"}, {"delivered"}, {"consumed"}"#,
        reason,
    };
    let line: ClientLine =
        serde_json::from_slice(line).map_err(|error| malformed(error.to_string()))?;
    let ClientLine { need, release, delivered, consumed, consumer, registration } = line;
    if let Some(name) = &consumer {
        check_consumer(name).map_err(malformed)?;
    }
    let is_bare = consumer.is_none() && registration.is_none();
    match (need, release, delivered, consumed) {
        (Some(need), None, None, None) if is_bare => Ok(ClientMessage::Need(need)),
        (None, Some(lease), None, None) if is_bare => Ok(ClientMessage::Release { lease }),
        (None, None, Some(timeframe), None) => {
            Ok(ClientMessage::Delivered { timeframe, consumer, registration })
        }
        (None, None, None, Some(done)) if registration.is_none() || done.is_one() => {
            Ok(ClientMessage::Consumed { done, consumer, registration })
        }
        _ => Err(malformed("none of them, or more than one".to_owned())),
    }
}

/// Maximum length of the name of a consumer, as in a registration.
const MAX_NAME_BYTES: usize = 256;

/// Checks the name of a consumer.
pub(crate) fn check_consumer(name: &str) -> Result<(), String> {
    match (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(format!(
            "a consumer's name has 1 to {MAX_NAME_BYTES} bytes of printable characters"
        )),
    }
}

/// Sends as much of `bytes` as the socket accepts, with `descriptors` at the first byte.
///
/// # Errors
/// Errors of the socket; `WouldBlock` if it is full.
///
/// # Panics
/// If there are more than `MAX_DESCRIPTORS`.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)), "too many descriptors");
    }
    let slices = [IoSlice::new(bytes)];
    Ok(sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL)?)
}

/// Whether the peer has read everything. Unread descriptors keep their files alive.
///
/// # Errors
/// Errors of the kernel.
#[doc(hidden)]
pub fn is_all_read(socket: impl AsFd) -> io::Result<bool> {
    let mut unread: libc::c_int = 0;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the kernel writes one int to `unread`, which lives until it returns.
    let status = unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut unread) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // The count includes the kernel's buffers. While the last buffer is being freed, one byte of it
    // still counts; every whole buffer is larger than this bound.
    Ok(unread < 64)
}

/// Splits the input into lines and keeps the received descriptors in order.
#[derive(Debug, Default)]
pub struct LineReader {
    bytes: Vec<u8>,
    /// Number of bytes already searched for the end of the line.
    searched: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl LineReader {
    /// Reads once from the socket.
    ///
    /// # Errors
    /// [`WireError`]; `Io` of kind `WouldBlock` if there is no input.
    pub fn read(&mut self, socket: impl AsFd) -> Result<(), WireError> {
        let mut piece = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut piece)];
        let got = recvmsg(socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
            .map_err(io::Error::from)?;
        // Taken out first, so that they are closed on errors.
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(WireError::DescriptorsLost);
        }
        // Descriptors come with the line that names them, so at most those of two lines are kept.
        if self.descriptors.len() > 2 * MAX_DESCRIPTORS {
            self.descriptors.clear();
            return Err(WireError::Malformed {
                expected: "descriptors that a line names",
                reason: format!("more than {} came", 2 * MAX_DESCRIPTORS),
            });
        }
        if got.bytes == 0 {
            return Err(WireError::HungUp);
        }
        self.bytes.extend_from_slice(&piece[..got.bytes]);
        if self.bytes.len() > MAX_LINE_BYTES && !self.bytes.contains(&b'\n') {
            return Err(WireError::TooLong);
        }
        Ok(())
    }

    /// The next complete line, without its end.
    pub fn line(&mut self) -> Option<Vec<u8>> {
        let Some(found) = self.bytes[self.searched..].iter().position(|&byte| byte == b'\n') else {
            self.searched = self.bytes.len();
            return None;
        };
        let rest = self.bytes.split_off(self.searched + found + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        self.searched = 0;
        line.pop();
        Some(line)
    }

    /// The next received descriptor.
    pub fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }

    /// Number of received descriptors not taken yet.
    pub fn descriptors(&self) -> usize {
        self.descriptors.len()
    }
}

/// The peer of a Unix socket, as reported by the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerCredentials {
    /// Its process id at connect; 0 if it is in a container whose processes are not visible here.
    pub pid: i32,
    /// Its user id.
    pub uid: u32,
    /// Its groups, the primary one first.
    pub gids: Vec<u32>,
}

/// Maximum number of groups of a user (NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

impl PeerCredentials {
    /// Reads the credentials of the peer at connect (SO_PEERCRED, SO_PEERGROUPS).
    ///
    /// # Errors
    /// Errors of the kernel.
    pub(crate) fn of(socket: impl AsFd) -> io::Result<Self> {
        // Not with rustix, whose pid is never 0, while the kernel's can be.
        let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        let place = (&raw mut peer).cast();
        let socket = socket.as_fd().as_raw_fd();
        // SAFETY: the kernel writes at most `length` bytes to `peer`, which has as many, and
        // any of their values is valid; both live until it returns.
        let status = unsafe {
            libc::getsockopt(socket, libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length)
        };
        if status != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut gids = vec![peer.gid];
        gids.extend(other_groups(socket)?);
        Ok(Self { pid: peer.pid, uid: peer.uid, gids })
    }
}

/// The supplementary groups of the peer of a socket.
fn other_groups(socket: i32) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 32];
    loop {
        let mut length = size_of_val(&groups[..]) as libc::socklen_t;
        let place = groups.as_mut_ptr().cast();
        let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERGROUPS);
        // SAFETY: the kernel writes at most `length` bytes to `groups`, which has as many; both
        // live until it returns.
        let status = unsafe { libc::getsockopt(socket, level, name, place, &raw mut length) };
        let count = length as usize / size_of::<u32>();
        match status {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            // If they do not fit, the kernel returns their number.
            _ if count > groups.len() && count <= MAX_GROUPS => groups.resize(count, 0),
            _ => {
                let error = io::Error::last_os_error();
                // Kernels before 4.13 do not support this.
                let unknown = error.raw_os_error() == Some(libc::ENOPROTOOPT);
                return if unknown { Ok(Vec::new()) } else { Err(error) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lines_come_whole_whatever_the_pieces_they_come_in() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut reader = LineReader::default();
        for piece in ["{\"a\"", ": 1}\n{", "}\n", "\nrest"] {
            ours.write_all(piece.as_bytes()).unwrap();
            reader.read(&theirs).unwrap();
        }
        assert_eq!(reader.line(), Some(b"{\"a\": 1}".to_vec()));
        assert_eq!(reader.line(), Some(b"{}".to_vec()));
        assert_eq!(reader.line(), Some(Vec::new()));
        assert_eq!(reader.line(), None);
        drop(ours);
        assert!(matches!(reader.read(&theirs), Err(WireError::HungUp)));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let _ = (&ours).write_all(&vec![b'x'; 1 << 20]);
        });
        let mut reader = LineReader::default();
        let error = loop {
            if let Err(error) = reader.read(&theirs) {
                break error;
            }
        };
        assert!(matches!(error, WireError::TooLong));
        drop(theirs);
        writer.join().unwrap();
    }

    #[test]
    fn descriptors_keep_their_order_and_close_on_exec() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let files: Vec<File> =
            (0..MAX_DESCRIPTORS).map(|_| tempfile::tempfile().unwrap()).collect();
        for (n, file) in files.iter().enumerate() {
            file.set_len(n as u64).unwrap();
        }
        let borrowed: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        assert_eq!(send(&ours, b"two\nlines\n", &borrowed).unwrap(), 10);
        let mut reader = LineReader::default();
        reader.read(&theirs).unwrap();
        assert_eq!(reader.descriptors(), MAX_DESCRIPTORS);
        for n in 0..MAX_DESCRIPTORS {
            let file = File::from(reader.descriptor().unwrap());
            assert_eq!(file.metadata().unwrap().len(), n as u64);
            let flags = rustix::io::fcntl_getfd(&file).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn descriptors_that_no_line_names_are_closed_and_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let many = vec![file.as_fd(); MAX_DESCRIPTORS];
        let mut reader = LineReader::default();
        let mut read = || {
            send(&ours, b"x", &many).unwrap();
            reader.read(&theirs)
        };
        assert!(read().is_ok() && read().is_ok());
        assert!(matches!(read(), Err(WireError::Malformed { .. })));
        assert_eq!(reader.descriptors(), 0);
    }

    #[test]
    fn faults_of_a_hello_are_named() {
        let error = |line: &str| parse_hello(line.as_bytes()).unwrap_err().to_string();
        assert!(error(r#"{"hello": 1, "consumer": "a", "colour": 3}"#).contains("colour"));
        assert!(error(r#"{"hello": 2, "consumer": "a"}"#).contains("hello is 2"));
        assert!(error(r#"{"hello": 1, "consumer": ""}"#).contains("1 to 256"));
        assert!(error(r#"{"hello": 1}"#).contains("consumer"));
        let error = |line: &str| parse_line(line.as_bytes()).unwrap_err().to_string();
        assert!(error(r#"{"need": {"kind": "segment", "id": 1, "x": 1}}"#).contains('x'));
        assert!(error(r#"{"need": {"kind": "segment", "id": 1}, "delivered": 1}"#).contains("one"));
        assert!(error(r#"{"consumer": "a"}"#).contains("none"));
        assert!(error(r#"{"release": "a", "consumer": "a"}"#).contains("none"));
        assert!(error(r#"{"consumed": "a"}"#).contains("consumed"));
        assert!(error(r#"{"consumed": 1, "consumer": ""}"#).contains("1 to 256"));
    }

    #[test]
    fn lines_of_a_client_are_read_as_they_were_written() {
        let need = Need { kind: Kind::Segment, id: 3 };
        let consumer = Some("a".to_owned());
        for message in [
            ClientMessage::Need(need),
            ClientMessage::Release { lease: "l".into() },
            ClientMessage::Delivered { timeframe: 7, consumer: None, registration: None },
            ClientMessage::Delivered { timeframe: 7, consumer: None, registration: Some(u64::MAX) },
            ClientMessage::Consumed {
                done: Done::One(7),
                consumer: consumer.clone(),
                registration: Some(9),
            },
            ClientMessage::Consumed {
                done: Done::Below { oldest_possible: 9 },
                consumer,
                registration: None,
            },
        ] {
            let line = serde_json::to_vec(&message).unwrap();
            assert_eq!(parse_line(&line).unwrap(), message);
        }
    }

    #[test]
    fn unread_bytes_of_a_peer_are_counted() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(is_all_read(&ours).unwrap());
        send(&ours, b"x", &[]).unwrap();
        assert!(!is_all_read(&ours).unwrap());
        LineReader::default().read(&theirs).unwrap();
        assert!(is_all_read(&ours).unwrap());
    }

    #[test]
    fn the_kernel_identifies_the_peer() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = PeerCredentials::of(&ours).unwrap();
        assert_eq!(peer.pid.unsigned_abs(), std::process::id());
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.gids[0], rustix::process::getegid().as_raw());
    }
}
