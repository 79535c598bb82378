//! `/browse` (every version) and `/latest` (of each path the one created last), as JSON, XML, text,
//! or a page for people.

use std::io;
use std::sync::Arc;

use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use super::address::ObjectAddress;
use super::front::{Front, limits};
use super::json::JsonPage;
use super::listing::{FolderListing, PICTURED};
use super::listing_format::ListingFormat;
use super::listing_stream::ListingRequest;
use super::pattern::Pattern;
use super::people::PeoplePage;
use super::plain::{TextPage, XmlPage};
use super::reply::{CcdbReply, ReplyBody};
use super::request::CcdbRequest;
use super::{json, page};
use crate::cache::CacheError;
use crate::object::{ObjectPath, Query};
use crate::source::PathSummary;

/// ALICE's quality control requests these fields, and gets the new names of two of them as well.
const QUALITY_CONTROL: [&str; 3] = ["path", "createTime", "lastModified"];
/// Size of the texts in which a listing of paths is sent.
const PATHS_TEXT_BYTES: usize = 32 << 10;

impl Front {
    pub(super) async fn browse(
        &self,
        request: &CcdbRequest,
        only_latest: bool,
        path: &str,
    ) -> Result<CcdbReply, CacheError> {
        // Real servers never answer this with the usage page.
        let wanted = ObjectAddress::parse(path).unwrap_or_default();
        let asked = request.parameter("Accept").filter(|accept| !accept.is_empty());
        let accept = asked.as_deref().or(request.accept.as_deref()).unwrap_or("");
        let mut fields: Option<Vec<String>> = request
            .filter_fields
            .as_deref()
            .map(|fields| fields.split([' ', '\t', ',', ';']))
            .map(|fields| fields.filter(|field| !field.is_empty()).map(str::to_owned).collect())
            .filter(|fields: &Vec<String>| !fields.is_empty());
        if let Some(fields) = fields.as_mut().filter(|fields| **fields == QUALITY_CONTROL) {
            fields.extend(["Created", "Last-Modified"].map(str::to_owned));
        }
        let browse_limit = request.browse_limit;
        let format: Arc<dyn ListingFormat> = if accept.contains("json") {
            if !only_latest
                && fields.as_deref().is_some_and(|fields| *fields == ["path"])
                && let Some(reply) = self.only_paths(request, &wanted).await?
            {
                return Ok(reply);
            }
            Arc::new(JsonPage { fields })
        } else if accept.contains("text/html") {
            Arc::new(PeoplePage::new(&wanted, only_latest))
        } else if accept.contains("xml") {
            Arc::new(XmlPage)
        } else {
            Arc::new(TextPage)
        };
        let path = wanted.path.clone();
        let is_plain = matches!(Pattern::new(&path), Pattern::Plain);
        let selection =
            ListingRequest { wanted, limits: limits(request), only_latest, newest: browse_limit };
        let mut listing = self.find(selection, format.longest()).await?;
        let found = &mut listing.found;
        if is_plain && !found.is_long && !found.left_out.is_empty() {
            let message = "the source does not list this path: request it by time";
            return Ok(page::status(501, message));
        }
        if is_plain {
            self.complete(found, request, &path).await?;
        }
        self.page(listing, format).await
    }

    /// Adds the folders, their report, and the versions of the chart to the listing of a path.
    async fn complete(
        &self,
        found: &mut FolderListing,
        request: &CcdbRequest,
        path: &str,
    ) -> Result<(), CacheError> {
        // A request with a low limit looks for versions, or with a limit of 1 for folders.
        let with_subfolders = request.browse_limit.is_none_or(|limit| limit == 1);
        let folders = match with_subfolders {
            true => self.cache.subfolders(path).await?,
            false => Vec::new(),
        };
        let wants_report =
            request.parameter("report").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        if wants_report {
            found.report = Some(self.contents_of(&folders).await?);
        }
        found.subfolders = Some(folders);
        found.of_several_sources =
            ObjectPath::new(path).is_ok_and(|path| !self.cache.decides_by_creation(&path));
        if let (true, Ok(path)) = (found.is_cut, ObjectPath::new(path)) {
            let newest = self.cache.newest_versions(&Query::all(path), None, PICTURED).await?;
            found.pictured = newest.unwrap_or_default();
        }
        Ok(())
    }

    /// The existing paths, one entry per version, as requested by a service that uses this one as
    /// its source. The source answers this without a listing of each path.
    async fn only_paths(
        &self,
        request: &CcdbRequest,
        wanted: &ObjectAddress,
    ) -> Result<Option<CcdbReply>, CacheError> {
        let plain = wanted.at.is_none() && wanted.id.is_none() && wanted.metadata.is_empty();
        let pattern = Pattern::new(&wanted.path);
        let is_pattern = matches!(pattern, Pattern::Wild { .. });
        if !is_pattern || !plain || limits(request) != Default::default() {
            return Ok(None);
        }
        let paths = self.paths_of(&pattern).await?;
        let left = request.browse_limit.map_or(u64::MAX, |limit| limit as u64);
        let mut reply = CcdbReply::new(200);
        reply.header("Cache-Control", "no-cache");
        reply.date();
        let texts = stream::iter(PathTexts {
            paths: paths.into_iter(),
            current: (String::new(), 0),
            left,
            is_first: true,
        });
        let start = stream::iter(["{\"objects\":[\n".to_owned()]);
        let all = start.chain(texts).chain(stream::iter(["]\n}".to_owned()]));
        let frames = all.map(|text| io::Result::Ok(Frame::data(text.into())));
        let body: ReplyBody = StreamBody::new(frames).boxed_unsync();
        Ok(Some(reply.stream("application/json;charset=ISO-8859-1", body)))
    }
}

/// Writes one entry per version of each path, in texts of about [`PATHS_TEXT_BYTES`].
struct PathTexts {
    paths: std::vec::IntoIter<PathSummary>,
    /// The entry of the path, and how often it is still to be written.
    current: (String, u64),
    /// Entries that may be written.
    left: u64,
    is_first: bool,
}

impl Iterator for PathTexts {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let mut text = String::new();
        while text.len() < PATHS_TEXT_BYTES && self.left > 0 {
            if self.current.1 == 0 {
                let Some(summary) = self.paths.next() else { break };
                let path = json::quoted(summary.path.as_str());
                self.current = (format!("{{\"path\":{path}}}"), summary.versions);
                continue;
            }
            if !std::mem::replace(&mut self.is_first, false) {
                text.push_str(",\n");
            }
            text.push_str(&self.current.0);
            (self.current.1, self.left) = (self.current.1 - 1, self.left - 1);
        }
        (!text.is_empty()).then_some(text)
    }
}
