//! How long a committed change takes to be in effect on the node.

/// Changes tasks of a cluster for a while and prints how long each change took to be applied.
pub fn run(_tasks: u32, _seconds: u64) -> anyhow::Result<()> {
    anyhow::bail!("not wired yet")
}
