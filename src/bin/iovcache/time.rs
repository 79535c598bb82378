//! Times in options and output: milliseconds, ISO 8601, and offsets from now.

use std::sync::{Mutex, PoisonError};

use chrono::NaiveDate;
use iovcache::Timestamp;
pub(crate) use iovcache::time_text::show;
use iovcache::time_text::{TIME_FORMS, duration_millis};

use crate::common::now;

/// Milliseconds since the Unix epoch, from a text (see [`Timestamp::from_text`]).
///
/// # Errors
/// A message with the text and the accepted forms.
pub(crate) fn parse(text: &str) -> Result<i64, String> {
    let at = Timestamp::from_text(text, now()).map_err(|error| error.to_string())?;
    check_unit(at.as_millis());
    Ok(at.as_millis())
}

/// The first given time that is probably in another unit than milliseconds.
static UNLIKELY: Mutex<Option<i64>> = Mutex::new(None);

/// Remembers a given time that is probably in another unit than milliseconds.
pub(crate) fn check_unit(millis: i64) {
    if other_unit(millis).is_some() {
        UNLIKELY.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(millis);
    }
}

/// Writes the hint at the unit of the first given time that is probably not in milliseconds, once.
pub(crate) fn say_unit_hint() {
    let millis = UNLIKELY.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(hint) = millis.and_then(other_unit) {
        crate::stderr::say(&format!("note: {hint}"));
    }
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
        "{text:?} is not a range, expected FROM:UNTIL or FROM:UNTIL:STEP with times as {TIME_FORMS}, and a \
         step in milliseconds or as 30s"
    ))
}

/// A step in ms, from a text with milliseconds or such as `30s`.
///
/// # Errors
/// A message with the text and the accepted forms.
pub(crate) fn parse_step(text: &str) -> Result<i64, String> {
    let step = text.parse().ok().or_else(|| duration_millis(text));
    step.ok_or_else(|| format!("{text:?} is not a step, expected milliseconds or e.g. 30s"))
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
fn other_unit(millis: i64) -> Option<String> {
    // Between the years 1985 and 2100.
    let is_likely = |millis: i64| (473_000_000_000..4_102_000_000_000).contains(&millis);
    if is_likely(millis) {
        return None;
    }
    let given = format!("{millis} is taken as milliseconds ({})", show(millis));
    // A date without dashes.
    if (19_850_101..=21_000_101).contains(&millis)
        && let Ok(date) = NaiveDate::parse_from_str(&millis.to_string(), "%Y%m%d")
    {
        return Some(format!("{given}; if a date was meant, give {date}"));
    }
    let units = [("seconds", 1_000.0), ("microseconds", 1e-3), ("nanoseconds", 1e-6)];
    let (unit, meant) = units.into_iter().find_map(|(unit, factor)| {
        let meant = (millis as f64 * factor) as i64;
        is_likely(meant).then_some((unit, meant))
    })?;
    Some(format!("{given}; if {unit} were meant, give {meant} ({})", show(meant)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(other_unit(20_241_106).unwrap().contains("give 2024-11-06"));
        assert!(
            [0, 5, -1, 20_241_399, 1_730_894_400_000, i64::MAX]
                .iter()
                .all(|at| other_unit(*at).is_none())
        );
    }
}
