//! Escapes text from outside for a terminal and for one line of a log.
//!
//! Names of consumers, columns and metadata come from clients and sources. Printed unescaped, they
//! can move the cursor, retitle a terminal, hide the text after them, or forge a line of a log.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Whether a character is shown by its code: control characters (line ends and tabs included), line
/// and paragraph separators, and the characters that change the direction of text.
pub fn must_escape(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// The text with each such character in the notation of Rust strings: `\n`, `\u{1b}`.
///
/// ```
/// # use iovcache::escape::escape;
/// assert_eq!(escape("tracker"), "tracker");
/// assert_eq!(escape("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
/// ```
pub fn escape(text: &str) -> Cow<'_, str> {
    if text.chars().any(must_escape) {
        Cow::Owned(Escaped(text).to_string())
    } else {
        Cow::Borrowed(text)
    }
}

/// Displays a value with its own `Display`, escaped.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<T>(pub T);

impl<T: fmt::Display> fmt::Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(EscapingWriter(f), "{}", self.0)
    }
}

/// A writer that escapes the text written through it.
#[derive(Debug)]
pub struct EscapingWriter<W>(pub W);

impl<W: Write> Write for EscapingWriter<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut plain_from = 0;
        for (at, character) in text.char_indices().filter(|&(_, character)| must_escape(character))
        {
            self.0.write_str(&text[plain_from..at])?;
            write!(self.0, "{}", character.escape_default())?;
            plain_from = at + character.len_utf8();
        }
        self.0.write_str(&text[plain_from..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_changes_of_direction_are_shown_by_their_codes() {
        for (text, shown) in [
            ("", ""),
            ("plain ümläut 😀 \\n \"quoted\"", "plain ümläut 😀 \\n \"quoted\""),
            ("a\r\n\tb", "a\\r\\n\\tb"),
            ("\u{1b}]0;x\u{7}", "\\u{1b}]0;x\\u{7}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{202e}gnp.exe\u{2028}", "\\u{202e}gnp.exe\\u{2028}"),
        ] {
            assert_eq!(escape(text), shown);
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }
}
