//! Secrets of clients, which must not appear in logs and errors.

use std::fmt;

use serde::{Deserialize, Deserializer, Serializer};

/// A token. It is never shown: its `Debug` shows only that it exists, and it has no `Display`.
///
/// ```
/// use iovcache::Secret;
/// let secret = Secret::from("s3cr3t");
/// assert_eq!(format!("{secret:?}"), "Secret(…)");
/// assert_eq!(secret.reveal(), "s3cr3t");
/// ```
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for code that sends or checks it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Serializes the text, for messages that carry it.
    ///
    /// # Errors
    /// Errors of the serializer.
    pub(crate) fn reveal_to<S: Serializer>(
        secret: &Option<Self>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match secret {
            Some(secret) => serializer.serialize_str(&secret.0),
            None => serializer.serialize_none(),
        }
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's own error would quote a value of another type.
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Self(text)),
            _ => Err(serde::de::Error::custom("a token is a string")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_token_is_not_quoted() {
        let error = serde_json::from_str::<Secret>("123456789").unwrap_err();
        assert!(!error.to_string().contains("123456789"), "{error}");
        assert_eq!(serde_json::from_str::<Secret>("\"a\"").unwrap().reveal(), "a");
    }
}
