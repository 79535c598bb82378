//! A parsed configuration file: the value of each key, and its line.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigFault};
use super::service::Config;

/// Maximum faults reported for one file.
const MAX_FAULTS: usize = 100;

/// Smallest Jaro-Winkler similarity (0 to 1) of the key that a message suggests.
const MIN_SIMILARITY: f64 = 0.85;

/// A parsed file with the position of each key.
#[derive(Debug, Clone)]
pub struct Document {
    file: Option<PathBuf>,
    places: Vec<KeyPosition>,
    pub(super) values: toml::Table,
}

/// The position of a key.
#[derive(Debug, Clone)]
struct KeyPosition {
    key: String,
    at: Range<usize>,
    value: Range<usize>,
    line: usize,
}

impl Document {
    /// Parses TOML. `file` is its name in errors.
    ///
    /// # Errors
    /// [`ConfigError`] with line and key of every fault: invalid TOML, unknown keys, and values of
    /// the wrong type.
    pub fn parse(text: &str, file: Option<&Path>) -> Result<Self, ConfigError> {
        let (document, faults) = Self::parse_all(text, file);
        if faults.is_empty() { Ok(document) } else { Err(document.error(faults)) }
    }

    /// Like [`parse`](Self::parse), but returns the valid part of a configuration with its faults.
    pub fn parse_all(text: &str, file: Option<&Path>) -> (Self, Vec<ConfigFault>) {
        let line = |offset: usize| text[..offset].matches('\n').count() + 1;
        let mut document =
            Self { file: file.map(Path::to_owned), places: Vec::new(), values: toml::Table::new() };
        let (mut table, errors) = DeTable::parse_recoverable(text);
        places(table.get_ref(), "", &line, &mut document.places);
        let fault = |document: &Self, error: &toml::de::Error| {
            let offset = error.span().map(|span| span.start.min(text.len()));
            let key = offset.map_or("", |offset| document.key_at(offset)).to_owned();
            let reason = with_suggestion(error.message());
            ConfigFault { key, line: offset.map(line), reason }
        };
        let mut faults: Vec<ConfigFault> =
            errors.iter().map(|error| fault(&document, error)).collect();
        if !faults.is_empty() {
            // Faults of a text with repaired syntax would mislead.
            return (document, faults);
        }
        // Each invalid value is removed, and the rest is read again.
        while let Err(error) = Config::deserialize(toml::Deserializer::from(table.clone())) {
            faults.push(fault(&document, &error));
            let is_gone = error
                .span()
                .is_some_and(|span| take_out(table.get_mut(), span.start.min(text.len())));
            if !is_gone || faults.len() >= MAX_FAULTS {
                return (document, faults);
            }
        }
        if let Ok(values) = toml::Table::deserialize(toml::Deserializer::from(table)) {
            document.values = values;
        }
        (document, faults)
    }

    /// Whether the text has no key at all, or is no TOML.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The line of a key, or of the key that encloses it if the file does not have it.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(place) = self.places.iter().find(|place| place.key == key) {
                return Some(place.line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// All keys in the file, with their lines.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, usize)> {
        self.places.iter().map(|place| (place.key.as_str(), place.line))
    }

    pub(super) fn error(&self, faults: Vec<ConfigFault>) -> ConfigError {
        ConfigError { file: self.file.clone(), faults }
    }

    /// The innermost key whose name or value spans `offset`.
    fn key_at(&self, offset: usize) -> &str {
        let around = self.places.iter().filter(|place| {
            place.at.contains(&offset) || place.value.contains(&offset) || place.at.start == offset
        });
        around.max_by_key(|place| place.key.len()).map_or("", |place| &place.key)
    }
}

/// The message of an unknown key, with the key that was probably meant instead of all that exist.
fn with_suggestion(message: &str) -> String {
    let suggested = || {
        let (unknown, known) =
            message.strip_prefix("unknown field `")?.split_once("`, expected ")?;
        let known = known.split('`').skip(1).step_by(2);
        let (_, meant) = known
            .map(|known| (strsim::jaro_winkler(unknown, known), known))
            .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
            .max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(format!("unknown field `{unknown}`; did you mean `{meant}`?"))
    };
    suggested().unwrap_or_else(|| message.to_owned())
}

/// Removes the innermost entry whose name or value spans `offset`. Returns whether there is one.
/// The span of a table is that of its heading, so its entries are searched first.
fn take_out(table: &mut DeTable<'_>, offset: usize) -> bool {
    let mut is_gone = false;
    let entries = std::mem::take(table).into_iter();
    *table = entries
        .filter_map(|(name, mut value)| {
            if is_gone {
                return Some((name, value));
            }
            if !name.span().contains(&offset) && take_out_of(&mut value, offset) {
                is_gone = true;
                return Some((name, value));
            }
            is_gone = name.span().contains(&offset) || value.span().contains(&offset);
            (!is_gone).then_some((name, value))
        })
        .collect();
    is_gone
}

/// Like [`take_out`], within a value.
fn take_out_of(value: &mut Spanned<DeValue<'_>>, offset: usize) -> bool {
    match value.get_mut() {
        DeValue::Table(inner) => take_out(inner, offset),
        DeValue::Array(items) => {
            let mut is_gone = false;
            *items = std::mem::replace(items, std::iter::empty().collect())
                .into_iter()
                .filter_map(|mut item| {
                    if is_gone {
                        return Some(item);
                    }
                    is_gone = take_out_of(&mut item, offset);
                    if !is_gone && item.span().contains(&offset) {
                        is_gone = true;
                        return None;
                    }
                    Some(item)
                })
                .collect();
            is_gone
        }
        _ => false,
    }
}

fn places(
    table: &DeTable<'_>,
    above: &str,
    line: &impl Fn(usize) -> usize,
    found: &mut Vec<KeyPosition>,
) {
    for (name, value) in table {
        let key = match above {
            "" => name.get_ref().to_string(),
            above => format!("{above}.{}", name.get_ref()),
        };
        let (at, value_at) = (name.span(), value.span());
        found.push(KeyPosition { key: key.clone(), line: line(at.start), at, value: value_at });
        match value.get_ref() {
            DeValue::Table(inner) => places(inner, &key, line, found),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let key = format!("{key}[{index}]");
                    let at = item.span();
                    let place = KeyPosition {
                        key: key.clone(),
                        line: line(at.start),
                        at: at.clone(),
                        value: at,
                    };
                    found.push(place);
                    if let DeValue::Table(inner) = item.get_ref() {
                        places(inner, &key, line, found);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_are_named_at_once() {
        let text = "memroy = 1\nsegment = 7\n[ccdb]\nretries = \"x\"\nbad = 1\n[[source]]\nurl = 3\n\
                    [[source]]\nurl = \"memory:\"\n[[source]]\n[limits]\ncalls = -1\n";
        let error = Document::parse(text, None).unwrap_err();
        let mut lines: Vec<_> = error.faults.iter().map(|fault| fault.line.unwrap()).collect();
        lines.sort_unstable();
        // A removed value may be reported a second time, as missing.
        lines.dedup();
        assert_eq!(lines, [1, 2, 4, 5, 6, 7, 10, 12], "{error}");
        let (document, faults) = Document::parse_all("segment = 7\nmemory = \"1GiB\"\n", None);
        assert_eq!((faults.len(), document.values.len()), (1, 1));
    }

    #[test]
    fn every_fault_is_named_with_its_line_and_key() {
        let wrong = [
            ("\nmemroy = \"1GiB\"", 2, "memroy", "unknown field"),
            ("segment = \"16MiB\"\nmemory = \"4 apples\"", 2, "memory", "unknown unit"),
            ("[ccdb]\nretries = \"many\"\n", 2, "ccdb.retries", "invalid type"),
            ("[ccdb]\n\nretires = 3\n", 3, "ccdb.retires", "did you mean `retries`?"),
            ("sockett = \"/a\"\n", 1, "sockett", "did you mean `socket`?"),
            ("zebra = 1\n", 1, "zebra", "expected one of `listen`"),
            (
                "[[source]]\nurl = \"memory:\"\n\n[[source]]\nurl = 7\n",
                5,
                "source[1].url",
                "string",
            ),
            ("[[source]]\nurl = \"memory:\"\n[[source]]\n", 3, "source[1]", "missing field `url`"),
            ("[tables.tpc]\na = \"12\"", 2, "tables.tpc.a", "all digits"),
            ("listen = \"nowhere\"", 1, "listen", "socket address"),
            ("memory = ", 1, "", "string"),
        ];
        for (text, line, key, reason) in wrong {
            let error = Document::parse(text, Some(Path::new("x.toml"))).unwrap_err();
            let fault = &error.faults[0];
            assert_eq!((fault.line, fault.key.as_str()), (Some(line), key), "{text}: {error}");
            assert!(fault.reason.contains(reason), "{text}: {error}");
            assert!(error.to_string().starts_with(&format!("x.toml:{line}: ")), "{error}");
        }
    }
}
