//! How long a committed change takes to be in effect on the node.

use std::time::Duration;

use mesonet::measure_applied;

use crate::report::{Bar, bar, millis, table};

/// A change must be visible before a client could have noticed the one before: the project's own limit.
const P99_MILLIS_BAR: f64 = 10.0;

/// Kills tasks of a cluster one after the other, each of which starts another, and prints how long each resulting
/// change took to be applied.
pub fn run(tasks: u32, seconds: u64) -> anyhow::Result<()> {
    let measured = measure_applied(tasks, Duration::from_secs(seconds))?;
    for plane in &measured {
        table(&[
            ("plane", plane.plane.to_string()),
            ("tasks", tasks.to_string()),
            ("revisions applied", plane.revisions.to_string()),
            ("commit to applied, p50", format!("{:.3} ms", millis(plane.p50))),
            ("commit to applied, p99", format!("{:.3} ms", millis(plane.p99))),
        ]);
    }
    for plane in &measured {
        bar(&format!("applied_{}_p99_ms", plane.plane), millis(plane.p99), Bar::Below, P99_MILLIS_BAR);
    }
    Ok(())
}
