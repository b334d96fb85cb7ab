//! What `/metrics` shows of this process, under the names that Prometheus' own libraries use.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Registry};
use rustix::time::{ClockId, clock_gettime};

/// Registers what is read from the system whenever somebody looks.
pub fn register(registry: &Registry) -> Result<(), prometheus::Error> {
    registry.register(Box::new(ProcessCollector::new()?))
}

struct ProcessCollector {
    cpu: Counter,
    open_files: Gauge,
    resident_bytes: Gauge,
    start: Gauge,
}

impl ProcessCollector {
    fn new() -> Result<Self, prometheus::Error> {
        let start = Gauge::new("process_start_time_seconds", "Start time since the Unix epoch.")?;
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        Ok(Self {
            cpu: Counter::new("process_cpu_seconds_total", "User and system time spent.")?,
            open_files: Gauge::new("process_open_fds", "Open file descriptors.")?,
            resident_bytes: Gauge::new("process_resident_memory_bytes", "Resident memory.")?,
            start,
        })
    }

    fn parts(&self) -> [&dyn Collector; 4] {
        [&self.cpu, &self.open_files, &self.resident_bytes, &self.start]
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.parts().into_iter().flat_map(Collector::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.cpu.inc_by((cpu_seconds() - self.cpu.get()).max(0.0));
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(files.count() as f64);
        }
        if let Some(bytes) = resident_bytes() {
            self.resident_bytes.set(bytes);
        }
        self.parts().into_iter().flat_map(Collector::collect).collect()
    }
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn resident_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0)
}
