//! A configuration as it stands in a file: what each key is worth, and in which line.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigFault};
use super::service::Config;

/// A file that was read, each key with its place.
#[derive(Debug, Clone)]
pub struct Document {
    file: Option<PathBuf>,
    places: Vec<Place>,
    pub(super) values: toml::Table,
}

/// Where a key stands.
#[derive(Debug, Clone)]
struct Place {
    key: String,
    at: Range<usize>,
    value: Range<usize>,
    line: usize,
}

impl Document {
    /// From TOML; `file` is what errors call it.
    ///
    /// # Errors
    /// [`ConfigError`] with the line and the key: what is no TOML, what is unknown, and what is of
    /// the wrong type.
    pub fn parse(text: &str, file: Option<&Path>) -> Result<Self, ConfigError> {
        let line = |offset: usize| text[..offset].matches('\n').count() + 1;
        let mut document =
            Self { file: file.map(Path::to_owned), places: Vec::new(), values: toml::Table::new() };
        let wrong = |document: &Self, error: toml::de::Error| {
            let offset = error.span().map(|span| span.start.min(text.len()));
            let key = offset.map_or("", |offset| document.key_at(offset)).to_owned();
            let reason = error.message().to_owned();
            document.error(vec![ConfigFault { key, line: offset.map(line), reason }])
        };
        let table = DeTable::parse(text).map_err(|error| wrong(&document, error))?;
        places(table.get_ref(), "", &line, &mut document.places);
        toml::from_str::<Config>(text).map_err(|error| wrong(&document, error))?;
        document.values = toml::from_str(text).map_err(|error| wrong(&document, error))?;
        Ok(document)
    }

    /// The line of a key; of the one around it, where it does not stand itself.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(place) = self.places.iter().find(|place| place.key == key) {
                return Some(place.line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// All keys that stand there, with their lines.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, usize)> {
        self.places.iter().map(|place| (place.key.as_str(), place.line))
    }

    pub(super) fn error(&self, faults: Vec<ConfigFault>) -> ConfigError {
        ConfigError { file: self.file.clone(), faults }
    }

    /// The innermost key that has `offset` in its name or value.
    fn key_at(&self, offset: usize) -> &str {
        let around = self.places.iter().filter(|place| {
            place.at.contains(&offset) || place.value.contains(&offset) || place.at.start == offset
        });
        around.max_by_key(|place| place.key.len()).map_or("", |place| &place.key)
    }
}

fn places(
    table: &DeTable<'_>,
    above: &str,
    line: &impl Fn(usize) -> usize,
    found: &mut Vec<Place>,
) {
    for (name, value) in table {
        let key = match above {
            "" => name.get_ref().to_string(),
            above => format!("{above}.{}", name.get_ref()),
        };
        let (at, value_at) = (name.span(), value.span());
        found.push(Place { key: key.clone(), line: line(at.start), at, value: value_at });
        match value.get_ref() {
            DeValue::Table(inner) => places(inner, &key, line, found),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let key = format!("{key}[{index}]");
                    let at = item.span();
                    let place =
                        Place { key: key.clone(), line: line(at.start), at: at.clone(), value: at };
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
    fn every_fault_is_named_with_its_line_and_key() {
        let wrong = [
            ("\nmemroy = \"1GiB\"", 2, "memroy", "unknown field"),
            ("segment = \"16MiB\"\nmemory = \"4 apples\"", 2, "memory", "unknown unit"),
            ("[ccdb]\nretries = \"many\"\n", 2, "ccdb.retries", "invalid type"),
            ("[ccdb]\n\nretires = 3\n", 3, "ccdb.retires", "unknown field"),
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
