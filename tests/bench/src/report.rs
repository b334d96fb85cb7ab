//! How results are printed.

use std::fmt;
use std::time::Duration;

/// How a value is held against its limit.
#[derive(Debug, Clone, Copy)]
pub enum Bar {
    /// At least the limit.
    AtLeast,
    /// Below the limit.
    Below,
    /// At most the limit.
    AtMost,
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AtLeast => ">=",
            Self::Below => "<",
            Self::AtMost => "<=",
        })
    }
}

/// Prints one bar and whether it is reached.
pub fn bar(name: &str, value: f64, bar: Bar, limit: f64) {
    let reached = match bar {
        Bar::AtLeast => value >= limit,
        Bar::Below => value < limit,
        Bar::AtMost => value <= limit,
    };
    println!("BAR {name} {value:.3} {bar} {limit} {}", if reached { "ok" } else { "MISS" });
}

/// Prints rows of two columns, the first as wide as it needs to be.
pub fn table(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        println!("{name:width$}  {value}");
    }
}

/// Milliseconds with fraction.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
