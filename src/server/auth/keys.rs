//! The keys of a service: tokens and certificates, with the role of each.
//!
//! Keys are a TOML text, from the file of `--tokens` or the environment. It holds hashes of tokens,
//! so reading it gives no access:
//!
//! ```toml
//! [[token]]
//! name = "shift"
//! sha256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
//! role = "administer"                  # read, register or administer
//! expires = 2027-01-01T00:00:00Z       # or milliseconds; left out: never
//!
//! [[certificate]]
//! name = "tracker.example.org"         # a DNS name or URI of the client's certificate; "*": any
//! role = "read"
//! ```

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use super::error::Denied;
use super::role::Role;
use crate::error::coded;
use crate::interval::Timestamp;
use crate::secret::Secret;

/// A token's SHA-256.
type TokenHash = [u8; 32];

/// Longest token. Longer ones are refused without hashing.
const MAX_TOKEN_BYTES: usize = 4_096;

/// The tokens and certificates that give access.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    tokens: Vec<Token>,
    certificates: Vec<Certificate>,
}

/// A token that gives a client access; only its hash is kept.
#[derive(Clone)]
struct Token {
    name: Arc<str>,
    hash: TokenHash,
    role: Role,
    expires: Option<Timestamp>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The role of clients whose certificate has a name.
#[derive(Debug, Clone)]
struct Certificate {
    name: Arc<str>,
    role: Role,
}

/// Why a text holds no keys. It never quotes the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("these are no keys: {reason}")]
pub struct KeysError {
    /// The fault, with its line.
    reason: String,
}

coded! { KeysError => InvalidArgument 6030 }

/// The file of keys in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<TokenEntry>,
    #[serde(default)]
    certificate: Vec<CertificateEntry>,
}

/// `[[token]]`: name, SHA-256 as 64 hexadecimal digits, role, and a time of expiry in ISO 8601.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    name: String,
    sha256: String,
    role: Role,
    expires: Option<toml::Value>,
}

/// `[[certificate]]`: common name of the certificate, and role.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateEntry {
    name: String,
    role: Role,
}

impl Keys {
    /// Parses keys in TOML.
    ///
    /// # Errors
    /// [`KeysError`] names the line, or the token.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let wrong = |reason: String| KeysError { reason };
        let file: File = toml::from_str(text).map_err(|error| {
            // The error's own text would quote the line, which may hold a secret.
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            let what = error.message().split(['`', '"', '\'']).next().unwrap_or_default().trim();
            let fields = "a token has name, sha256, role, expires; a certificate name, role";
            wrong(format!("line {line}: {what} ({fields})"))
        })?;
        let mut tokens: Vec<Token> = Vec::with_capacity(file.token.len());
        for TokenEntry { name, sha256, role, expires } in file.token {
            let named = |reason: &str| wrong(format!("token {name:?}: {reason}"));
            if name.is_empty() || tokens.iter().any(|token| *token.name == *name) {
                return Err(named("each token needs a name of its own"));
            }
            let hash = hash_of_hex(&sha256)
                .ok_or_else(|| named("sha256 is the token's SHA-256: 64 hexadecimal digits"))?;
            let expires = expires.map(|at| moment(&at)).transpose().map_err(named)?;
            tokens.push(Token { name: name.into(), hash, role, expires });
        }
        let certificates = file.certificate.into_iter();
        let certificates = certificates
            .map(|CertificateEntry { name, role }| Certificate { name: name.into(), role })
            .collect();
        Ok(Self { tokens, certificates })
    }

    /// The entry of a new token, in the format of the file.
    pub fn entry(name: &str, token: &Secret, role: Role, expires: Option<Timestamp>) -> String {
        let hash = hash(token);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = toml::Value::from(name);
        let expires = expires.map_or(String::new(), |at| format!("expires = {at}\n"));
        format!("[[token]]\nname = {name}\nsha256 = \"{hex}\"\nrole = \"{role}\"\n{expires}")
    }

    /// Whether there are tokens.
    pub(crate) fn has_tokens(&self) -> bool {
        !self.tokens.is_empty()
    }

    /// Whether there are no keys at all.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.certificates.is_empty()
    }

    /// The name and role of a token at `now`. All tokens are compared, each in constant time: the
    /// duration reveals neither how much of the token was right nor which entry it matches.
    ///
    /// # Errors
    /// [`Denied::UnknownToken`], [`Denied::Expired`].
    pub(super) fn bearer(
        &self,
        token: &Secret,
        now: Timestamp,
    ) -> Result<(Arc<str>, Role), Denied> {
        if token.reveal().len() > MAX_TOKEN_BYTES {
            return Err(Denied::UnknownToken);
        }
        let hash = hash(token);
        let (mut found, mut place) = (Choice::from(0), 0_u64);
        for (at, known) in self.tokens.iter().enumerate() {
            let same = known.hash.ct_eq(&hash);
            place = u64::conditional_select(&place, &(at as u64), same);
            found |= same;
        }
        let known = self.tokens.get(place as usize).filter(|_| bool::from(found));
        let known = known.ok_or(Denied::UnknownToken)?;
        match known.expires {
            Some(expired) if expired <= now => {
                Err(Denied::Expired { name: Arc::clone(&known.name), expired })
            }
            _ => Ok((Arc::clone(&known.name), known.role)),
        }
    }

    /// The role of a certificate with these names: the highest if several match.
    pub(super) fn certified(&self, names: &[String]) -> Option<(Arc<str>, Role)> {
        let fits = |known: &&Certificate| {
            *known.name == *"*" || names.iter().any(|name| *known.name == **name)
        };
        let best = self.certificates.iter().filter(fits).max_by_key(|known| known.role)?;
        let name = names.first().map_or("a certificate", String::as_str);
        Some((name.into(), best.role))
    }
}

fn hash(token: &Secret) -> TokenHash {
    Sha256::digest(token.reveal()).into()
}

fn hash_of_hex(text: &str) -> Option<TokenHash> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    let mut hash = TokenHash::default();
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(hash)
}

/// The expiry time of a token: a date, with or without a time, or milliseconds.
fn moment(at: &toml::Value) -> Result<Timestamp, &'static str> {
    const EXPECTED: &str = "expires is e.g. 2027-01-01, or 2027-01-01T12:00:00Z, or milliseconds";
    let at = match at {
        toml::Value::Integer(millis) => return Ok(Timestamp::from_millis(*millis)),
        toml::Value::Datetime(at) => at,
        _ => return Err(EXPECTED),
    };
    let date = at.date.ok_or(EXPECTED)?;
    // Days since 1970-01-01 in the Gregorian calendar; the year begins in March, its leap day ends it.
    let (year, month) = (i64::from(date.year), i64::from(date.month));
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(date.day) - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let mut seconds = days * 86_400;
    if let Some(time) = at.time {
        seconds += i64::from(time.hour) * 3_600 + i64::from(time.minute) * 60;
        seconds += i64::from(time.second.unwrap_or(0));
        seconds -= match at.offset {
            Some(toml::value::Offset::Z) => 0,
            Some(toml::value::Offset::Custom { minutes }) => i64::from(minutes) * 60,
            None => return Err("expires has a time without an offset, e.g. Z"),
        };
    }
    Ok(Timestamp::from_millis(seconds * 1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn a_token_lets_in_until_it_expires_and_no_other_does() {
        let (first, second) = (Secret::from("first"), Secret::from("second"));
        let text = Keys::entry("a \"b\"", &first, Role::Read, None)
            + &Keys::entry("c", &second, Role::Administer, None)
            + "expires = 1970-01-02T00:00:00+01:00\n";
        let keys = Keys::parse(&text).unwrap();
        let (name, role) = keys.bearer(&first, at(i64::MAX)).unwrap();
        assert_eq!((&*name, role), ("a \"b\"", Role::Read));
        let until = 23 * 3_600_000;
        assert_eq!(keys.bearer(&second, at(until - 1)).unwrap().1, Role::Administer);
        let expired = keys.bearer(&second, at(until)).unwrap_err();
        assert_eq!(expired, Denied::Expired { name: "c".into(), expired: at(until) });
        for wrong in ["", "firs", "first ", "FIRST", &"x".repeat(5_000)] {
            assert_eq!(keys.bearer(&wrong.into(), at(0)), Err(Denied::UnknownToken), "{wrong}");
        }
        assert_eq!(Keys::default().bearer(&first, at(0)), Err(Denied::UnknownToken));
    }

    #[test]
    fn faults_are_named_without_showing_the_secret() {
        let hash = "ab".repeat(32);
        let with = |rest: &str| format!("[[token]]\nname = \"a\"\nsha256 = \"{hash}\"\n{rest}");
        let wrong = [
            ("[[token]]\nname = \"a\"\nsecret = \"hidden\"\nrole = \"read\"", "line 3"),
            ("[[token]]\nname = \"a\"\nsha256 = \"hidden\"\nrole = \"read\"", "64 hexadecimal"),
            ("[[token]]\nname = \"a\"\nsha256 = hidden\nrole = \"read\"", "line 3"),
            (&with("role = \"hidden\""), "line 4"),
            (&with(""), "role"),
            (&with("role = \"read\"\nexpires = 2027-01-01T00:00:00"), "offset"),
            (&(with("role = \"read\"\n") + &with("role = \"read\"")), "name of its own"),
        ];
        for (text, word) in wrong {
            let error = Keys::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
            assert!(!error.contains("hidden") && !error.contains(&hash), "{error}");
        }
        let keys = Keys::parse(&with("role = \"read\"")).unwrap();
        assert!(!format!("{keys:?}").contains("ab"), "{keys:?}");
    }

    #[test]
    fn dates_are_what_the_calendar_says() {
        let of = |text: &str| {
            moment(&toml::Value::Datetime(text.parse().unwrap())).map(Timestamp::as_millis)
        };
        assert_eq!(moment(&toml::Value::Integer(-5)), Ok(at(-5)));
        assert_eq!(of("1970-01-01"), Ok(0));
        assert_eq!(of("2000-02-29T12:00:00Z"), Ok(951_825_600_000));
        assert_eq!(of("2027-01-01"), Ok(1_798_761_600_000));
        assert_eq!(of("1969-12-31T23:59:59Z"), Ok(-1_000));
        assert!(of("12:00:00").is_err());
    }

    #[test]
    fn a_certificate_has_the_greatest_role_of_its_names() {
        let keys = Keys::parse(
            "[[certificate]]\nname = \"a.org\"\nrole = \"register\"\n\
             [[certificate]]\nname = \"*\"\nrole = \"read\"\n",
        )
        .unwrap();
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let role = |of: &[&str]| keys.certified(&names(of)).map(|(_, role)| role);
        assert_eq!(role(&["b.org"]), Some(Role::Read));
        assert_eq!(role(&["b.org", "a.org"]), Some(Role::Register));
        let none = Keys::default();
        assert!(none.certified(&names(&["a.org"])).is_none());
    }
}
