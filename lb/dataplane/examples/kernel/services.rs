//! How long services take to get into the kernel.

use std::net::{Ipv4Addr, SocketAddr};

use crate::cluster::Cluster;
use crate::site::Site;
use crate::{Measured, bar, median};

/// Each with an address and this many endpoints.
const ENDPOINTS: u32 = 2;

const MANY: u32 = 50_000;
const SOME: u32 = 10_000;

/// How often each is measured.
const LOADS: usize = 3;
const CHANGES: u32 = 200;

pub fn run() -> Measured<()> {
    let mut loads = Vec::new();
    for _ in 0..LOADS {
        let site = Site::new()?;
        let mut cluster = filled(&site, MANY)?;
        loads.push(cluster.apply()?.as_secs_f64());
    }
    println!("{MANY} services with {ENDPOINTS} endpoints each, into empty maps: {loads:.3?} s");

    let site = Site::new()?;
    let mut cluster = filled(&site, SOME)?;
    cluster.apply()?;
    let key = cluster.put_service("s77", vip(77))?;
    let mut changes = Vec::new();
    for change in 0..CHANGES {
        let address = endpoint(SOME * ENDPOINTS + change / 2);
        if change % 2 == 0 {
            cluster.put_endpoint(&key, address);
        } else {
            cluster.remove_endpoint(&key, address);
        }
        changes.push(cluster.apply()?.as_secs_f64() * 1000.0);
    }
    let middle = median(&mut changes);
    let worst = changes.last().copied().unwrap_or(f64::NAN);
    println!("one endpoint changed at {SOME} services: median {middle:.3} ms, worst {worst:.3} ms");
    bar("services_load_seconds", median(&mut loads), false, 0.6);
    bar("services_change_ms", middle, false, 5.0);
    Ok(())
}

fn filled(site: &Site, services: u32) -> Measured<Cluster> {
    let mut cluster = Cluster::new(&site.settings())?;
    for number in 0..services {
        let key = cluster.put_service(&format!("s{number}"), vip(number))?;
        for each in 0..ENDPOINTS {
            cluster.put_endpoint(&key, endpoint(number * ENDPOINTS + each));
        }
    }
    Ok(cluster)
}

fn vip(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0b00_0001 + number), 80).into()
}

fn endpoint(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(0x0a00_0001 + number), 31_000).into()
}
