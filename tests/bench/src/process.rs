//! What processes use.

use anyhow::Context as _;
use rustix::time::{ClockId, clock_gettime};

/// CPU time and memory of a process.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// CPU time in user mode and in the kernel since its start, in seconds.
    pub cpu_s: f64,
    /// Resident memory, in KiB.
    pub resident_kib: u64,
}

impl Usage {
    /// Of this process.
    pub fn of_self() -> anyhow::Result<Self> {
        Self::of("self")
    }

    /// Of another one, by its id.
    pub fn of_process(pid: u32) -> anyhow::Result<Self> {
        Self::of(&pid.to_string())
    }

    fn of(process: &str) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{process}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let status = read("status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.context("no VmRSS in a process's status")?.trim().trim_end_matches(" kB");
        // proc_pid_stat(5): fields 14 and 15 are user and system time; the name before may contain anything but ends
        // with the last parenthesis, field 2.
        let stat = read("stat")?;
        let (_, rest) = stat.rsplit_once(") ").context("a process's stat has no name")?;
        let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let per_second = rustix::param::clock_ticks_per_second();
        Ok(Self {
            cpu_s: ticks as f64 / per_second as f64,
            resident_kib: resident.parse().context("VmRSS is no number")?,
        })
    }
}

/// Nanoseconds by a clock that all processes of the machine share and that never goes back.
pub fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let nanos = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
    u64::try_from(nanos).unwrap_or(0)
}
