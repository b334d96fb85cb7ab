//! Ports and addresses that no other cluster on this machine uses at the same time.

use std::fs::{File, OpenOptions};

/// How many clusters can run side by side.
const LANES: u16 = 160;

/// First host port of the first lane: below the ports that the system gives to clients, above those of services.
const PORT_FIRST: u16 = 14_000;

/// Host ports of a lane.
const PORTS: u16 = 100;

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
        let first = PORT_FIRST + self.number * PORTS;
        format!("{first}-{}", first + PORTS - 1)
    }

    /// Addresses of VIPs, as `--vip-range` takes them.
    pub fn vip_range(&self) -> String {
        format!("127.{}.0.0/16", OCTET_FIRST + self.number)
    }
}
