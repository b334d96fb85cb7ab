//! Packets for tests.

use std::net::SocketAddrV4;

use crate::checksum;
use crate::ip::{TCP, Transport, UDP, write_length};

/// A TCP packet with a right checksum.
pub(crate) fn tcp(from: SocketAddrV4, to: SocketAddrV4, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = network(from, to, TCP);
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 9, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    finished(packet, payload)
}

/// A UDP packet with a right checksum.
pub(crate) fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut packet = network(from, to, UDP);
    packet.extend_from_slice(&(payload.len() as u16 + 8).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    finished(packet, payload)
}

fn network(from: SocketAddrV4, to: SocketAddrV4, protocol: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 64, protocol, 0, 0];
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    packet.extend_from_slice(&from.port().to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet
}

fn finished(mut packet: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    packet.extend_from_slice(payload);
    let length = packet.len();
    write_length(&mut packet, true, length);
    let transport = Transport::of(&packet).expect("a packet with ports");
    let at = transport.checksum_at();
    let sum = transport.pseudo_sum(&packet, length - transport.network);
    let sum = checksum::finished(checksum::add(sum, &packet[transport.network..]));
    packet[at..at + 2].copy_from_slice(&sum);
    packet
}
