//! Sizes, times and modes in the notation of the configuration and the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes, at least 1: `4096`, `64KiB`, `1.5MiB`, `4GiB`, `1TiB`, also `kB`, `MB`, `GB`.
///
/// ```
/// # use iovcache::server::ByteSize;
/// let size: ByteSize = "4GiB".parse()?;
/// assert_eq!((size.bytes(), size.to_string()), (4 << 30, "4GiB".to_owned()));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size from a number of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text);
        let unit_bytes: u64 = match unit {
            "" | "B" => 1,
            "KiB" | "K" | "k" => 1 << 10,
            "MiB" | "M" => 1 << 20,
            "GiB" | "G" => 1 << 30,
            "TiB" | "T" => 1 << 40,
            "kB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            other => {
                return Err(format!("unknown unit {other:?}; there are KiB, MiB, GiB, kB, MB, GB"));
            }
        };
        let wrong = || format!("{text:?} is no number of bytes; expected e.g. 4GiB");
        let bytes = match number.parse::<u64>() {
            Ok(number) => number.checked_mul(unit_bytes).ok_or_else(wrong)?,
            Err(_) => {
                let bytes = number.parse::<f64>().map_err(|_| wrong())? * unit_bytes as f64;
                // 2^63 is beyond any memory, and exact below 2^53.
                if bytes < 9e18 { bytes as u64 } else { return Err(wrong()) }
            }
        };
        if bytes == 0 { Err("0 bytes are too few".to_owned()) } else { Ok(Self(bytes)) }
    }
}

/// Writes the size in the largest unit that gives a whole number.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(bits, _)| self.0 != 0 && self.0.trailing_zeros() >= *bits) {
            Some((bits, unit)) => write!(f, "{}{unit}", self.0 >> bits),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A duration: `500ms`, `1s`, `1.5s`, `2min`, `1h`, `90d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeSpan(Duration);

impl TimeSpan {
    /// As a duration.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl From<Duration> for TimeSpan {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl FromStr for TimeSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = number_and_unit(text);
        let seconds = match unit {
            "ms" => 1e-3,
            "s" | "" => 1.0,
            "min" | "m" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            other => return Err(format!("unknown unit {other:?}; there are ms, s, min, h, d")),
        };
        let wrong = |_| format!("{text:?} is no duration, e.g. 1s");
        let number: f64 = number.parse().map_err(wrong)?;
        let duration = Duration::try_from_secs_f64(number * seconds);
        duration.map(Self).map_err(|error| format!("{text:?}: {error}"))
    }
}

/// Writes the duration in the largest unit that gives a whole number.
impl fmt::Display for TimeSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u128, &str); 4] = [
            (3_600_000_000_000, "h"),
            (60_000_000_000, "min"),
            (1_000_000_000, "s"),
            (1_000_000, "ms"),
        ];
        let nanos = self.0.as_nanos();
        match UNITS.into_iter().find(|(unit, _)| nanos != 0 && nanos.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", nanos / unit),
            None => write!(f, "{}ms", self.0.as_secs_f64() * 1e3),
        }
    }
}

/// The mode of a socket, in octal: `0660`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketMode(u32);

impl SocketMode {
    /// From mode bits.
    pub const fn new(mode: u32) -> Self {
        Self(mode)
    }

    /// The mode bits.
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.map(Self).ok_or_else(|| format!("{text:?} is no mode, expected one like 0660"))
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// An unmanaged region by its id and file: `7=/dev/shm/fmq_0a1b2c3d_rg_7`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionPath {
    /// Its id, as its owner defines it.
    pub id: u16,
    /// Its file.
    pub path: PathBuf,
}

impl FromStr for RegionPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=').map(|(id, path)| (id.parse(), path)) {
            Some((Ok(id), path)) if !path.is_empty() => Ok(Self { id, path: path.into() }),
            _ => Err(format!(
                "{text:?} is no region, expected ID=PATH with an id up to {}",
                u16::MAX
            )),
        }
    }
}

impl fmt::Display for RegionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.id, self.path.display())
    }
}

fn number_and_unit(text: &str) -> (&str, &str) {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    (number, unit.trim())
}

/// Serialises each of them as a string, in the notation of the command line.
macro_rules! written_as_text {
    ($($unit:ident: $example:literal),*) => {$(
        impl Serialize for $unit {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $unit {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($unit).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "examples": [$example]})
            }
        }
    )*};
}
written_as_text!(
    ByteSize: "4GiB",
    TimeSpan: "10s",
    SocketMode: "0660",
    RegionPath: "7=/dev/shm/fmq_0a1b2c3d_rg_7"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_modes_are_read_with_their_units_and_written_as_they_are_read() {
        let bytes = |text: &str| text.parse().map(ByteSize::bytes);
        assert_eq!(bytes("4096"), Ok(4096));
        assert_eq!(bytes("4GiB"), Ok(4 << 30));
        assert_eq!(bytes("1.5MiB"), Ok(3 << 19));
        assert_eq!(bytes("2MB"), Ok(2_000_000));
        for wrong in ["", "GiB", "0", "4 apples", "-1", "99999999999TiB", "1.2.3"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
        let span = |text: &str| text.parse().map(TimeSpan::duration);
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(span("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert!(span("1 year").is_err() && span("").is_err());
        assert!("0999".parse::<SocketMode>().is_err());

        let same = |text: &str, shown: String| assert_eq!(shown, text);
        for text in ["1", "4095", "4KiB", "1536KiB", "512MiB", "3TiB"] {
            same(text, text.parse::<ByteSize>().unwrap().to_string());
        }
        for text in ["0ms", "0.5ms", "1ms", "1500ms", "10s", "2min", "1h"] {
            same(text, text.parse::<TimeSpan>().unwrap().to_string());
        }
        same("0660", "660".parse::<SocketMode>().unwrap().to_string());
        let region: RegionPath = "7=/a=b".parse().unwrap();
        assert_eq!((region.id, region.path.as_path()), (7, std::path::Path::new("/a=b")));
        same("7=/a=b", region.to_string());
        for wrong in ["/a", "=/a", "7=", "65536=/a", "-1=/a"] {
            assert!(wrong.parse::<RegionPath>().is_err(), "{wrong:?}");
        }
    }
}
