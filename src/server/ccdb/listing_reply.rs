//! The answer with a listing: as a whole if it is short, else sent while it is written.
//!
//! ```text
//!  pieces ─▶ text, on a blocking thread ─▶ [2] ─▶ connection
//! ```
//!
//! Only a few texts are written at one time, so listings leave the processors to other requests.

use std::io;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use tokio::sync::mpsc::{Sender, channel};

use super::front::Front;
use super::listing::{FolderListing, FoundListing, LongListing};
use super::listing_format::ListingFormat;
use super::listing_stream::{ListedVersion, ListingPiece};
use super::reply::CcdbReply;
use crate::cache::{Cache, CacheError};
use crate::source::Details;

/// Versions per text.
const PIECE: usize = 128;
/// Maximum texts that wait for the connection.
const WAITING_TEXTS: usize = 2;
/// Maximum omitted paths that are named.
const NAMED: usize = 8;

type Format = Arc<dyn ListingFormat>;

impl Front {
    /// The answer with a listing.
    ///
    /// # Errors
    /// [`CacheError`] if it cannot be written.
    pub(super) async fn page(
        &self,
        listing: FoundListing,
        format: Format,
    ) -> Result<CcdbReply, CacheError> {
        let FoundListing { found, long } = listing;
        let mut reply = CcdbReply::new(200);
        reply.header("Cache-Control", "no-cache");
        if !found.left_out.is_empty() {
            let paths: Vec<&str> = found.left_out.iter().take(NAMED).map(String::as_str).collect();
            let count = found.left_out.len();
            let text = format!("{count} paths are not listed: {}", paths.join(", "));
            reply.header("Warning", format_args!("199 iovcache \"{text}\""));
        }
        if found.of_several_sources {
            // For a service that has this one as its source.
            reply.header("Iovcache-Precedence", "sources");
        }
        reply.date();
        let content_type = format.content_type();
        if content_type.starts_with("text/html") {
            let policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
                          base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
            reply.header("Content-Security-Policy", policy);
            reply.header("X-Content-Type-Options", "nosniff");
            reply.header("Referrer-Policy", "no-referrer");
        }
        match long {
            None if found.versions.len() <= PIECE => {
                let writer = ListingWriter::new(self, format);
                let versions = found.versions.clone();
                let text = writer.write(TextPart::Whole, Arc::new(found), versions, 0).await?;
                Ok(reply.text(content_type, text.to_vec()))
            }
            long => {
                let (sender, receiver) = channel(WAITING_TEXTS);
                let writer = ListingWriter::new(self, format);
                tokio::spawn(send_all(writer, found, long, sender));
                let next = |mut receiver: tokio::sync::mpsc::Receiver<_>| async move {
                    receiver.recv().await.map(|text| (text, receiver))
                };
                let frames = futures::stream::unfold(receiver, next).map_ok(Frame::data);
                Ok(reply.stream(content_type, StreamBody::new(frames).boxed_unsync()))
            }
        }
    }
}

/// Writes and sends a listing until it ends, fails, or the client is gone.
async fn send_all(
    writer: ListingWriter,
    found: FolderListing,
    long: Option<LongListing>,
    sender: Sender<io::Result<Bytes>>,
) {
    let closed = sender.clone();
    tokio::select! {
        sent = try_send_all(writer, found, long, &sender) => {
            if let Err(error) = sent {
                tracing::warn!(%error, "a listing breaks off");
                // The connection ends without the last chunk.
                let _ = sender.send(Err(error)).await;
            }
        }
        () = closed.closed() => {}
    }
}

async fn try_send_all(
    writer: ListingWriter,
    found: FolderListing,
    long: Option<LongListing>,
    sender: &Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let (mut pieces, kept) = match long {
        // Charge and place are kept until the end.
        Some(LongListing { pieces, charge, place }) => (pieces, Some((charge, place))),
        None => {
            let versions = found.versions.clone();
            let piece = ListingPiece { versions, ..ListingPiece::default() };
            (futures::stream::iter([Ok(piece)]).boxed(), None)
        }
    };
    let (mut number, mut part) = (0, TextPart::First);
    let mut head = Arc::new(found);
    while let Some(piece) = pieces.try_next().await.map_err(io::Error::other)? {
        if !piece.left_out.is_empty()
            && let Some(found) = Arc::get_mut(&mut head)
        {
            found.left_out.extend(piece.left_out);
        }
        let mut versions = piece.versions.into_iter();
        loop {
            let some: Vec<ListedVersion> = versions.by_ref().take(PIECE).collect();
            if some.is_empty() {
                break;
            }
            let count = some.len();
            let text = writer.write(part, Arc::clone(&head), some, number).await;
            let text = text.map_err(io::Error::other)?;
            if sender.send(Ok(text)).await.is_err() {
                return Ok(());
            }
            (number, part) = (number + count, TextPart::Middle);
        }
    }
    check_complete(&head, &*writer.format)?;
    let last = if part == TextPart::First { TextPart::Whole } else { TextPart::Last };
    let text = writer.write(last, head, Vec::new(), number).await.map_err(io::Error::other)?;
    let _ = sender.send(Ok(text)).await;
    drop(kept);
    Ok(())
}

/// Checks that the end of a long listing can tell what it lacks: a listing of one path must have all
/// versions, and not every format can name the paths that are left out.
fn check_complete(found: &FolderListing, format: &dyn ListingFormat) -> io::Result<()> {
    // A listing of a pattern has no subfolders.
    let is_one_path = found.subfolders.is_some();
    if found.left_out.is_empty() || (format.names_left_out() && !is_one_path) {
        return Ok(());
    }
    let paths: Vec<&str> = found.left_out.iter().take(NAMED).map(String::as_str).collect();
    let paths = paths.join(", ");
    Err(io::Error::other(format!("the source does not list all versions of {paths}")))
}

/// Part of a listing that a text contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextPart {
    Whole,
    First,
    Middle,
    Last,
}

/// Writes the texts of a listing on blocking threads.
struct ListingWriter {
    cache: Cache,
    format: Format,
    places: Arc<tokio::sync::Semaphore>,
}

impl ListingWriter {
    fn new(front: &Front, format: Format) -> Self {
        Self { cache: front.cache.clone(), format, places: Arc::clone(&front.listing_writers) }
    }

    async fn write(
        &self,
        part: TextPart,
        found: Arc<FolderListing>,
        versions: Vec<ListedVersion>,
        first: usize,
    ) -> Result<Bytes, CacheError> {
        let lost = || CacheError::Lost { what: "a listing".into() };
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| lost())?;
        let (cache, format) = (self.cache.clone(), Arc::clone(&self.format));
        let written = tokio::task::spawn_blocking(move || {
            let _place = place;
            let mut text = String::new();
            if matches!(part, TextPart::Whole | TextPart::First) {
                text.push_str(&format.start(&found));
            }
            for (number, version) in versions.iter().enumerate() {
                let known;
                let details = match &version.details {
                    Some(details) => details,
                    None if format.needs_details() => {
                        known = cache.known_details_of(&version.info);
                        &known
                    }
                    None => &Details::default(),
                };
                format.version(&mut text, first + number, &version.info, details);
            }
            if matches!(part, TextPart::Whole | TextPart::Last) {
                text.push_str(&format.end(&found));
            }
            format.encode(text)
        });
        written.await.map_err(|_| lost())
    }
}
