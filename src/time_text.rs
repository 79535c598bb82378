//! Times as texts: milliseconds, ISO 8601 with a zone, and offsets from now.
//!
//! chrono reads one form per format string; here each form of ISO 8601 is read, extended and basic:
//!
//! ```text
//!  2024-11-06  2024-311  2024-W45-3    T  12  12:00  12:00:00  12:00:00.25    Z  +01  +01:00
//!  20241106    2024311   2024W453         12  1200   120000    120000,25         +0100
//! ```

use chrono::{DateTime, NaiveDate, SecondsFormat, Weekday};

use crate::error::coded;
use crate::interval::Timestamp;

/// The forms that [`Timestamp::from_text`] reads, for messages.
pub const TIME_FORMS: &str = "milliseconds since 1970, ISO 8601 with a zone \
    (2024-11-06T12:00:00Z), a date (its midnight UTC), now, now-1h or now+30m";

const MILLIS_PER_DAY: i64 = 86_400_000;
/// Digits of a fraction that are read: enough for a millisecond of an hour, without overflow.
const MAX_FRACTION_DIGITS: usize = 12;

/// A text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimeTextError {
    /// The text has none of the known forms.
    #[error("{text:?} is not a time, expected {TIME_FORMS}{hint}")]
    NotATime {
        /// The given text.
        text: String,
        /// The probable meaning, or empty.
        hint: &'static str,
    },
    /// A date with a time of day has no time zone.
    #[error("{text:?} has no time zone: append Z for UTC, or an offset such as +01:00")]
    NoZone {
        /// The given text.
        text: String,
    },
}

coded! { TimeTextError {
    NotATime { .. } => InvalidArgument 2003,
    NoZone { .. } => InvalidArgument 2004,
} }

impl Timestamp {
    /// Reads a time as a person writes it: milliseconds, ISO 8601 with a zone, a date (its midnight
    /// UTC), `now`, or an offset from `now` (`now-1h`, `now+30m`, `now-1h30m`). Fractions of a
    /// millisecond are rounded down.
    ///
    /// ```
    /// # use iovcache::Timestamp;
    /// let now = Timestamp::from_millis(7_200_000);
    /// assert_eq!(Timestamp::from_text("1970-01-01T01:00+01:00", now)?.as_millis(), 0);
    /// assert_eq!(Timestamp::from_text("now-1h", now)?.as_millis(), 3_600_000);
    /// assert!(Timestamp::from_text("1970-01-01T01:00", now).is_err()); // without a zone
    /// # Ok::<(), iovcache::time_text::TimeTextError>(())
    /// ```
    ///
    /// # Errors
    /// [`TimeTextError`] with the accepted forms.
    pub fn from_text(text: &str, now: Self) -> Result<Self, TimeTextError> {
        let text = text.trim();
        if let Ok(millis) = text.parse() {
            return Ok(Self::from_millis(millis));
        }
        let lower = text.to_ascii_lowercase();
        if let Some(offset) = lower.strip_prefix("now")
            && let Some(millis) = offset_millis(offset)
            && let Some(at) = now.as_millis().checked_add(millis)
        {
            return Ok(Self::from_millis(at));
        }
        match iso_8601(&lower) {
            Some((millis, true)) => Ok(Self::from_millis(millis)),
            Some((_, false)) => Err(TimeTextError::NoZone { text: text.to_owned() }),
            None => Err(TimeTextError::NotATime { text: text.to_owned(), hint: hint(&lower) }),
        }
    }
}

/// The probable meaning of a text that is not a time.
fn hint(text: &str) -> &'static str {
    let number = text.trim_start_matches('@').trim_end_matches(|unit: char| unit.is_alphabetic());
    match number.parse::<f64>() {
        Ok(number) if number.is_finite() => {
            "; a number is a whole number of milliseconds, without a unit"
        }
        _ => "",
    }
}

/// An offset in milliseconds: nothing, or a sign and a [duration](duration_millis).
fn offset_millis(text: &str) -> Option<i64> {
    let text = text.trim_start().replace('\u{2212}', "-");
    if text.is_empty() {
        return Some(0);
    }
    let (sign, duration) = text.split_at_checked(1)?;
    let millis = duration_millis(duration.trim_start())?;
    match sign {
        "+" => Some(millis),
        "-" => Some(-millis),
        _ => None,
    }
}

/// A time (ms since the Unix epoch) in ISO 8601 in UTC, with milliseconds if they are not zero;
/// `-inf` and `inf` for the ends of [`Timestamp`]'s range.
///
/// ```
/// # use iovcache::time_text::show;
/// assert_eq!(show(1_730_894_400_000), "2024-11-06T12:00:00Z");
/// ```
pub fn show(millis: i64) -> String {
    match millis {
        i64::MIN => "-inf".to_owned(),
        i64::MAX => "inf".to_owned(),
        _ => match DateTime::from_timestamp_millis(millis) {
            // A year of five digits is not an intended date.
            Some(at) if (-62_167_219_200_000..253_402_300_800_000).contains(&millis) => {
                at.to_rfc3339_opts(SecondsFormat::AutoSi, true)
            }
            _ => format!("{millis} ms"),
        },
    }
}

/// A duration in milliseconds: pairs of number and unit, e.g. `500ms`, `1.5h`, `1h30m`, `7d`.
///
/// `None` if a unit is missing or unknown.
pub fn duration_millis(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut millis: i64 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: i64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => MILLIS_PER_DAY,
            "w" => 7 * MILLIS_PER_DAY,
            _ => return None,
        };
        let part = match number.parse::<i64>() {
            Ok(number) => number.checked_mul(unit)?,
            Err(_) => {
                let part = number.parse::<f64>().ok()? * unit as f64;
                (part < 9e15).then_some(part as i64)?
            }
        };
        millis = millis.checked_add(part)?;
        rest = after.trim_start();
    }
    (!text.is_empty()).then_some(millis)
}

/// A time in ISO 8601, lower case, in milliseconds, and whether it has a zone. A date alone is its
/// midnight in UTC.
fn iso_8601(text: &str) -> Option<(i64, bool)> {
    let mut reader = Reader { rest: text };
    let is_extended = text.get(4..5)? == "-";
    let date = reader.date()?;
    let midnight = date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis();
    if reader.rest.is_empty() {
        // A number of 7 or 8 digits is milliseconds, which were read before.
        return is_extended.then_some((midnight, true));
    }
    let mut of_day = 0;
    let mut has_time = false;
    if reader.take('t') || reader.blanks() && reader.begins_with_digit() {
        of_day = reader.time_of_day()?;
        has_time = true;
    }
    reader.blanks();
    if reader.rest.is_empty() {
        return has_time.then_some((midnight + of_day, false));
    }
    let offset = reader.zone()?;
    reader.rest.is_empty().then_some((midnight + of_day - offset, true))
}

/// The rest of a text that is read from left to right.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn take(&mut self, expected: char) -> bool {
        match self.rest.strip_prefix(expected) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Skips blanks; whether there were some.
    fn blanks(&mut self) -> bool {
        let before = self.rest.len();
        self.rest = self.rest.trim_start();
        self.rest.len() < before
    }

    fn begins_with_digit(&self) -> bool {
        self.digits_ahead() > 0
    }

    /// Number of digits that follow.
    fn digits_ahead(&self) -> usize {
        self.rest.bytes().take_while(u8::is_ascii_digit).count()
    }

    /// A number of exactly `count` digits.
    fn digits(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.rest.split_at_checked(count)?;
        let number = digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse())?;
        self.rest = rest;
        number.ok()
    }

    /// A calendar, ordinal or week date.
    fn date(&mut self) -> Option<NaiveDate> {
        let year = i32::try_from(self.digits(4)?).ok()?;
        let is_extended = self.take('-');
        if self.take('w') {
            let week = self.digits(2)?;
            if is_extended && !self.take('-') {
                return None;
            }
            let day = u8::try_from(self.digits(1)?.checked_sub(1)?).ok()?;
            return NaiveDate::from_isoywd_opt(year, week, Weekday::try_from(day).ok()?);
        }
        if self.digits_ahead() == 3 {
            return NaiveDate::from_yo_opt(year, self.digits(3)?);
        }
        let month = self.digits(2)?;
        if is_extended && !self.take('-') {
            return None;
        }
        NaiveDate::from_ymd_opt(year, month, self.digits(2)?)
    }

    /// The time of day in milliseconds. 24:00 is the end of the day, and a second may be 60. The last
    /// part may have a fraction.
    fn time_of_day(&mut self) -> Option<i64> {
        let hour = self.digits(2)?;
        let is_extended = self.take(':');
        let mut parts = [0; 2];
        let mut unit_millis = 3_600_000;
        for (index, part) in parts.iter_mut().enumerate() {
            if is_extended && index > 0 && !self.take(':') || !self.begins_with_digit() {
                if is_extended && index == 0 {
                    return None;
                }
                break;
            }
            *part = self.digits(2)?;
            unit_millis /= 60;
        }
        let [minute, second] = parts;
        let has_fraction = self.take('.') || self.take(',');
        let millis = if has_fraction { self.fraction_of(unit_millis)? } else { 0 };
        let is_end = hour == 24 && minute == 0 && second == 0 && millis == 0;
        if (hour > 23 && !is_end) || minute > 59 || second > 60 {
            return None;
        }
        let seconds = i64::from(hour * 3600 + minute * 60 + second);
        Some(seconds * 1_000 + millis)
    }

    /// The digits after a decimal sign, as that part of a unit, in milliseconds, rounded down.
    fn fraction_of(&mut self, unit_millis: i64) -> Option<i64> {
        let (digits, rest) = self.rest.split_at(self.digits_ahead());
        self.rest = rest;
        // Further digits are less than a millisecond.
        let digits = &digits[..digits.len().min(MAX_FRACTION_DIGITS)];
        let fraction: i64 = digits.parse().ok()?;
        Some(fraction * unit_millis / 10_i64.pow(u32::try_from(digits.len()).ok()?))
    }

    /// The offset of a zone from UTC, in milliseconds.
    fn zone(&mut self) -> Option<i64> {
        let is_utc = ["z", "utc", "gmt"].into_iter().any(|name| {
            let rest = self.rest.strip_prefix(name);
            self.rest = rest.unwrap_or(self.rest);
            rest.is_some()
        });
        if is_utc {
            return Some(0);
        }
        let sign = if self.take('+') {
            1
        } else if self.take('-') || self.take('\u{2212}') {
            -1
        } else {
            return None;
        };
        let hours = self.digits(2)?;
        let has_colon = self.take(':');
        let minutes = match has_colon || self.begins_with_digit() {
            true => self.digits(2)?,
            false => 0,
        };
        (hours < 24 && minutes < 60).then(|| sign * i64::from(hours * 60 + minutes) * 60_000)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: i64 = 1_730_894_400_000;

    fn parse(text: &str) -> Result<i64, TimeTextError> {
        Timestamp::from_text(text, Timestamp::from_millis(NOON)).map(Timestamp::as_millis)
    }

    #[test]
    fn every_form_of_iso_8601_is_read_extended_and_basic() {
        for text in [
            "2024-11-06T12:00:00Z",
            "2024-11-06T12:00Z",
            "2024-11-06T12Z",
            "2024-11-06t12:00:00z",
            "20241106T120000Z",
            "20241106T1200Z",
            "20241106T12Z",
            "2024-311T12:00Z",
            "2024311T1200Z",
            "2024-W45-3T12:00Z",
            "2024W453T12Z",
            "2024-11-06T13:00+01",
            "2024-11-06T13:00:00+0100",
            "2024-11-06 13:00:00.000 +01:00",
            "2024-11-06 12:00:00 UTC",
            "2024-11-06T11:00:00-01:00",
            "2024-11-06T11:00:00\u{2212}01:00",
            " 2024-11-06T12:00:00.000999999Z\r",
            "1730894400000",
        ] {
            assert_eq!(parse(text), Ok(NOON), "{text}");
        }
        for (text, millis) in [
            ("2024-11-06T12:00:00.25Z", NOON + 250),
            ("2024-11-06T12:00:00,123456789Z", NOON + 123),
            ("2024-11-06T12.5Z", NOON + 1_800_000),
            ("2024-11-06T12,999999999999999999999999Z", NOON + 3_599_999),
            ("2024-11-06T12:30.5Z", NOON + 1_830_000),
            ("20241106T1230.00001Z", NOON + 1_800_000),
            ("20241106T123000.0015Z", NOON + 1_800_001),
            ("2024-11-06T24:00Z", NOON + 43_200_000),
            ("2024-11-07", NOON + 43_200_000),
            ("2024-11-07Z", NOON + 43_200_000),
            ("2024-11-07+01:00", NOON + 39_600_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("1969-12-31T23:59:59.9999Z", -1),
            ("-5", -5),
            ("+5", 5),
        ] {
            assert_eq!(parse(text), Ok(millis), "{text}");
        }
    }

    #[test]
    fn offsets_from_now_have_a_sign_and_a_unit() {
        for (text, offset) in [
            ("now", 0),
            ("NOW", 0),
            ("now-1h", -3_600_000),
            ("now - 1h", -3_600_000),
            ("now+30m", 1_800_000),
            ("now-1.5h", -5_400_000),
            ("now-1h30min", -5_400_000),
            ("now-7d", -604_800_000),
            ("now-1w", -604_800_000),
            ("now-250ms", -250),
        ] {
            assert_eq!(parse(text), Ok(NOON + offset), "{text}");
        }
        for text in ["now-", "now-1", "now1h", "now--1h", "now-1y", "now-9223372036854775807d"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_times_are_refused_and_a_missing_zone_is_named() {
        for text in [
            "",
            "yesterday",
            "2024-11",
            "2024-13-01",
            "2024-11-31",
            "2024-366T00Z0",
            "2023-366",
            "2024-W54-1",
            "2024-W01-8",
            "2024-1106",
            "2024-11-06T12:Z",
            "2024-11-06T1Z",
            "2024-11-06T25:00Z",
            "2024-11-06T24:00:01Z",
            "2024-11-06T12:60Z",
            "2024-11-06T12:00:00.Z",
            "2024-11-06T12.Z",
            "2024-11-06T12.5:30Z",
            "2024-11-06T24.5Z",
            "2024-11-06T12:00+24:00",
            "2024-11-06T12:00+1",
            "2024-11-06T12:00ZZ",
            "2024-11-06T",
            "9223372036854775808",
            "\u{0664}",
            "2024-11-0\u{0666}",
        ] {
            assert!(matches!(parse(text), Err(TimeTextError::NotATime { .. })), "{text}");
        }
        for text in ["2024-11-06T12:00:00", "2024-11-06 12:00", "20241106T12", "2024-11-06T12:00 "]
        {
            assert!(matches!(parse(text), Err(TimeTextError::NoZone { .. })), "{text}");
        }
        for text in ["1730894400.5", "1730894400s", "@1730894400", "1.7e12"] {
            let told = parse(text).unwrap_err().to_string();
            assert!(told.contains("whole number of milliseconds"), "{told}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9TtZz:.,+ wW\u{2212}nowd-]{0,30}") {
            let _ = parse(&text);
        }

        #[test]
        fn texts_written_by_chrono_are_read_as_the_same_time(
            millis in -62_000_000_000_000_i64..253_000_000_000_000,
            minutes in -1_439_i32..1_440,
        ) {
            let zone = chrono::FixedOffset::east_opt(minutes * 60).unwrap();
            let at = chrono::DateTime::from_timestamp_millis(millis).unwrap().with_timezone(&zone);
            for form in ["%Y-%m-%dT%H:%M:%S%.3f%:z", "%Y%jT%H%M%S,%3f%z", "%G-W%V-%u %H:%M:%S.%3f %:z"] {
                // The year of a week date may have another number of digits.
                let text = at.format(form).to_string();
                prop_assert_eq!(parse(&text), Ok(millis), "{}", text);
            }
        }
    }
}
