//! Ports and addresses that no other cluster on this machine uses at the same time.

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;

/// How many clusters can run side by side.
const LANES: u16 = 160;

/// First host port of the first lane: below the ports that the system gives to clients, above those of services.
const PORT_FIRST: u16 = 14_000;

/// Ports of a lane.
const PORTS: u16 = 100;

/// Those of them that the cluster itself listens at.
const OWN_PORTS: u16 = 2;

/// Second octet of the first lane's VIPs, above those of `mesonet dev` itself.
const OCTET_FIRST: u16 = 32;

/// A share of the machine's ports and loopback addresses, held until dropped, even by a process that is killed.
pub struct Lane {
    number: u16,
    _lock: File,
}

impl Lane {
    /// Takes a free lane.
    pub fn take() -> Self {
        let start = (std::process::id() % u32::from(LANES)) as u16;
        for step in 0..LANES {
            let number = (start + step) % LANES;
            let path = std::env::temp_dir().join(format!("mesonet-e2e-lane-{number}.lock"));
            // Another user's lock cannot be opened: that lane is not ours.
            let Ok(lock) = OpenOptions::new().create(true).truncate(false).write(true).open(path) else {
                continue;
            };
            if lock.try_lock().is_ok() {
                return Self { number, _lock: lock };
            }
        }
        panic!("all {LANES} lanes for test clusters are taken: do more than {LANES} tests run at once?");
    }

    /// Host ports, as `--host-ports` takes them.
    pub fn host_ports(&self) -> String {
        let first = self.first_port() + OWN_PORTS;
        format!("{first}-{}", self.first_port() + PORTS - 1)
    }

    /// Addresses of the cluster itself, which no client gets while the cluster is started again.
    pub fn own_addresses(&self) -> [SocketAddr; OWN_PORTS as usize] {
        [0, 1].map(|number| ([127, 0, 0, 1], self.first_port() + number).into())
    }

    fn first_port(&self) -> u16 {
        PORT_FIRST + self.number * PORTS
    }

    /// Addresses of VIPs, as `--vip-range` takes them.
    pub fn vip_range(&self) -> String {
        format!("127.{}.0.0/16", OCTET_FIRST + self.number)
    }
}
