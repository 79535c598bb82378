//! Names of the index's files.

/// The hidden folder of the index. No object path is beneath it, because none contains `~`.
pub(crate) const FOLDER: &str = ".iovcache~";
/// Suffix of the names of index files.
pub(super) const SUFFIX: &str = ".arrow";
/// Version of the layout.
pub(super) const VERSION: &str = "2";
/// The layout before: without the facts about uploads. Its files are read, and not written.
pub(super) const FORMER_VERSION: &str = "1";

/// Name of an index file: sequence number, unique part, and CRC-32C of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileName {
    pub(super) sequence: u64,
    pub(super) unique: String,
    pub(super) crc32c: u32,
}

impl FileName {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(SUFFIX)?.split('-');
        let (sequence, unique, crc) = (parts.next()?, parts.next()?, parts.next()?);
        let digits = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit())
        };
        if parts.next().is_some() || !digits(sequence, 16) || !digits(unique, 32) || !digits(crc, 8)
        {
            return None;
        }
        Some(Self {
            sequence: u64::from_str_radix(sequence, 16).ok()?,
            unique: unique.to_owned(),
            crc32c: u32::from_str_radix(crc, 16).ok()?,
        })
    }
}

impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{}-{:08x}{SUFFIX}", self.sequence, self.unique, self.crc32c)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_index_files_are_read_as_they_are_written() {
        let name = FileName { sequence: 77, unique: "0".repeat(32), crc32c: 0xdead_beef };
        assert_eq!(FileName::parse(&name.to_string()), Some(name));
        for wrong in ["", "x.arrow", "1-2-3.arrow", ".0-part", "lock"] {
            assert_eq!(FileName::parse(wrong), None, "{wrong}");
        }
    }
}
