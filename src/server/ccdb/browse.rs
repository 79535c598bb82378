//! `/browse` (every version) and `/latest` (of each path the one created last), as JSON, XML, text,
//! or a page for people.

use std::io;

use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use super::address::Wanted;
use super::front::{Front, limits};
use super::json::JsonPage;
use super::listing::{Found, ListingSelection, Pattern};
use super::listing_format::ListingFormat;
use super::people::PeoplePage;
use super::plain::{TextPage, XmlPage};
use super::reply::{CcdbReply, ReplyBody};
use super::request::CcdbRequest;
use super::{json, page};
use crate::cache::CacheError;
use crate::object::ObjectPath;
use crate::source::Details;

/// ALICE's quality control requests these fields, and gets the new names of two of them as well.
const QUALITY_CONTROL: [&str; 3] = ["path", "createTime", "lastModified"];
/// A page of more versions than this is sent while it is written, in pieces of this many.
const PIECE: usize = 128;
/// Maximum omitted paths that are named.
const NAMED: usize = 8;

impl Front {
    pub(super) async fn browse(
        &self,
        request: &CcdbRequest,
        only_latest: bool,
        path: &str,
    ) -> Result<CcdbReply, CacheError> {
        // Real servers never answer this with the usage page.
        let wanted = Wanted::parse(path).unwrap_or_default();
        let asked = request.parameter("Accept");
        let accept = asked.as_deref().or(request.accept.as_deref()).unwrap_or("");
        let mut fields: Option<Vec<String>> = request
            .filter_fields
            .as_deref()
            .map(|fields| fields.split(',').map(|field| field.trim().to_owned()).collect());
        if let Some(fields) = fields.as_mut().filter(|fields| **fields == QUALITY_CONTROL) {
            fields.extend(["Created", "Last-Modified"].map(str::to_owned));
        }
        let format: Box<dyn ListingFormat> = if accept.contains("json") {
            if !only_latest
                && fields.as_deref().is_some_and(|fields| *fields == ["path"])
                && let Some(reply) = self.only_paths(request, &wanted).await?
            {
                return Ok(reply);
            }
            Box::new(JsonPage { fields })
        } else if accept.contains("text/html") {
            Box::new(PeoplePage::new(&wanted, only_latest))
        } else if accept.contains("xml") {
            Box::new(XmlPage)
        } else {
            Box::new(TextPage)
        };
        let selection = ListingSelection {
            only_latest,
            limit: request.browse_limit,
            // A request with a low limit looks for versions, or with a limit of 1 for folders.
            with_subfolders: request.browse_limit.is_none_or(|limit| limit == 1),
        };
        let mut found = self.find(&wanted, limits(request), selection).await?;
        let is_one = found.left_out.first().is_some_and(|path| path.as_str() == wanted.path);
        if is_one {
            let message = "the source does not list this path: request it by time";
            return Ok(page::status(501, message));
        }
        let wants_report =
            request.parameter("report").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        if let (true, Some(folders)) = (wants_report, &found.subfolders) {
            found.report = Some(self.contents_of(folders).await?);
        }
        Ok(self.page(found, format))
    }

    /// The answer with a listing: as a whole if it is short, else streamed while it is written.
    fn page(&self, found: Found, format: Box<dyn ListingFormat>) -> CcdbReply {
        let mut reply = CcdbReply::new(200);
        reply.header("Cache-Control", "no-cache");
        if !found.left_out.is_empty() {
            let paths: Vec<&str> =
                found.left_out.iter().take(NAMED).map(ObjectPath::as_str).collect();
            let count = found.left_out.len();
            let text = format!("{count} paths are not listed: {}", paths.join(", "));
            reply.header("Warning", format_args!("199 iovcache \"{text}\""));
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
        let count = found.versions.len().min(format.longest());
        let cache = self.cache.clone();
        let piece = move |found: &Found, format: &dyn ListingFormat, first: usize| {
            let mut text = if first == 0 { format.start(found) } else { String::new() };
            let last = (first + PIECE).min(count);
            for (number, version) in found.versions[first..last].iter().enumerate() {
                let details = match format.needs_details() {
                    true => cache.known_details_of(version),
                    false => Details::default(),
                };
                text.push_str(&format.version(first + number, version, &details));
            }
            if last == count {
                text.push_str(&format.end(found));
            }
            format.encode(text)
        };
        if count <= PIECE {
            let text = piece(&found, &*format, 0);
            return reply.text(content_type, text.to_vec());
        }
        let pieces = (0..count).step_by(PIECE).collect::<Vec<_>>();
        let frames = stream::iter(pieces)
            .map(move |first| io::Result::Ok(Frame::data(piece(&found, &*format, first))));
        let body: ReplyBody = StreamBody::new(frames).boxed_unsync();
        reply.stream(content_type, body)
    }

    /// The existing paths, one entry per version, as requested by a service that uses this one as
    /// its source. The source answers this without a listing of each path.
    async fn only_paths(
        &self,
        request: &CcdbRequest,
        wanted: &Wanted,
    ) -> Result<Option<CcdbReply>, CacheError> {
        let plain = wanted.at.is_none() && wanted.id.is_none() && wanted.metadata.is_empty();
        let pattern = Pattern::new(&wanted.path);
        let is_pattern = matches!(pattern, Pattern::Wild { .. });
        if !is_pattern || !plain || limits(request) != Default::default() {
            return Ok(None);
        }
        let mut entries = Vec::new();
        let mut left = request.browse_limit.unwrap_or(usize::MAX);
        for summary in self.paths_of(&pattern).await? {
            let count = usize::try_from(summary.versions).unwrap_or(usize::MAX).min(left);
            let entry = format!("{{\"path\":{}}}", json::quoted(summary.path.as_str()));
            entries.extend(std::iter::repeat_n(entry, count));
            left -= count;
        }
        let mut reply = CcdbReply::new(200);
        reply.header("Cache-Control", "no-cache");
        reply.date();
        let text = format!("{{\"objects\":[\n{}]\n}}", entries.join(",\n"));
        Ok(Some(reply.text("application/json;charset=ISO-8859-1", text.into_bytes())))
    }
}
