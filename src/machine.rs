//! What this machine has to offer.

use std::path::Path;

use mesonet_model::{Resources, Scalar};

use crate::config::{Amount, PortSpan};

/// What a machine is taken to have if it does not say (as Mesos does).
const MEM_UNKNOWN_MIB: i64 = 1024;
const DISK_UNKNOWN_MIB: i64 = 4096;

/// Kept for the system, unless that is more than half of what there is (as Mesos does).
const MEM_RESERVED_MIB: i64 = 1024;
const DISK_RESERVED_MIB: i64 = 5120;

/// What an operator wants to be offered; `None` where that is left open.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Cores.
    pub cpus: Option<Amount>,
    /// Memory in MiB.
    pub mem: Option<Amount>,
    /// Disk space in MiB.
    pub disk: Option<Amount>,
    /// Host ports.
    pub host_ports: PortSpan,
}

/// What is wanted; where that is left open, what the machine has less a reserve for the system.
pub fn offered(wanted: Wanted, dir: &Path) -> Resources {
    let amount = |amount: Option<Amount>| amount.map(|Amount(scalar)| scalar);
    let cores =
        std::thread::available_parallelism().map_or(1, |cores| i64::try_from(cores.get()).unwrap_or(1));
    Resources {
        cpus: amount(wanted.cpus).unwrap_or(Scalar::from_units(cores)),
        mem: amount(wanted.mem).unwrap_or_else(|| {
            Scalar::from_units(without_reserve(mem_total_mib(), MEM_RESERVED_MIB).unwrap_or(MEM_UNKNOWN_MIB))
        }),
        disk: amount(wanted.disk).unwrap_or_else(|| {
            Scalar::from_units(
                without_reserve(disk_free_mib(dir), DISK_RESERVED_MIB).unwrap_or(DISK_UNKNOWN_MIB),
            )
        }),
        gpus: Scalar::ZERO,
        ports: wanted.host_ports.to_ranges(),
    }
}

fn without_reserve(total: Option<i64>, reserve: i64) -> Option<i64> {
    total.map(|total| (total - reserve).max(total / 2))
}

fn mem_total_mib() -> Option<i64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

fn disk_free_mib(dir: &Path) -> Option<i64> {
    let status = rustix::fs::statvfs(dir).ok()?;
    i64::try_from(status.f_bavail.saturating_mul(status.f_frsize) >> 20).ok()
}
