//! Times in options and output: milliseconds, ISO 8601, and offsets from now.

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat};
use iovcache::server::TimeSpan;

use crate::common::now;

/// The accepted forms of a time, for messages.
pub(crate) const FORMS: &str = "milliseconds since 1970, ISO 8601 with a zone \
    (2024-11-06T12:00:00Z), a date (its midnight UTC), now, now-1h or now+30m";

/// Milliseconds since the Unix epoch, from a text in one of the [`FORMS`].
///
/// # Errors
/// A message with the text and the accepted forms.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    let text = text.trim();
    if let Ok(millis) = text.parse() {
        return Ok(millis);
    }
    if let Some(offset) = text.strip_prefix("now") {
        return from_now(offset).ok_or_else(|| wrong(text));
    }
    // Seconds and fractions are optional; a T or a blank separates date and time.
    let zoned = ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z"];
    let normal = text.replacen(' ', "T", 1).replacen(" ", "", 1);
    let at = zoned.iter().find_map(|form| DateTime::parse_from_str(&normal, form).ok());
    if let Some(at) = at {
        return Ok(at.timestamp_millis());
    }
    if let Ok(date) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
        return Ok(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis());
    }
    let naive = ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"];
    if naive.iter().any(|form| NaiveDateTime::parse_from_str(&normal, form).is_ok()) {
        return Err(format!(
            "{text:?} has no time zone: append Z for UTC, or an offset such as +01:00"
        ));
    }
    Err(wrong(text))
}

fn wrong(text: &str) -> String {
    format!("{text:?} is not a time, expected {FORMS}")
}

/// Now plus an offset: `""`, `-1h`, `+30m`. In ms since the Unix epoch.
fn from_now(offset: &str) -> Option<i64> {
    let now = now().as_millis();
    if offset.is_empty() {
        return Some(now);
    }
    let (sign, span) = match offset.split_at_checked(1)? {
        ("-", span) => (-1, span),
        ("+", span) => (1, span),
        _ => return None,
    };
    now.checked_add(sign * self::span(span)?)
}

/// A duration in milliseconds: `1500ms`, `30s`, `5m`, `1h`, `7d`.
fn span(text: &str) -> Option<i64> {
    let millis = match text.strip_suffix('d') {
        Some(days) => days.parse::<i64>().ok()?.checked_mul(86_400_000)?,
        // A plain number has no unit.
        None if text.ends_with(|last: char| last.is_ascii_digit()) => return None,
        None => i64::try_from(text.parse::<TimeSpan>().ok()?.duration().as_millis()).ok()?,
    };
    (millis >= 0).then_some(millis)
}

/// Splits `FROM:UNTIL` or `FROM:UNTIL:STEP`, in ms; times may contain colons.
///
/// # Errors
/// A message with the text and the accepted forms.
pub(crate) fn parse_range(text: &str) -> Result<(i64, i64, Option<i64>), String> {
    let pieces: Vec<&str> = text.split(':').collect();
    let time = |pieces: &[&str]| parse(&pieces.join(":")).ok();
    let step = |pieces: &[&str]| match pieces {
        [step] => parse_step(step).ok(),
        _ => None,
    };
    for first in 1..pieces.len() {
        let (from, rest) = pieces.split_at(first);
        let Some(from) = time(from) else { continue };
        if let Some(until) = time(rest) {
            return Ok((from, until, None));
        }
        let (until, last) = rest.split_at(rest.len() - 1);
        if let (Some(until), Some(step)) = (time(until), step(last)) {
            return Ok((from, until, Some(step)));
        }
    }
    Err(format!(
        "{text:?} is not a range, expected FROM:UNTIL or FROM:UNTIL:STEP with times as {FORMS}, and a \
         step in milliseconds or as 30s"
    ))
}

/// A step in ms, from a text with milliseconds or such as `30s`.
///
/// # Errors
/// A message with the text and the accepted forms.
pub(crate) fn parse_step(text: &str) -> Result<i64, String> {
    let step = text.parse().ok().or_else(|| span(text));
    step.ok_or_else(|| format!("{text:?} is not a step, expected milliseconds or e.g. 30s"))
}

/// A time in ISO 8601 in UTC, with milliseconds if they are not zero.
pub(crate) fn show(millis: i64) -> String {
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

/// Like [`show`], or milliseconds if these are requested (`--ms`).
pub(crate) fn show_as(millis: i64, as_millis: bool) -> String {
    match millis {
        i64::MIN | i64::MAX => show(millis),
        _ if as_millis => millis.to_string(),
        _ => show(millis),
    }
}

/// A hint at the unit that was probably meant, if `millis` is no likely time.
pub(crate) fn other_unit(millis: i64) -> Option<String> {
    // Between the years 1985 and 2100.
    let is_likely = |millis: i64| (473_000_000_000..4_102_000_000_000).contains(&millis);
    let units = [("seconds", 1_000.0), ("microseconds", 1e-3), ("nanoseconds", 1e-6)];
    let (unit, meant) = units.into_iter().find_map(|(unit, factor)| {
        let meant = (millis as f64 * factor) as i64;
        is_likely(meant).then_some((unit, meant))
    })?;
    let (given, shown) = (show(millis), show(meant));
    (!is_likely(millis)).then(|| {
        format!(
            "{millis} is taken as milliseconds ({given}); if {unit} were meant, give {meant} ({shown})"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_milliseconds_iso_dates_and_offsets_from_now() {
        for (text, millis) in [
            ("0", 0),
            ("-5", -5),
            ("2024-11-06T12:00:00Z", 1_730_894_400_000),
            ("2024-11-06T12:00Z", 1_730_894_400_000),
            ("2024-11-06 12:00:00.250 +00:00", 1_730_894_400_250),
            ("2024-11-06T13:00:00+01:00", 1_730_894_400_000),
            ("2024-11-06T13:00:00+0100", 1_730_894_400_000),
            ("2024-11-06", 1_730_851_200_000),
            ("1969-12-31T23:59:59Z", -1_000),
        ] {
            assert_eq!(parse(text), Ok(millis), "{text}");
        }
        let near = |text: &str, offset: i64| {
            let right = now().as_millis() + offset;
            assert!((parse(text).unwrap() - right).abs() < 60_000, "{text}");
        };
        near("now", 0);
        near("now-1h", -3_600_000);
        near("now+30m", 1_800_000);
        near("now-7d", -604_800_000);
        for wrong in ["", "yesterday", "now-", "now-1", "now1h", "2024-13-01", "1.5", "now--1h"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let naive = parse("2024-11-06T12:00:00").unwrap_err();
        assert!(naive.contains("no time zone"), "{naive}");
    }

    #[test]
    fn ranges_are_taken_apart_between_their_times() {
        for (text, parts) in [
            ("-10:10", (-10, 10, None)),
            ("-10:10:5", (-10, 10, Some(5))),
            ("1970-01-01:1970-01-02:1h", (0, 86_400_000, Some(3_600_000))),
            ("1970-01-01T00:00:01Z:1970-01-01T00:00:02Z", (1_000, 2_000, None)),
            ("0:1970-01-01T00:00:02Z:250", (0, 2_000, Some(250))),
        ] {
            assert_eq!(parse_range(text), Ok(parts), "{text}");
        }
        for wrong in ["", "5", "a:b", "1:2:3:4", "1:2:x"] {
            assert!(parse_range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_shown_in_utc_and_other_units_are_guessed() {
        assert_eq!(show(1_730_894_400_000), "2024-11-06T12:00:00Z");
        assert_eq!(show(1_730_894_400_005), "2024-11-06T12:00:00.005Z");
        assert_eq!((show(i64::MAX), show(i64::MIN)), ("inf".to_owned(), "-inf".to_owned()));
        assert_eq!(show(i64::MAX - 1), "9223372036854775806 ms");
        let guess = other_unit(1_730_894_400).unwrap();
        assert!(guess.contains("seconds") && guess.contains("give 1730894400000"), "{guess}");
        assert!(other_unit(1_730_894_400_000_000).unwrap().contains("microseconds"));
        assert!([0, 5, -1, 1_730_894_400_000, i64::MAX].iter().all(|at| other_unit(*at).is_none()));
    }
}
