//! Cutting and joining, one against the other.

use std::net::SocketAddrV4;

use proptest::prelude::*;

use crate::checksum;
use crate::cut::{Cut, CutError};
use crate::ip::{TCP_CWR, TCP_FIN, TCP_PSH, Transport};
use crate::join::Joiner;
use crate::sample::{tcp, udp};
use crate::vnet::{Gso, VnetHeader};

const ACK: u8 = 16;

fn here() -> SocketAddrV4 {
    SocketAddrV4::new([9, 0, 1, 2].into(), 40_000)
}

fn there() -> SocketAddrV4 {
    SocketAddrV4::new([9, 0, 2, 2].into(), 80)
}

fn stream_header(gso: Gso, segment: u16) -> VnetHeader {
    VnetHeader { gso, needs_checksum: true, segment, ..VnetHeader::default() }
}

/// The pieces of a packet.
fn cut(header: VnetHeader, packet: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, CutError> {
    let mut packet = packet.to_vec();
    let cut = Cut::new(header, &mut packet, limit)?;
    Ok((0..cut.count)
        .map(|piece| {
            let mut out = vec![0xaa; cut.length_of(piece)];
            cut.write(piece, &mut out);
            out
        })
        .collect())
}

/// What the kernel is given for packets that came in this order.
fn join(packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    join_by(Joiner::default(), packets)
}

fn join_by(mut joiner: Joiner, packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>)> {
    let (mut octets, mut places) = (Vec::new(), Vec::new());
    for packet in packets {
        octets.extend_from_slice(&[0xee; 16]);
        places.push(octets.len()..octets.len() + packet.len());
        octets.extend_from_slice(packet);
    }
    for place in places {
        joiner.push(&octets, place);
    }
    joiner.finish(&mut octets);
    let whole = |join| joiner.places(join).flat_map(|place| octets[place].to_vec()).collect();
    joiner.joins().iter().map(|join| (join.header(), whole(join))).collect()
}

/// Whether the checksum of TCP or UDP is right.
fn is_intact(packet: &[u8]) -> bool {
    Transport::of(packet).is_some_and(|transport| {
        let sum = transport.pseudo_sum(packet, packet.len() - transport.network);
        checksum::finished(checksum::add(sum, &packet[transport.network..])) == [0, 0]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_stream_that_was_cut_is_joined_to_what_it_was(
        payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        segment in 500_u16..1500,
        limit in 600_usize..1500,
        sequence in any::<u32>(),
    ) {
        let packet = tcp(here(), there(), sequence, ACK | TCP_PSH, &payload);
        let pieces = cut(stream_header(Gso::Tcp4, segment), &packet, limit).expect("a stream can be cut");
        for piece in &pieces {
            prop_assert!(is_intact(piece) && piece.len() <= limit && piece.len() <= usize::from(segment) + 40);
        }
        let joined = join(&pieces);
        let payloads: Vec<u8> = joined.iter().flat_map(|(_, whole)| whole[40..].to_vec()).collect();
        prop_assert_eq!(payloads, payload);
        prop_assert_eq!(joined.len(), pieces.len().div_ceil(64));
        prop_assert_eq!(&joined[0].1[4..8], &packet[4..8]);
        for (header, whole) in joined.iter().filter(|(header, _)| header.gso != Gso::None) {
            // What was joined is cut again to the same pieces.
            let again = cut(*header, whole, usize::MAX).expect("a stream can be cut");
            prop_assert!(again.iter().all(|piece| is_intact(piece)));
        }
    }

    #[test]
    fn datagrams_are_cut_and_joined(
        payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        segment in 300_u16..1300,
    ) {
        let packet = udp(here(), there(), &payload);
        let pieces = cut(stream_header(Gso::Udp, segment), &packet, 1420).expect("the pieces fit");
        prop_assert!(pieces.iter().all(|piece| is_intact(piece)));
        let joined = join(&pieces);
        let payloads: Vec<u8> = joined.iter().flat_map(|(_, whole)| whole[28..].to_vec()).collect();
        prop_assert_eq!(payloads, payload);
    }

    #[test]
    fn whatever_comes_is_handed_over(
        packets in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                (0_u32..4, 0_usize..30, any::<bool>()).prop_map(|(sequence, length, is_udp)| {
                    let payload = vec![7; length];
                    if is_udp { udp(here(), there(), &payload) } else { tcp(here(), there(), sequence * 10, ACK, &payload) }
                }),
            ],
            0..40,
        )
    ) {
        let joined = join(&packets);
        prop_assert!(joined.len() <= packets.len());
        let before: usize = packets.iter().map(Vec::len).sum();
        let after: usize = joined.iter().map(|(_, whole)| whole.len()).sum();
        prop_assert!(after <= before);
    }
}

#[test]
fn flows_are_joined_apart_and_keep_their_order() {
    let other = SocketAddrV4::new([9, 0, 1, 3].into(), 40_000);
    let packets = [
        tcp(here(), there(), 0, ACK, &[1; 100]),
        tcp(other, there(), 50, ACK, &[2; 100]),
        tcp(here(), there(), 100, ACK, &[3; 100]),
        tcp(other, there(), 150, ACK, &[4; 40]),
        tcp(other, there(), 190, ACK, &[5; 100]),
        tcp(here(), there(), 200, ACK, &[6; 100]),
    ];
    let lengths: Vec<usize> = join(&packets).iter().map(|(_, whole)| whole.len() - 40).collect();
    assert_eq!(lengths, [300, 140, 100]);
}

#[test]
fn what_is_special_is_handed_over_alone() {
    for special in [
        tcp(here(), there(), 100, ACK | TCP_FIN, &[2; 100]),
        tcp(here(), there(), 100, ACK, &[]),
        tcp(here(), there(), 150, ACK, &[2; 100]),
        tcp(here(), there(), 100, ACK, &[2; 101]),
    ] {
        let joined = join(&[tcp(here(), there(), 0, ACK, &[1; 100]), special.clone()]);
        assert_eq!(joined.len(), 2);
        assert_eq!(joined[1], (VnetHeader::default(), special));
    }
}

#[test]
fn checksums_of_packets_that_are_joined_are_not_looked_at() {
    let packets = [0, 100].map(|sequence| tcp(here(), there(), sequence, ACK, &[1; 100]));
    let damaged = packets.clone().map(|mut packet| {
        packet[36] ^= 1;
        packet
    });
    assert!(damaged.iter().all(|packet| !is_intact(packet)));
    assert_eq!(join(&damaged), join(&packets));
    // Alone, a packet is what the peer sent, and the kernel looks at it.
    assert_eq!(join(&damaged[..1]), [(VnetHeader::default(), damaged[0].clone())]);
}

/// The sequence number and the flags of a piece without options, whose other headers are checked.
fn stream_part(piece: &[u8], number: u16) -> (u32, u8) {
    assert_eq!(piece[2..4], (piece.len() as u16).to_be_bytes());
    assert_eq!(piece[4..6], number.to_be_bytes());
    assert_eq!(checksum::finished(checksum::add(0, &piece[..20])), [0, 0], "the IP header's checksum");
    assert!(is_intact(piece), "the TCP checksum");
    (u32::from_be_bytes([piece[24], piece[25], piece[26], piece[27]]), piece[33])
}

#[test]
fn each_piece_is_a_packet_of_its_own() {
    let all = ACK | TCP_PSH | TCP_FIN | TCP_CWR;
    let packet = tcp(here(), there(), u32::MAX - 1500, all, &[5; 2500]);
    let pieces = cut(stream_header(Gso::Tcp4, 1000), &packet, 1420).expect("a stream can be cut");
    let parts: Vec<_> = (7..).zip(&pieces).map(|(number, piece)| stream_part(piece, number)).collect();
    let expected = [(u32::MAX - 1500, ACK | TCP_CWR), (u32::MAX - 500, ACK), (499, ACK | TCP_PSH | TCP_FIN)];
    assert_eq!(parts, expected);
}

#[test]
fn streams_and_datagrams_of_the_sixth_family_are_cut() {
    for (protocol, gso, header) in [(6, Gso::Tcp6, 20), (17, Gso::Udp, 8)] {
        let length = header + 2500_u16;
        let mut packet = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 64], &[3; 32]].concat();
        packet.extend(&[0x50; 20][..usize::from(header)]);
        packet.extend(&[9; 2500]);
        let pieces = cut(stream_header(gso, 1000), &packet, 1420).expect("the pieces fit");
        let lengths: Vec<u16> = pieces.iter().map(|p| u16::from_be_bytes([p[4], p[5]])).collect();
        assert_eq!(lengths, [header + 1000, header + 1000, header + 500]);
        for piece in &pieces {
            assert_eq!(piece.len(), 40 + usize::from(u16::from_be_bytes([piece[4], piece[5]])));
            assert!(is_intact(piece), "{gso:?}");
        }
    }
}

#[test]
fn datagrams_stay_as_they_are_where_the_kernel_takes_no_joined_ones() {
    let datagrams = [1, 2, 3].map(|number| udp(here(), there(), &[number; 100]));
    let stream = [7, 107].map(|sequence| tcp(here(), there(), sequence, ACK, &[5; 100]));
    let packets = [&datagrams[..], &stream].concat();
    assert_eq!(join(&packets).len(), 2);
    let kept = join_by(Joiner::new(false), &packets);
    let kinds: Vec<_> = kept.iter().map(|(header, _)| header.gso).collect();
    assert_eq!(kinds, [Gso::None, Gso::None, Gso::None, Gso::Tcp4]);
    assert!(kept.iter().zip(&datagrams).all(|((_, whole), datagram)| whole == datagram));
}

#[test]
fn a_packet_that_fits_stays_as_it_is() {
    let packet = tcp(here(), there(), 7, ACK, b"hello");
    assert_eq!(cut(VnetHeader::default(), &packet, 1420), Ok(vec![packet]));
}

#[test]
fn a_long_packet_of_a_stream_is_cut_and_a_datagram_refused() {
    let packet = tcp(here(), there(), 7, ACK, &[5; 1380]);
    let pieces = cut(VnetHeader::default(), &packet, 1236).expect("a stream can be cut");
    assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [1236, 40 + 1380 - 1196]);
    assert!(pieces.iter().all(|piece| is_intact(piece)));
    assert_eq!(cut(VnetHeader::default(), &udp(here(), there(), &[5; 1380]), 1236), Err(CutError::TooBig));
}

#[test]
fn an_open_checksum_is_closed() {
    let packet = udp(here(), there(), b"hello");
    let mut open = packet.clone();
    let transport = Transport::of(&packet).expect("a datagram");
    let pseudo = checksum::folded(transport.pseudo_sum(&packet, packet.len() - 20));
    open[26..28].copy_from_slice(&pseudo);
    let header =
        VnetHeader { needs_checksum: true, checksum_start: 20, checksum_offset: 6, ..VnetHeader::default() };
    assert_eq!(cut(header, &open, 1420), Ok(vec![packet]));
}
