//! Bytes on the loopback interface, which count only in a network of one's own.

use std::process::Command;

use anyhow::Context as _;

/// Set in the network that the benchmark has for itself.
const OWN_NETWORK: &str = "MESONET_BENCH_OWN_NETWORK";

/// Runs all of it in a network namespace of its own, if that can be had. Returns whether it has run.
pub(super) fn moved_to_own_network() -> anyhow::Result<bool> {
    if std::env::var_os(OWN_NETWORK).is_some() {
        return Ok(false);
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.arg("--net");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command
    };
    let probe = unshare().args(["ip", "link", "set", "lo", "up"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return Ok(false);
    }
    let program = std::env::current_exe().context("this program cannot be found")?;
    let mut command = unshare();
    command.args(["sh", "-c", "ip link set lo up && exec \"$0\" bus"]).arg(program);
    let status = command.env(OWN_NETWORK, "1").status().context("cannot run unshare")?;
    anyhow::ensure!(status.success(), "it has ended with {status}");
    Ok(true)
}

/// All that was sent on loopback, if it is ours alone.
pub(super) fn on_loopback() -> anyhow::Result<Option<u64>> {
    if std::env::var_os(OWN_NETWORK).is_none() {
        return Ok(None);
    }
    let text = std::fs::read_to_string("/proc/self/net/dev").context("cannot read /proc/self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let bytes =
        line.and_then(|line| line.split_whitespace().nth(8)).context("no lo in /proc/self/net/dev")?;
    Ok(Some(bytes.parse().context("a counter is no number")?))
}
