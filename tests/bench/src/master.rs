//! How fast the pure master places tasks, and how long it takes to hand a full cluster to others and to itself.
//!
//! Every task is one offer, one accept, one launch and one status update, as a framework that fills a cluster task by
//! task would cause them. Nothing is stored or sent: what is measured is the decisions and the encoding of records.

use std::time::Instant;

use anyhow::ensure;
use mesonet_master::Master;
use mesonet_model::ClusterView;

use crate::filled_cluster::{FilledCluster, config};
use crate::process::Usage;
use crate::report::{Bar, bar, table};

/// Nomad's published figure for its scheduler: one million containers in 266 s.
const PLACEMENTS_PER_SECOND_BAR: f64 = 3_750.0;

/// A standby must serve within three seconds of the leader's death; this is what loading may take of them.
const RELOAD_SECONDS_BAR: f64 = 2.0;

/// Fills a cluster and prints how long that took.
pub fn run(agents: u32, tasks: u32) -> anyhow::Result<()> {
    let mut cluster = FilledCluster::new()?;
    let started = Instant::now();
    for number in 0..agents {
        cluster.register(number);
    }
    let registered = started.elapsed();

    let started = Instant::now();
    cluster.fill(tasks)?;
    let placed = started.elapsed();

    let started = Instant::now();
    let snapshot = serde_json::to_vec(cluster.view())?;
    let encoded = started.elapsed();
    let memory_before = Usage::of_self()?.resident_kib;
    let started = Instant::now();
    let view: ClusterView = serde_json::from_slice(&snapshot)?;
    let decoded = started.elapsed();
    let memory = Usage::of_self()?.resident_kib.saturating_sub(memory_before);

    let per_second = f64::from(tasks) / placed.as_secs_f64();
    let (records, written, bytes) = (cluster.recovered(), cluster.records_written, cluster.bytes_written);
    let started = Instant::now();
    let reloaded = Master::recover(config()?, view.cluster.clone(), view.revision, &records)?;
    let reload = started.elapsed();
    ensure!(reloaded.view().tasks.len() == view.tasks.len(), "tasks are lost by a reload");

    table(&[
        ("agents", agents.to_string()),
        ("tasks placed and running", view.tasks.len().to_string()),
        ("services, endpoints", format!("{}, {}", view.services.len(), view.endpoints.len())),
        ("registration of all agents", format!("{registered:.2?}")),
        ("placement of all tasks", format!("{placed:.2?}")),
        ("time per placement", format!("{:.1?}", placed / tasks.max(1))),
        ("records written", format!("{written} ({} MiB)", bytes >> 20)),
        (
            "snapshot as JSON",
            format!("{} MiB, encoded in {encoded:.2?}, decoded in {decoded:.2?}", snapshot.len() >> 20),
        ),
        ("memory of a view", format!("{} MiB", memory >> 10)),
        ("reload from records", format!("{} records in {reload:.2?}", records.len())),
    ]);
    bar("master_placements_per_second", per_second, Bar::AtLeast, PLACEMENTS_PER_SECOND_BAR);
    bar("master_failover_reload_s", reload.as_secs_f64(), Bar::Below, RELOAD_SECONDS_BAR);
    Ok(())
}
