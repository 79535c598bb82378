//! Parser of addresses, in the grammar of CCDB's RequestParser.
//!
//! `/<1..10 path elements>/<time>[/<until>][/<UUID>][/<key>=<value>]*`: empty elements do not count,
//! the first number is the time, `key=value` may stand anywhere, and each element is decoded as in
//! a form (`+` is a blank).

use std::collections::BTreeMap;

use crate::interval::Timestamp;
use crate::object::ObjectId;

/// A parsed address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ObjectAddress {
    /// The path elements with slashes between them.
    pub(super) path: String,
    pub(super) at: Option<Timestamp>,
    /// The second number.
    pub(super) until: Option<Timestamp>,
    pub(super) id: Option<ObjectId>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// An address that cannot be parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AddressFault {
    /// An invalid escape, or invalid UTF-8: 400 at real servers too.
    Encoding,
    /// Against the grammar.
    Grammar,
}

const MAX_ELEMENTS: usize = 10;

impl ObjectAddress {
    /// # Errors
    /// [`AddressFault`].
    pub(super) fn parse(path: &str) -> Result<Self, AddressFault> {
        let mut wanted = Self::default();
        let (mut elements, mut times) = (0, 0);
        for element in path.split('/').filter(|element| !element.is_empty()) {
            let decoded = |text: &str| form_decoded(text).ok_or(AddressFault::Encoding);
            // An encoded `=` is part of a name or of a value.
            if let Some((key, value)) = element.split_once('=') {
                wanted.metadata.insert(decoded(key)?, decoded(value)?);
                continue;
            }
            let element = decoded(element)?;
            if let Ok(time) = element.parse() {
                times += 1;
                let time = Timestamp::from_millis(time);
                match wanted.at {
                    None => wanted.at = Some(time),
                    Some(_) => wanted.until = wanted.until.or(Some(time)),
                }
            } else if let Some(id) = ObjectId::parse(&element) {
                wanted.id = Some(id);
            } else if times == 0 {
                elements += 1;
                if !wanted.path.is_empty() {
                    wanted.path.push('/');
                }
                wanted.path.push_str(&element);
            } else {
                return Err(AddressFault::Grammar);
            }
        }
        if times > 2 || elements > MAX_ELEMENTS {
            return Err(AddressFault::Grammar);
        }
        Ok(wanted)
    }
}

/// Decodes text as in a form: `+` is a blank, `%41` is `A`. `None` if it is invalid or has a NUL.
pub(super) fn form_decoded(element: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(element.len());
    let mut rest = element.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex = after.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
                rest = &after[2..];
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4d201140-e716-11f1-8b62-7f0000010203";

    fn parsed(path: &str) -> (String, Option<i64>, bool, usize) {
        let wanted = ObjectAddress::parse(path).unwrap();
        let at = wanted.at.map(Timestamp::as_millis);
        (wanted.path, at, wanted.id.is_some(), wanted.metadata.len())
    }

    #[test]
    fn addresses_are_taken_apart_as_real_servers_do() {
        let plain = ("A/B".to_owned(), Some(1500), false, 0);
        for same in ["/A/B/1500", "//A//B//1500/", "/A/B/1500/1700", "/%41/B/1500"] {
            assert_eq!(parsed(same), plain, "{same}");
        }
        assert_eq!(parsed(&format!("/A/-5/{ID}")), ("A".into(), Some(-5), true, 0));
        assert_eq!(parsed("/A/k=v/7/b=c%2Fd+e"), ("A".into(), Some(7), false, 2));
        let wanted = ObjectAddress::parse("/A/7/b=c%2Fd+e=").unwrap();
        assert_eq!(wanted.metadata["b"], "c/d e=");
        let wanted = ObjectAddress::parse("/A/7/k%3Dx=y%3D/z%3D=1").unwrap();
        assert_eq!((&*wanted.metadata["k=x"], &*wanted.metadata["z="]), ("y=", "1"));
        assert_eq!(ObjectAddress::parse("/A/7/k%3Dx"), Err(AddressFault::Grammar));
        // A number beyond the range of a long is not a time.
        assert_eq!(parsed("/A/99999999999999999999").1, None);
    }

    #[test]
    fn a_path_that_cannot_be_parsed_names_its_fault() {
        for path in ["/A/1/2/3", "/A/1/x", "/a/b/c/d/e/f/g/h/i/j/k/1"] {
            assert_eq!(ObjectAddress::parse(path), Err(AddressFault::Grammar), "{path}");
        }
        for path in ["/A/%4", "/A/%zz/1", "/A/%ff/1", "/A/%00/1", "/A/%+1/1"] {
            assert_eq!(ObjectAddress::parse(path), Err(AddressFault::Encoding), "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_path_is_parsed_or_refused(path in "[/%+=0-9a-fA-F\\.x-]{0,120}|.{0,60}") {
            if let Ok(wanted) = ObjectAddress::parse(&path) {
                proptest::prop_assert!(!wanted.path.contains('\0'));
            }
        }
    }
}
