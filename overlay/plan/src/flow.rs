//! Flows to queues.

/// Octets of an IPv4 header without options.
const IPV4_HEADER: usize = 20;

/// Octets of an IPv6 header.
const IPV6_HEADER: usize = 40;

/// The queue for a packet: the same for all packets of a flow, and for both directions of it.
///
/// The kernel sends the packets of a flow to the queue on which its other direction was written last. So the answers
/// to a flow stay on one queue, and with that in order, only if the flow is always written to the same one.
///
/// A packet that has no ports (a fragment, ICMP) is mapped by its addresses.
pub fn queue_of(packet: &[u8], queues: usize) -> usize {
    if queues <= 1 {
        return 0;
    }
    let (addresses, ports) = match packet.first().map(|octet| octet >> 4) {
        Some(4) if packet.len() >= IPV4_HEADER => {
            let is_fragment = packet[6] & 0x3f != 0 || packet[7] != 0;
            let has_ports = !is_fragment && matches!(packet[9], 6 | 17);
            let header = usize::from(packet[0] & 15) * 4;
            (&packet[12..IPV4_HEADER], has_ports.then_some(header))
        }
        Some(6) if packet.len() >= IPV6_HEADER => {
            (&packet[8..IPV6_HEADER], matches!(packet[6], 6 | 17).then_some(IPV6_HEADER))
        }
        _ => return 0,
    };
    let (source, destination) = addresses.split_at(addresses.len() / 2);
    let ports = ports.and_then(|at| packet.get(at..at + 4)).map_or(0, |ports| {
        mix(u64::from(u16::from_be_bytes([ports[0], ports[1]])))
            .wrapping_add(mix(u64::from(u16::from_be_bytes([ports[2], ports[3]]))))
    });
    let hash = mix(folded(source).wrapping_add(folded(destination)).wrapping_add(ports));
    usize::try_from(hash % queues as u64).unwrap_or(0)
}

/// A number from the octets of an address.
fn folded(address: &[u8]) -> u64 {
    address.chunks(4).fold(0, |hash, part| {
        let number = part.iter().fold(0_u64, |number, octet| number << 8 | u64::from(*octet));
        mix(hash ^ number)
    })
}

/// Spreads what differs in few bits over all of them (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = 17;
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&destination);
        packet[20..22].copy_from_slice(&ports[0].to_be_bytes());
        packet[22..24].copy_from_slice(&ports[1].to_be_bytes());
        packet
    }

    #[test]
    fn both_directions_of_a_flow_share_a_queue() {
        for port in 1..200 {
            let there = udp([9, 0, 1, 2], [9, 0, 2, 2], [port, 80]);
            let back = udp([9, 0, 2, 2], [9, 0, 1, 2], [80, port]);
            assert_eq!(queue_of(&there, 4), queue_of(&back, 4));
        }
    }

    #[test]
    fn flows_are_spread() {
        let mut counts = [0; 4];
        for port in 0..400 {
            counts[queue_of(&udp([9, 0, 1, 2], [9, 0, 2, 2], [port, 80]), 4)] += 1;
        }
        assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
    }

    #[test]
    fn any_octets_have_a_queue() {
        for length in 0..60 {
            for first in [0x00, 0x45, 0x4f, 0x60] {
                let mut packet = vec![6; length];
                if let Some(octet) = packet.first_mut() {
                    *octet = first;
                }
                assert!(queue_of(&packet, 3) < 3);
            }
        }
    }
}
