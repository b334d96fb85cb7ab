//! Durations as people write and read them.

use std::time::Duration;

use thiserror::Error;

/// The text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no duration: expected a number and a unit, such as 500ms, 2s, 5m or 1h")]
pub struct DurationError(String);

/// Reads `500ms`, `1.5s`, `5m`, `1h`; a number alone counts seconds.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError(text.to_owned());
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.parse().map_err(|_| error())?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(error()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| error())
}

/// The largest unit that fits, rounded down: `45s`, `3m`, `2h`, `9d`.
pub fn short(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{}ms", duration.as_millis()),
        seconds @ 1..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_every_unit() {
        for (text, millis) in
            [("500ms", 500), ("2s", 2000), ("1.5s", 1500), ("7", 7000), ("5m", 300_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_an_example() {
        for text in ["", "s", "2 s", "2x", "-1s", "1e400s", "1.2.3s", "ms"] {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().contains("such as 500ms"), "{error}");
        }
    }

    #[test]
    fn short_durations_use_the_largest_unit() {
        for (seconds, expected) in [(0, "0ms"), (59, "59s"), (60, "1m"), (7199, "1h"), (200_000, "2d")] {
            assert_eq!(short(Duration::from_secs(seconds)), expected);
        }
    }
}
