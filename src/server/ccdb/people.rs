//! A listing as an HTML page: folders, the timeline, and each version with its metadata.

use std::fmt::Write as _;

use super::address::ObjectAddress;
use super::listing::{FolderListing, PICTURED};
use super::listing_format::ListingFormat;
use super::plain::escaped;
use super::version;
use crate::interval::Timestamp;
use crate::object::ObjectInfo;
use crate::source::Details;

/// Maximum versions on one page; programs get all.
const MAX_PAGE_VERSIONS: usize = 1_000;
/// Width of the chart in its own units; it is scaled to the width of the page.
const WIDTH: f64 = 1000.0;

const STYLE: &str = include_str!("people.css");

/// The page of a path, or of the matches of a pattern.
pub(super) struct PeoplePage {
    path: String,
    command: &'static str,
}

impl PeoplePage {
    pub(super) fn new(wanted: &ObjectAddress, only_latest: bool) -> Self {
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

    fn longest(&self) -> Option<usize> {
        Some(MAX_PAGE_VERSIONS)
    }

    fn start(&self, found: &FolderListing) -> String {
        let title = if self.path.is_empty() { "all paths" } else { &self.path };
        let title = escaped(title);
        let mut text = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" href=\"data:,\">\
             <title>{title} - conditions</title><style>{STYLE}</style></head><body>\n\
             <header><a class=\"skip\" href=\"#versions\">to the versions</a>\
             <h1>{title}</h1><nav aria-label=\"path\">{}</nav></header>\n<main>\n",
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
        let more = if found.is_cut { "more than " } else { "" };
        let _ = writeln!(
            text,
            "<section id=\"versions\"><h2>Versions <small>{more}{count}</small></h2>"
        );
        if count == 0 {
            text.push_str("<p class=\"none\">There is no version at this path.</p>\n");
            return text;
        }
        let shown = || found.versions.iter().map(|version| &*version.info);
        text.push_str(&match found.pictured.is_empty() {
            true => picture(shown().collect(), false),
            false => picture(found.pictured.iter().map(|version| &**version).collect(), true),
        });
        if found.is_cut {
            let _ = writeln!(
                text,
                "<p>The first {count} are shown; a time after the path, as in \
                 <code>/browse/path/1730000000000</code>, shows those that are valid then.</p>"
            );
        }
        text.push_str(
            "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"versions\"><table><thead><tr><th>Valid from</th><th>until</th>\
             <th>Created</th><th class=\"number\">Bytes</th><th>Metadata</th><th>Object</th></tr>\
             </thead><tbody>\n",
        );
        text
    }

    fn version(&self, text: &mut String, _number: usize, version: &ObjectInfo, details: &Details) {
        let size = version.size_bytes.map(|size| size.to_string()).unwrap_or_default();
        let mut metadata = String::new();
        for (key, value) in &version.metadata {
            let _ = write!(metadata, "<dt>{}</dt><dd>{}</dd>", escaped(key), escaped(value));
        }
        if !metadata.is_empty() {
            metadata = format!("<dl>{metadata}</dl>");
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
        let _ = writeln!(
            text,
            "<tr><td data-name=\"Valid from\">{}</td><td data-name=\"until\">{}</td>\
             <td data-name=\"Created\">{}</td><td data-name=\"Bytes\" class=\"number\">{size}</td>\
             <td data-name=\"Metadata\">{metadata}</td><td data-name=\"Object\">{paths}\
             <a href=\"{}\" download>{}</a>\
             <details><summary>more</summary><dl>{more}</dl></details></td></tr>",
            time(version.validity.from()),
            time(version.validity.until()),
            time(version.created),
            escaped(&version::address(version)),
            escaped(&version::file_name(version, details)),
        );
    }

    fn end(&self, found: &FolderListing) -> String {
        let mut text = String::new();
        if !found.versions.is_empty() {
            text.push_str("</tbody></table></div>\n");
        }
        let (command, path) = (self.command, linked(&self.path));
        let _ = write!(
            text,
            "</section>\n</main>\n<footer><a href=\"/{command}/{path}?Accept=application/json\">JSON</a> \
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
    match iso(millis) {
        Some(iso) => {
            let shown = iso.replace('T', " ");
            format!("<time datetime=\"{iso}\">{shown}</time><br><small>{millis}</small>")
        }
        None => format!("<small>{millis}</small>"),
    }
}

/// A time in ISO 8601, for the years 0 to 9999.
fn iso(millis: i64) -> Option<String> {
    let (days, rest) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    // Years begin in March, so that the leap day is the last one. The era is one of 400 years.
    let shifted = days.checked_add(719_468)?;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1_000 % 60);
    let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let text = match rest % 1_000 {
        0 => format!("{text}Z"),
        millis => format!("{text}.{millis:03}Z"),
    };
    (0..=9_999).contains(&year).then_some(text)
}

/// The timeline: one bar per version, the last created at the top. `is_cut`: there are versions
/// that were created earlier.
fn picture(mut all: Vec<&ObjectInfo>, is_cut: bool) -> String {
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
    if is_cut {
        text.push_str("<p>Versions that were created earlier are not drawn.</p>\n");
    } else if left_out > 0 {
        let _ =
            writeln!(text, "<p>{left_out} versions that were created earlier are not drawn.</p>");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_iso_8601() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_709_251_199_000, "2024-02-29T23:59:59Z"),
            (1_731_031_200_123, "2024-11-08T02:00:00.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
            (253_402_300_799_000, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(iso(millis).as_deref(), Some(text));
        }
        assert_eq!((iso(i64::MAX), iso(i64::MIN), iso(253_402_300_800_000)), (None, None, None));
    }
}
