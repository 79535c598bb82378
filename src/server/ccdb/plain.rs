//! A listing as text and as XML, as real servers write them.

use std::fmt::Write as _;

use hyper::body::Bytes;

use super::listing::FolderListing;
use super::listing_format::ListingFormat;
use super::version;
use crate::object::ObjectInfo;
use crate::source::Details;

/// Text, in Latin-1.
pub(super) struct TextPage;

impl ListingFormat for TextPage {
    fn content_type(&self) -> &'static str {
        "text/plain;charset=ISO-8859-1"
    }

    fn start(&self, _found: &FolderListing) -> String {
        String::new()
    }

    fn version(&self, text: &mut String, _number: usize, version: &ObjectInfo, details: &Details) {
        let (from, until) = (version.validity.from(), version.validity.until());
        let size = version.size_bytes.map_or("unknown".to_owned(), |size| size.to_string());
        let md5 = version.md5.map_or("unknown".to_owned(), |md5| md5.to_string());
        let initial = details.initial_until.unwrap_or(until);
        let _ = write!(
            text,
            "ID: {}\nPath: {}\nValidity: {from} - {until}\nInitial validity limit: {initial}\n\
             Created: {created}\nLast modified: {}\n\
             Original file: {}, size: {size}, md5: {md5}, content type: {}\n",
            version.id,
            version::address(version),
            details.last_modified.unwrap_or(version.created),
            version::file_name(version, details),
            version::content_type(details),
            created = version.created,
        );
        if let Some(from) = &details.uploaded_from {
            let _ = writeln!(text, "Uploaded from: {from}");
        }
        text.push_str("Metadata:\n");
        for (key, value) in &version.metadata {
            let _ = writeln!(text, "  {key} = {value}");
        }
        text.push_str("\n\n");
    }

    fn end(&self, found: &FolderListing) -> String {
        let mut text = String::new();
        if let Some(folders) = &found.subfolders {
            text.push_str("\nSubfolders:\n");
            for folder in folders {
                let _ = writeln!(text, "  {folder}");
            }
            text.push('\n');
        }
        text
    }

    fn encode(&self, text: String) -> Bytes {
        text.chars().map(|c| u8::try_from(c).unwrap_or(b'?')).collect::<Vec<_>>().into()
    }
}

/// XML, with all non-ASCII characters as references.
pub(super) struct XmlPage;

const DOCUMENT_TYPE: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>
<!DOCTYPE document [
<!ELEMENT document (objects?, folders?)>
<!ELEMENT objects (object*)>
<!ELEMENT object (metadata*, replica*)>
<!ATTLIST object
  id ID #REQUIRED
  validFrom CDATA #REQUIRED
  validUntil CDATA #REQUIRED
  initialValidity CDATA #IMPLIED
  created CDATA #IMPLIED
  lastModified CDATA #IMPLIED
  md5 CDATA #IMPLIED
  fileName CDATA #IMPLIED
  contentType CDATA #IMPLIED
  size CDATA #REQUIRED
  path CDATA #REQUIRED
>
<!ELEMENT metadata EMPTY>
<!ATTLIST metadata
  key CDATA #REQUIRED
  value CDATA #REQUIRED
>
<!ELEMENT replica EMPTY>
<!ATTLIST replica
  id CDATA #REQUIRED
  addr CDATA #REQUIRED
>
<!ELEMENT folders (path*)>
<!ELEMENT path EMPTY>
<!ATTLIST path name CDATA #REQUIRED>
]>
";

impl ListingFormat for XmlPage {
    fn content_type(&self) -> &'static str {
        "text/xml;charset=UTF-8"
    }

    fn start(&self, _found: &FolderListing) -> String {
        format!("{DOCUMENT_TYPE}<document>\n<objects>\n")
    }

    fn version(&self, text: &mut String, _number: usize, version: &ObjectInfo, details: &Details) {
        let until = version.validity.until();
        let md5 = version.md5.map(|md5| md5.to_string()).unwrap_or_default();
        let size = version.size_bytes.map(|size| size.to_string()).unwrap_or_default();
        let _ = writeln!(
            text,
            "<object id='uuid{}' validFrom='{}' validUntil='{until}' initialValidity='{}' \
             created='{}' lastModified='{}' md5='{md5}' fileName='{}' contentType='{}' \
             size='{size}'  path='{}'>",
            version.id,
            version.validity.from(),
            details.initial_until.unwrap_or(until),
            version.created,
            details.last_modified.unwrap_or(version.created),
            escaped(&version::file_name(version, details)),
            escaped(version::content_type(details)),
            escaped(version.path.as_str()),
        );
        for (key, value) in &version.metadata {
            let (key, value) = (escaped(key), escaped(value));
            let _ = writeln!(text, "  <metadata key='{key}' value='{value}'/>");
        }
        let address = escaped(&version::address(version));
        let _ = writeln!(text, "  <replica id='0' addr='{address}'/>\n</object>");
    }

    fn end(&self, found: &FolderListing) -> String {
        let mut text = "</objects>\n".to_owned();
        if let Some(folders) = &found.subfolders {
            text.push_str("<folders>\n");
            for folder in folders {
                let _ = writeln!(text, "<path name='{}'/>", escaped(folder));
            }
            text.push_str("</folders>\n");
        }
        text.push_str("</document>\n");
        text
    }
}

/// Text within an attribute or an element of XML or HTML.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // XML has no references for these characters.
            '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                escaped.push('?');
            }
            ' '..='~' => escaped.push(c),
            c => {
                let _ = write!(escaped, "&#{};", u32::from(c));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_a_text_stays_text() {
        assert_eq!(escaped("<a b='c\"'>&é\0"), "&lt;a b=&#39;c&quot;&#39;&gt;&amp;&#233;?");
    }
}
