//! What agents have and tasks need.

use serde::{Deserialize, Serialize};

use crate::{PortRanges, Scalar};

/// Amounts of the resources that mesonet schedules: cpus (cores), memory and disk (MiB), gpus, and host ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Cores.
    pub cpus: Scalar,
    /// Memory in MiB.
    pub mem: Scalar,
    /// Disk space in MiB.
    pub disk: Scalar,
    /// Graphics processors.
    pub gpus: Scalar,
    /// Host ports.
    pub ports: PortRanges,
}

impl Resources {
    /// Whether these cover the others completely.
    pub fn contains(&self, other: &Self) -> bool {
        other.cpus <= self.cpus
            && other.mem <= self.mem
            && other.disk <= self.disk
            && other.gpus <= self.gpus
            && self.ports.contains_all(&other.ports)
    }

    /// Adds others.
    pub fn add(&mut self, other: &Self) {
        self.cpus = self.cpus + other.cpus;
        self.mem = self.mem + other.mem;
        self.disk = self.disk + other.disk;
        self.gpus = self.gpus + other.gpus;
        self.ports.insert_all(&other.ports);
    }

    /// Takes others away; amounts may become negative when more is taken than there is.
    pub fn subtract(&mut self, other: &Self) {
        self.cpus = self.cpus - other.cpus;
        self.mem = self.mem - other.mem;
        self.disk = self.disk - other.disk;
        self.gpus = self.gpus - other.gpus;
        self.ports.remove_all(&other.ports);
    }

    /// Whether there is nothing of any resource.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
