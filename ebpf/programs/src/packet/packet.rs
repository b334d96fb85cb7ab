//! A packet, whichever hook it is met at.

use mesonet_ebpf_abi::{Difference, PacketEvent, Tuple};

use crate::Action;
use crate::route::Route;

/// The family of a packet's addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// The type of its packets in link headers.
    #[inline(always)]
    pub const fn kind(self) -> u16 {
        match self {
            Self::V4 => 0x0800_u16.to_be(),
            Self::V6 => 0x86dd_u16.to_be(),
        }
    }

    /// Octets of an IP header without options.
    #[inline(always)]
    pub const fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }
}

/// A change of the checksum of TCP or UDP.
pub struct ChecksumChange {
    /// Where the checksum is.
    pub at: usize,
    /// Whether zero means that there is none.
    pub is_optional: bool,
    pub family: Family,
    /// What changes in the addresses, which only the pseudo header has.
    pub addresses: Difference,
    /// What changes in the ports.
    pub ports: Difference,
}

/// What the hooks have in common.
pub trait Packet {
    /// Octets before the IP header.
    const LINK: usize;

    /// Whether another program meets what this one leaves as it is.
    const IS_EARLY: bool;

    /// Which hook's ways these are: `Hop::XDP` or `Hop::TC`.
    const HOP: u32;

    /// Where the octets begin and end that can be looked at.
    fn bounds(&self) -> (usize, usize);

    /// The interface.
    fn interface(&self) -> u32;

    /// Octets from the IP header on, and of what a frame is padded with.
    fn length(&self) -> u32;

    /// Packets that it is on the wire.
    fn segments(&self, family: Family, protocol: u32) -> u32;

    /// Octets of the longest packet that it is on the wire, from the IP header on.
    fn longest(&self, family: Family, protocol: u32) -> u32;

    /// Whether it is of a virtual LAN.
    fn is_tagged(&self) -> bool;

    /// Makes so many octets available, if the packet has them.
    fn pull(&self, octets: usize);

    /// Updates a checksum. Octets that were looked at before have to be looked for anew.
    fn change_checksum(&self, change: &ChecksumChange) -> Result<(), PacketEvent>;

    /// Asks the kernel for the way of a packet with such addresses and of such a length out of this node, if it can be sent
    /// there from here. Returns whether other packets of the flow go the same way for now.
    fn way(&self, family: Family, tuple: &Tuple, length: u32, route: &mut Route) -> bool;

    /// Sends it.
    fn send(&self, family: Family, way: &Route) -> Action;
}

/// Octets from the IP header on, as that header says. It says none of a bundle that is too long for it.
#[inline(always)]
pub fn own_length<P: Packet>(packet: &P, family: Family) -> u32 {
    let (at, more) = match family {
        Family::V4 => (2, 0),
        Family::V6 => (4, Family::V6.header() as u32),
    };
    match read::<P, u16>(packet, P::LINK + at) {
        Ok(length) if length != 0 => u16::from_be(length) as u32 + more,
        _ => packet.length(),
    }
}

/// Where so many octets of the packet are.
#[inline(always)]
pub fn octets<P: Packet>(packet: &P, offset: usize, length: usize) -> Result<*mut u8, PacketEvent> {
    let (start, end) = packet.bounds();
    if start + offset + length > end {
        return Err(PacketEvent::Malformed);
    }
    Ok((start + offset) as *mut u8)
}

/// A part of the packet.
#[inline(always)]
pub fn at<P: Packet, T>(packet: &P, offset: usize) -> Result<*mut T, PacketEvent> {
    octets(packet, offset, size_of::<T>()).map(<*mut u8>::cast)
}

/// Reads a part of the packet.
#[inline(always)]
pub fn read<P: Packet, T: Copy>(packet: &P, offset: usize) -> Result<T, PacketEvent> {
    let pointer: *mut T = at(packet, offset)?;
    // SAFETY: within bounds; BPF has no alignment, and every value is valid for the integers that are read.
    Ok(unsafe { *pointer })
}

/// Writes a part of the packet.
#[inline(always)]
pub fn write<P: Packet, T: Copy>(packet: &P, offset: usize, value: T) -> Result<(), PacketEvent> {
    let pointer: *mut T = at(packet, offset)?;
    // SAFETY: as in `read`.
    unsafe { *pointer = value };
    Ok(())
}
