//! A listing as an HTML page: folders, the timeline, and each version with its metadata.

use std::fmt::Write as _;

use super::address::Wanted;
use super::listing::Found;
use super::listing_format::ListingFormat;
use super::plain::escaped;
use super::version;
use crate::interval::Timestamp;
use crate::object::ObjectInfo;
use crate::source::Details;

/// Maximum versions on one page; programs get all.
const SHOWN: usize = 1_000;
/// Maximum versions in the chart.
const PICTURED: usize = 200;
/// Width of the chart in its own units; it is scaled to the width of the page.
const WIDTH: f64 = 1000.0;

const STYLE: &str = include_str!("people.css");

/// The page of a path, or of the matches of a pattern.
pub(super) struct PeoplePage {
    path: String,
    command: &'static str,
}

impl PeoplePage {
    pub(super) fn new(wanted: &Wanted, only_latest: bool) -> Self {
        let command = if only_latest { "latest" } else { "browse" };
        Self { path: wanted.path.clone(), command }
    }

    /// The breadcrumbs of the path, each folder a link.
    fn way(&self) -> String {
        let mut text = "<a href=\"/browse/\">all</a>".to_owned();
        let mut so_far = String::new();
        for element in self.path.split('/').filter(|element| !element.is_empty()) {
            if !so_far.is_empty() {
                so_far.push('/');
            }
            so_far.push_str(element);
            let (link, name) = (linked(&so_far), escaped(element));
            let _ = write!(text, " / <a href=\"/browse/{link}\">{name}</a>");
        }
        text
    }
}

impl ListingFormat for PeoplePage {
    fn content_type(&self) -> &'static str {
        "text/html;charset=utf-8"
    }

    fn longest(&self) -> usize {
        SHOWN
    }

    fn start(&self, found: &Found) -> String {
        let title = if self.path.is_empty() { "all paths" } else { &self.path };
        let title = escaped(title);
        let mut text = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>{title} - conditions</title><style>{STYLE}</style></head><body>\n\
             <a class=\"skip\" href=\"#versions\">to the versions</a>\n\
             <header><h1>{title}</h1><nav aria-label=\"path\">{}</nav></header>\n",
            self.way()
        );
        if let Some(folders) = found.subfolders.as_ref().filter(|folders| !folders.is_empty()) {
            text.push_str("<section><h2>Folders</h2><ul class=\"folders\">\n");
            for folder in folders {
                let name = folder.rsplit('/').next().unwrap_or(folder);
                let (link, name) = (linked(folder), escaped(name));
                let _ = writeln!(text, "<li><a href=\"/browse/{link}\">{name}</a></li>");
            }
            text.push_str("</ul></section>\n");
        }
        let count = found.versions.len();
        let _ = writeln!(text, "<section id=\"versions\"><h2>Versions <small>{count}</small></h2>");
        if count == 0 {
            text.push_str("<p class=\"none\">There is no version at this path.</p>\n");
            return text;
        }
        text.push_str(&picture(&found.versions));
        if count > SHOWN {
            let _ = writeln!(
                text,
                "<p>The first {SHOWN} of {count} are shown; a time after the path, as in \
                 <code>/browse/path/1730000000000</code>, shows those that are valid then.</p>"
            );
        }
        text.push_str(
            "<div class=\"scroll\"><table><thead><tr><th>Valid from</th><th>until</th>\
             <th>Created</th><th class=\"number\">Bytes</th><th>Metadata</th><th>Object</th></tr>\
             </thead><tbody>\n",
        );
        text
    }

    fn version(&self, _number: usize, version: &ObjectInfo, details: &Details) -> String {
        let size = version.size_bytes.map(|size| size.to_string()).unwrap_or_default();
        let mut metadata = String::new();
        for (key, value) in &version.metadata {
            let _ = write!(metadata, "<dt>{}</dt><dd>{}</dd>", escaped(key), escaped(value));
        }
        let mut more = String::new();
        for (name, value) in [
            ("id", Some(version.id.to_string())),
            ("MD5", version.md5.map(|md5| md5.to_string())),
            ("type", Some(version::content_type(details).to_owned())),
            ("uploaded from", details.uploaded_from.clone()),
        ] {
            if let Some(value) = value {
                let _ = write!(more, "<dt>{name}</dt><dd>{}</dd>", escaped(&value));
            }
        }
        let paths = match self.path == version.path.as_str() {
            true => String::new(),
            false => format!(
                "<a href=\"/browse/{}\">{}</a><br>",
                linked(version.path.as_str()),
                escaped(version.path.as_str())
            ),
        };
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"number\">{size}</td>\
             <td><dl>{metadata}</dl></td><td>{paths}<a href=\"{}\" download>{}</a>\
             <details><summary>more</summary><dl>{more}</dl></details></td></tr>\n",
            time(version.validity.from()),
            time(version.validity.until()),
            time(version.created),
            escaped(&version::address(version)),
            escaped(version::file_name(&version.path, details)),
        )
    }

    fn end(&self, found: &Found) -> String {
        let mut text = String::new();
        if !found.versions.is_empty() {
            text.push_str("</tbody></table></div>\n");
        }
        let (command, path) = (self.command, linked(&self.path));
        let _ = write!(
            text,
            "</section>\n<footer><a href=\"/{command}/{path}?Accept=application/json\">JSON</a> \
             <a href=\"/{command}/{path}?Accept=text/xml\">XML</a> \
             <a href=\"/{command}/{path}?Accept=text/plain\">text</a></footer></body></html>\n"
        );
        text
    }
}

/// A path within an address, with special characters encoded.
fn linked(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b'*' => {
                text.push(char::from(byte));
            }
            byte => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

/// A readable time, followed by its milliseconds.
fn time(at: Timestamp) -> String {
    let millis = at.as_millis();
    // The years 1970 to 9999, the range of HTTP dates.
    let plain = u64::try_from(millis).ok().filter(|millis| *millis < 253_402_300_800_000);
    let date = plain.map(|millis| {
        let since = std::time::Duration::from_millis(millis);
        httpdate::fmt_http_date(std::time::UNIX_EPOCH + since).replace(" GMT", "")
    });
    match date {
        Some(date) => format!("<time>{date}</time><br><small>{millis}</small>"),
        None => format!("<small>{millis}</small>"),
    }
}

/// The timeline: one bar per version, the last created at the top.
fn picture(versions: &[std::sync::Arc<ObjectInfo>]) -> String {
    let mut all: Vec<&ObjectInfo> = versions.iter().map(|version| &**version).collect();
    all.sort_unstable_by_key(|version| std::cmp::Reverse(version.rank()));
    let left_out = all.len().saturating_sub(PICTURED);
    all.truncate(PICTURED);
    let (Some(begin), Some(end)) = (
        all.iter().map(|version| version.validity.from().as_millis()).min(),
        all.iter().map(|version| version.validity.until().as_millis()).max(),
    ) else {
        return String::new();
    };
    // The width of the chart in milliseconds; precision does not matter here.
    let span = (end as f64 - begin as f64).max(1.0);
    let x = |at: Timestamp| (at.as_millis() as f64 - begin as f64) / span * WIDTH;
    let height = (all.len() * 4).clamp(24, 400);
    let row = height as f64 / all.len() as f64;
    let mut text = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"validity of {} versions\">\n",
        all.len()
    );
    for (number, version) in all.iter().enumerate() {
        let (from, until) = (x(version.validity.from()), x(version.validity.until()));
        let class = if number == 0 { " class=\"last\"" } else { "" };
        let _ = writeln!(
            text,
            "<rect{class} x=\"{from:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\">\
             <title>{} to {}, created {}</title></rect>",
            number as f64 * row,
            (until - from).max(1.0),
            row * 0.8,
            version.validity.from(),
            version.validity.until(),
            version.created,
        );
    }
    text.push_str("</svg>\n");
    if left_out > 0 {
        let _ =
            writeln!(text, "<p>{left_out} versions that were created earlier are not drawn.</p>");
    }
    text
}
