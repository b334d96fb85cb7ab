//! What the kernel leaves to an interface, by the requests of ethtool (`linux/ethtool.h`).

use std::io;

use crate::interfaces::ask_about;
use crate::settings::Offloads;

/// Requests.
const COUNT: u32 = 0x37;
const NAMES: u32 = 0x1b;
const SET: u32 = 0x3b;

/// Which of the interface's lists of names is meant (`ETH_SS_FEATURES`).
const FEATURES: u32 = 4;

/// Octets of a name.
const NAME_LENGTH: usize = 32;

/// Most features that are looked at: the kernel knows of fewer than 64 so far.
const FEATURES_MAX: usize = 256;

const STREAMS: [&str; 4] = [
    "tx-tcp-segmentation",
    "tx-tcp-ecn-segmentation",
    "tx-tcp-mangleid-segmentation",
    "tx-tcp6-segmentation",
];

const DATAGRAMS: &str = "tx-udp-segmentation";

const CHECKSUMS: &str = "tx-checksum-ip-generic";

/// What the header before a packet cannot tell, besides pieces of tunnels and of other protocols: lists of packets, pieces
/// that are cut in part, VLANs, and the checksum of SCTP.
const UNTELLABLE: [&str; 5] =
    ["tx-gso-list", "tx-gso-partial", "tx-vlan-hw-insert", "tx-vlan-stag-hw-insert", "tx-checksum-sctp"];

/// Leaves to the interface what this end can do, and to the kernel all else.
pub(crate) fn set_offloads(interface: &str, offloads: Offloads) -> io::Result<()> {
    let names = names(interface)?;
    let mut request = Request::new(SET, &[names.len().div_ceil(32) as u32]);
    request.0.resize(2 + names.len().div_ceil(32) * 2, 0);
    for (place, name) in names.iter().enumerate() {
        if let Some(is_on) = wish(name, offloads) {
            let block = 2 + place / 32 * 2;
            request.0[block] |= 1 << (place % 32);
            request.0[block + 1] |= u32::from(is_on) << (place % 32);
        }
    }
    request.send(interface)
}

/// Whether a feature is to be on. Nothing, if it does not matter.
fn wish(feature: &str, offloads: Offloads) -> Option<bool> {
    if STREAMS.contains(&feature) {
        Some(offloads.streams)
    } else if feature == DATAGRAMS {
        Some(offloads.datagrams)
    } else if feature == CHECKSUMS {
        Some(offloads.streams || offloads.datagrams)
    } else {
        let is_untellable = UNTELLABLE.contains(&feature)
            || (feature.starts_with("tx-") && feature.ends_with("-segmentation"));
        is_untellable.then_some(false)
    }
}

/// The names of all features, in the kernel's order.
fn names(interface: &str) -> io::Result<Vec<String>> {
    let mut request = Request::new(COUNT, &[0, 1 << FEATURES, 0, 0]);
    request.send(interface)?;
    let count = (request.0[4] as usize).min(FEATURES_MAX);
    let mut request = Request::new(NAMES, &[FEATURES, count as u32]);
    request.0.resize(3 + count * NAME_LENGTH / 4, 0);
    request.send(interface)?;
    let octets: Vec<u8> = request.0[3..].iter().flat_map(|number| number.to_ne_bytes()).collect();
    let name = |octets: &[u8]| {
        let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
        String::from_utf8_lossy(&octets[..end]).into_owned()
    };
    Ok(octets.chunks_exact(NAME_LENGTH).map(name).collect())
}

/// A request, and what the kernel answers in its place.
struct Request(Vec<u32>);

impl Request {
    fn new(command: u32, arguments: &[u32]) -> Self {
        Self([&[command], arguments].concat())
    }

    fn send(&mut self, interface: &str) -> io::Result<()> {
        ask_about(interface, libc::SIOCETHTOOL as libc::Ioctl, |request| {
            request.ifr_ifru.ifru_data = self.0.as_mut_ptr().cast();
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_header_cannot_tell_is_left_to_the_kernel() {
        for feature in [
            "tx-gre-segmentation",
            "tx-udp_tnl-csum-segmentation",
            "tx-sctp-segmentation",
            "tx-gso-list",
            "tx-checksum-sctp",
        ] {
            assert_eq!(wish(feature, Offloads::ALL), Some(false), "{feature}");
        }
        for feature in ["tx-tcp-segmentation", "tx-tcp6-segmentation", DATAGRAMS, CHECKSUMS] {
            assert_eq!(wish(feature, Offloads::ALL), Some(true), "{feature}");
            assert_eq!(wish(feature, Offloads::NONE), Some(false), "{feature}");
        }
        for feature in ["tx-scatter-gather", "rx-gro", "highdma"] {
            assert_eq!(wish(feature, Offloads::ALL), None, "{feature}");
        }
        let datagrams = Offloads { streams: false, ..Offloads::ALL };
        assert_eq!(wish(CHECKSUMS, datagrams), Some(true), "datagrams are not cut without");
    }
}
