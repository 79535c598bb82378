//! Java's `.properties` files (`java.util.Properties`): text in ISO-8859-1 with escapes.

use std::fmt::Write as _;

/// Keys and values in the order of a file. If a key occurs twice, the last value counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(Vec<(String, String)>);

/// Why a file is not a properties file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PropertiesError {
    /// `\u` without four hex digits.
    #[error("line {line}: \\u needs four hex digits")]
    Escape {
        /// Line number, from 1.
        line: usize,
    },
    /// An escape for half of a surrogate pair.
    #[error("line {line}: half of a surrogate pair")]
    Surrogate {
        /// Line number, from 1.
        line: usize,
    },
}

impl Properties {
    /// Properties without any key.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }

    /// Appends a key. An earlier value of the key no longer counts.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.push((key.into(), value.into()));
    }

    /// All keys and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Parses the bytes of a file. A byte order mark, as some editors write it, is skipped.
    ///
    /// # Errors
    /// [`PropertiesError`] for a `\u` escape that is malformed or half of a surrogate pair.
    pub fn parse(bytes: &[u8]) -> Result<Self, PropertiesError> {
        let mut properties = Self::new();
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
        let mut lines = natural_lines(bytes).into_iter().enumerate();
        while let Some((number, line)) = lines.next() {
            let mut text = trimmed(line).to_vec();
            if text.is_empty() || text[0] == b'#' || text[0] == b'!' {
                continue;
            }
            // A line that ends with an odd number of backslashes continues on the next line.
            while text.iter().rev().take_while(|&&byte| byte == b'\\').count() % 2 == 1 {
                text.pop();
                let Some((_, next)) = lines.next() else { break };
                text.extend_from_slice(trimmed(next));
            }
            let (key, value) = divided(&text);
            let line = number + 1;
            properties.set(unescaped(key, line)?, unescaped(value, line)?);
        }
        Ok(properties)
    }

    /// The bytes of a file. Characters outside of printable ASCII are escaped.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = String::new();
        for (key, value) in self.iter() {
            escape(&mut text, key, true);
            text.push('=');
            escape(&mut text, value, false);
            text.push('\n');
        }
        text.into_bytes()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Properties {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        Self(entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

fn natural_lines(bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.iter().position(|&byte| byte == b'\n' || byte == b'\r');
        let end = end.unwrap_or(rest.len());
        lines.push(&rest[..end]);
        let newline = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = rest.get(end + newline..).unwrap_or_default();
    }
    lines
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0C)
}

fn trimmed(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|&byte| !is_blank(byte)).unwrap_or(line.len());
    &line[start..]
}

/// Key and value, separated by the first `=`, `:` or blank that is not escaped.
fn divided(line: &[u8]) -> (&[u8], &[u8]) {
    let mut at = 0;
    while at < line.len() {
        match line[at] {
            b'\\' => at += 1,
            b'=' | b':' => break,
            byte if is_blank(byte) => break,
            _ => {}
        }
        at += 1;
    }
    let at = at.min(line.len());
    let mut value = trimmed(&line[at..]);
    if let [b'=' | b':', rest @ ..] = value {
        value = trimmed(rest);
    }
    (&line[..at], value)
}

fn unescaped(bytes: &[u8], line: usize) -> Result<String, PropertiesError> {
    let mut units: Vec<u16> = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            units.push(u16::from(byte));
            continue;
        }
        match rest.next() {
            Some(b't') => units.push(0x09),
            Some(b'n') => units.push(0x0A),
            Some(b'r') => units.push(0x0D),
            Some(b'f') => units.push(0x0C),
            Some(b'u') => {
                let mut unit = 0;
                for _ in 0..4 {
                    let digit = rest.next().and_then(|byte| char::from(byte).to_digit(16));
                    unit = unit * 16 + digit.ok_or(PropertiesError::Escape { line })?;
                }
                units.push(unit as u16);
            }
            Some(other) => units.push(u16::from(other)),
            None => {}
        }
    }
    String::from_utf16(&units).map_err(|_| PropertiesError::Surrogate { line })
}

fn escape(text: &mut String, part: &str, key: bool) {
    for (place, character) in part.chars().enumerate() {
        match character {
            '\\' => text.push_str("\\\\"),
            '\t' => text.push_str("\\t"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\u{0C}' => text.push_str("\\f"),
            ' ' if key || place == 0 => text.push_str("\\ "),
            '=' | ':' | '#' | '!' => {
                text.push('\\');
                text.push(character);
            }
            ' '..='~' => text.push(character),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "\\u{unit:04X}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_key() {
        let properties = Properties::parse(b"\xEF\xBB\xBFValidUntil=2000\n").unwrap();
        assert_eq!(properties.get("ValidUntil"), Some("2000"));
    }

    #[test]
    fn properties_written_by_java_are_read() {
        let file = b"#Tue Nov 24 10:17:26 UTC 2026\n! another\n\nValidUntil=2000\r\n\
                     OriginalFileName = a b\\=c.txt\nkey\\ with\\:blank : v\\u00e4l\n\
                     long=one, \\\n    two\nempty\nslash=\\\\\nlatin=\xe4\nsurrogate=\\uD83D\\uDE00\n";
        let properties = Properties::parse(file).unwrap();
        let get = |key| properties.get(key).unwrap();
        assert_eq!(get("ValidUntil"), "2000");
        assert_eq!(get("OriginalFileName"), "a b=c.txt");
        assert_eq!(get("key with:blank"), "v\u{e4}l");
        assert_eq!(get("long"), "one, two");
        assert_eq!(get("empty"), "");
        assert_eq!(get("slash"), "\\");
        assert_eq!(get("latin"), "\u{e4}");
        assert_eq!(get("surrogate"), "\u{1F600}");
    }

    #[test]
    fn broken_escapes_are_named_with_their_line() {
        let error = Properties::parse(b"a=1\nb=\\u12").unwrap_err();
        assert_eq!(error, PropertiesError::Escape { line: 2 });
        let error = Properties::parse(b"b=\\uD83D").unwrap_err();
        assert_eq!(error, PropertiesError::Surrogate { line: 1 });
    }

    proptest! {
        #[test]
        fn written_values_are_read_back(
            entries in proptest::collection::vec((".+", ".*"), 0..10)
        ) {
            let properties: Properties = entries.into_iter().collect();
            prop_assert_eq!(Properties::parse(&properties.to_bytes()), Ok(properties));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Properties::parse(&bytes);
        }
    }
}
