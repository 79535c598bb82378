//! Names of FairMQ's shared memory in a session.
//!
//! A session has an id, the *shmid*: 8 hexadecimal digits in the names of its files
//! (`/dev/shm/fmq_<shmid>_m_<segment>`). FairMQ derives it from user and session name, or its
//! devices get the same number in decimal digits (`--shmid`).

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// The shmid of a session of this user, derived from its name as in FairMQ: the first 8 hexadecimal
/// digits of SHA-256 of effective user id and name.
pub fn shmid_of_session(session: &str) -> String {
    let user = rustix::process::geteuid().as_raw();
    let hash = Sha256::digest(format!("{user}{session}"));
    hash.iter().take(4).fold(String::new(), |mut shmid, byte| {
        let _ = write!(shmid, "{byte:02x}");
        shmid
    })
}

/// Parses a shmid, as used in the names of files, from the input of a user:
///
/// | text | is |
/// |---|---|
/// | 8 hexadecimal digits | the shmid itself, also where all of them are decimal digits |
/// | `0x` and hexadecimal digits | that number |
/// | any other number of decimal digits | that number, as FairMQ's devices take it (`--shmid`) |
/// | other letters and digits, at most 32 | the shmid itself |
///
/// A leading 0 tells a decimal number of exactly 8 digits from a hexadecimal one.
///
/// # Errors
/// The reason why the text is no shmid.
///
/// ```
/// # use iovcache::shm::shmid_of_text;
/// assert_eq!(shmid_of_text("f8fb93a1").unwrap(), "f8fb93a1");
/// assert_eq!(shmid_of_text("4177236897").unwrap(), "f8fb93a1");
/// assert_eq!(shmid_of_text("0xF8FB93A1").unwrap(), "f8fb93a1");
/// assert_eq!(shmid_of_text("12345678").unwrap(), "12345678");
/// assert_eq!(shmid_of_text("012345678").unwrap(), "00bc614e");
/// ```
pub fn shmid_of_text(text: &str) -> Result<String, String> {
    let none = |why: &str| format!("{text:?} is no shmid: {why}");
    let number = |digits: &str, radix| match u64::from_str_radix(digits, radix) {
        Ok(number) => Ok(format!("{number:08x}")),
        Err(_) => Err(none("the number has more than 64 bits")),
    };
    let all =
        |digits: &str, is: fn(&u8) -> bool| !digits.is_empty() && digits.as_bytes().iter().all(is);
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return match all(digits, u8::is_ascii_hexdigit) {
            true => number(digits, 16),
            false => Err(none("0x is followed by hexadecimal digits")),
        };
    }
    if text.len() == 8 && all(text, u8::is_ascii_hexdigit) {
        return Ok(text.to_ascii_lowercase());
    }
    if all(text, u8::is_ascii_digit) {
        return number(text, 10);
    }
    if text.len() > 32 || !all(text, u8::is_ascii_alphanumeric) {
        return Err(none(
            "8 hexadecimal digits as in the names fmq_<shmid>_…, a decimal number as FairMQ's \
             --shmid takes it, or 1 to 32 letters and digits",
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_means_the_same_in_decimal_and_in_hexadecimal_digits() {
        for number in [0, 1, 0xff, 12_345_678, 0xf8fb_93a1, u64::from(u32::MAX), u64::MAX] {
            let shmid = format!("{number:08x}");
            assert_eq!(shmid_of_text(&shmid).unwrap_or_default().len(), shmid.len());
            for text in [format!("0x{number:x}"), format!("0{number:08}"), format!("{number:010}")]
            {
                assert_eq!(shmid_of_text(&text), Ok(shmid.clone()), "{text}");
            }
        }
    }

    #[test]
    fn eight_digits_are_those_of_the_names_also_where_all_are_decimal() {
        for text in ["00001234", "99999999", "f8fb93a1"] {
            assert_eq!(shmid_of_text(text).as_deref(), Ok(text));
        }
        assert_eq!(shmid_of_text("F8FB93A1").as_deref(), Ok("f8fb93a1"));
    }

    #[test]
    fn a_text_that_can_be_no_name_of_a_session_is_refused() {
        let long = "x".repeat(33);
        for text in ["", "0x", "0xg", "../x", "a b", "99999999999999999999", long.as_str()] {
            let error = shmid_of_text(text).unwrap_err();
            assert!(error.contains("is no shmid"), "{error}");
        }
    }
}
