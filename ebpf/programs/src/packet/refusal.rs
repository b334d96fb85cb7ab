//! Answers to clients of services that no endpoint takes flows of: a reset of TCP, or "port unreachable" of ICMP. They
//! are what the kernel says where nobody listens, so that clients need not wait. And to those whose packets are too long.

use aya_ebpf::bindings::TC_ACT_SHOT;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use mesonet_ebpf_abi::{Difference, LOOPBACK_INTERFACE, NextProgram, PacketEvent, TCP, UDP};

use crate::buffer::Buffer;
use crate::headers::{ICMP, ICMPV6, IPV6};
use crate::packet::{Family, Packet, read, write};
use crate::scratch::scratch;
use crate::{route, tunnel};

/// Answers that each processor gives in a second. Who is not answered tries again.
const LIMIT: u64 = 1_000;

const NANOSECONDS: u64 = 1_000_000_000;

/// Octets of the header of TCP without options, and of those of UDP and ICMP.
const SEGMENT: usize = 20;
const SHORT: usize = 8;

/// How long an answer may live.
const HOPS: u8 = 64;

/// What was answered in a second.
pub struct Window {
    second: u64,
    answers: u64,
}

#[map]
static WINDOW: PerCpuArray<Window> = PerCpuArray::with_max_entries(1, 0);

/// Whether this processor may answer.
#[inline(always)]
pub fn has_room() -> bool {
    window().is_some_and(|window| window.answers < LIMIT)
}

/// Goes on with the program that tells the sender that the packet may be so long, or that nobody takes it if there is no
/// length. Returns the verdict if there is none.
#[inline(always)]
pub fn refuse<const LINK: usize>(buffer: &Buffer<LINK>, most: u32) -> i32 {
    if let Ok(scratch) = scratch() {
        // SAFETY: there is one route at a time, and this packet needs its own no more.
        unsafe { (*scratch).route.mtu = most };
        tunnel::go_on(buffer, NextProgram::Refuse);
    }
    TC_ACT_SHOT as i32
}

/// Tells the sender, by the interface that the packet has come through. Returns the verdict; nothing if nothing is told.
#[inline(always)]
pub fn tell<const LINK: usize>(buffer: &Buffer<LINK>) -> Option<i32> {
    let length = route::longest() as u16;
    if buffer.interface() == LOOPBACK_INTERFACE {
        return None;
    }
    let window = window().filter(|window| window.answers < LIMIT)?;
    window.answers += 1;
    make_answer(buffer, length).ok()?;
    // SAFETY: the helper takes any number.
    Some(unsafe { bpf_redirect(buffer.interface(), 0) } as i32)
}

/// The window of this second.
#[inline(always)]
fn window() -> Option<&'static mut Window> {
    let window = WINDOW.get_ptr_mut(0)?;
    // SAFETY: the value is this processor's own, and programs of one processor do not interrupt each other.
    let window = unsafe { &mut *window };
    // SAFETY: the helper has no arguments.
    let second = unsafe { bpf_ktime_get_coarse_ns() } / NANOSECONDS;
    if window.second != second {
        *window = Window { second, answers: 0 };
    }
    Some(window)
}

#[inline(always)]
fn make_answer<const LINK: usize>(buffer: &Buffer<LINK>, most: u16) -> Result<(), PacketEvent> {
    let is_v6 = if LINK > 0 {
        read::<_, u16>(buffer, LINK - 2)? == IPV6
    } else {
        read::<_, u8>(buffer, 0)? >> 4 == 6
    };
    if LINK > 0 && read::<_, u8>(buffer, 0)? & 1 != 0 {
        // To more than this node.
        return Err(PacketEvent::NoEndpoint);
    }
    if is_v6 { make_answer_of(buffer, Family::V6, most) } else { make_answer_of(buffer, Family::V4, most) }
}

#[inline(always)]
fn make_answer_of<const LINK: usize>(
    buffer: &Buffer<LINK>,
    family: Family,
    most: u16,
) -> Result<(), PacketEvent> {
    let ends = Ends::read(buffer, family)?;
    let protocol: u8 = match family {
        Family::V4 => read(buffer, LINK + 9)?,
        Family::V6 => read(buffer, LINK + 6)?,
    };
    match protocol {
        TCP | UDP if most != 0 => complain(buffer, family, &ends, protocol, too_long(family, most))?,
        TCP => reset(buffer, family, &ends)?,
        UDP => complain(buffer, family, &ends, UDP, unreachable(family))?,
        _ => return Err(PacketEvent::NoEndpoint),
    }
    if LINK > 0 {
        let [target, source]: [[u8; 6]; 2] = read(buffer, 0)?;
        write(buffer, 0, [source, target])?;
    }
    Ok(())
}

/// The addresses of the client and of the service; in the last words only, if they are of IPv4.
struct Ends {
    client: [u32; 4],
    service: [u32; 4],
}

impl Ends {
    #[inline(always)]
    fn read<const LINK: usize>(buffer: &Buffer<LINK>, family: Family) -> Result<Self, PacketEvent> {
        let ends = match family {
            Family::V4 => Self {
                client: [0, 0, 0, read(buffer, LINK + 12)?],
                service: [0, 0, 0, read(buffer, LINK + 16)?],
            },
            Family::V6 => Self { client: read(buffer, LINK + 8)?, service: read(buffer, LINK + 24)? },
        };
        let is_one_host = match family {
            // Neither "this network", nor loopback, nor many hosts.
            Family::V4 => !matches!(ends.client[3].to_ne_bytes()[0], 0 | 127 | 224..),
            Family::V6 => ends.client[0].to_ne_bytes()[0] != 0xff && ends.client != [0; 4],
        };
        if is_one_host && ends.client != ends.service { Ok(ends) } else { Err(PacketEvent::NoEndpoint) }
    }

    /// The sum of what an upper layer's checksum covers besides its own octets.
    #[inline(always)]
    fn pseudo(&self, protocol: u8, length: u16) -> Difference {
        let [high, low] = length.to_be_bytes();
        let sum = Difference::default().add(u32::from_ne_bytes([0, protocol, high, low]));
        let (client, service) = (&self.client, &self.service);
        let sum = sum.add(client[0]).add(client[1]).add(client[2]).add(client[3]);
        sum.add(service[0]).add(service[1]).add(service[2]).add(service[3])
    }

    /// Writes an IP header from the service to the client.
    #[inline(always)]
    fn write<const LINK: usize>(
        &self,
        buffer: &Buffer<LINK>,
        family: Family,
        protocol: u8,
        length: u16,
    ) -> Result<(), PacketEvent> {
        match family {
            Family::V4 => {
                let [high, low] = (Family::V4.header() as u16 + length).to_be_bytes();
                let words = [
                    u32::from_ne_bytes([0x45, 0, high, low]),
                    // May not be cut to pieces, so that it needs no number.
                    u32::from_ne_bytes([0, 0, 0x40, 0]),
                    u32::from_ne_bytes([HOPS, protocol, 0, 0]),
                    self.service[3],
                    self.client[3],
                ];
                write(buffer, LINK, words)?;
                write(buffer, LINK + 10, sum(&words).apply(!0))
            }
            Family::V6 => {
                let [high, low] = length.to_be_bytes();
                let words =
                    [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([high, low, protocol, HOPS])];
                write(buffer, LINK, words)?;
                write(buffer, LINK + 8, self.service)?;
                write(buffer, LINK + 24, self.client)
            }
        }
    }
}

/// Makes a segment of TCP the reset that answers it (RFC 9293 §3.10.7.1).
#[inline(always)]
fn reset<const LINK: usize>(buffer: &Buffer<LINK>, family: Family, ends: &Ends) -> Result<(), PacketEvent> {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let start = LINK + family.header();
    let [ports, sequence, acknowledgment]: [u32; 3] = read(buffer, start)?;
    let [offset, flags]: [u8; 2] = read(buffer, start + 12)?;
    let length = match family {
        Family::V4 => u16::from_be(read(buffer, LINK + 2)?).wrapping_sub(Family::V4.header() as u16),
        Family::V6 => u16::from_be(read(buffer, LINK + 4)?),
    };
    let header = (offset >> 4) as u16 * 4;
    if flags & RST != 0 || (header as usize) < SEGMENT || header > length {
        return Err(PacketEvent::NoEndpoint);
    }
    let (sequence, acknowledgment, flags) = if flags & ACK != 0 {
        (acknowledgment, 0, RST)
    } else {
        let controls = (flags & SYN != 0) as u32 + (flags & FIN != 0) as u32;
        let next = u32::from_be(sequence).wrapping_add((length - header) as u32).wrapping_add(controls);
        (0, next.to_be(), RST | ACK)
    };
    trim(buffer, start + SEGMENT)?;
    let words = [
        ports.rotate_left(16),
        sequence,
        acknowledgment,
        u32::from_ne_bytes([(SEGMENT as u8 / 4) << 4, flags, 0, 0]),
        0,
    ];
    write(buffer, start, words)?;
    let pseudo = ends.pseudo(TCP, SEGMENT as u16);
    let checksum = if is_summed_later(buffer, start + 16)? {
        // Of what is not in the segment.
        !pseudo.apply(!0)
    } else {
        pseudo.add(sum(&words).bits()).apply(!0)
    };
    write(buffer, start + 16, checksum)?;
    ends.write(buffer, family, TCP, SEGMENT as u16)
}

/// That nobody takes a datagram: how an error of ICMP begins.
#[inline(always)]
fn unreachable(family: Family) -> [u32; 2] {
    match family {
        Family::V4 => [u32::from_ne_bytes([3, 3, 0, 0]), 0],
        Family::V6 => [u32::from_ne_bytes([1, 4, 0, 0]), 0],
    }
}

/// That a packet is longer than so many octets.
#[inline(always)]
fn too_long(family: Family, most: u16) -> [u32; 2] {
    let [high, low] = most.to_be_bytes();
    let length = u32::from_ne_bytes([0, 0, high, low]);
    match family {
        Family::V4 => [u32::from_ne_bytes([3, 4, 0, 0]), length],
        Family::V6 => [u32::from_ne_bytes([2, 0, 0, 0]), length],
    }
}

/// Makes a packet the error that answers it, with the packet's headers in it.
#[inline(always)]
fn complain<const LINK: usize>(
    buffer: &Buffer<LINK>,
    family: Family,
    ends: &Ends,
    protocol: u8,
    message: [u32; 2],
) -> Result<(), PacketEvent> {
    let start = LINK + family.header();
    let (kept, checksum_at) = if protocol == TCP { (SEGMENT, start + 16) } else { (SHORT, start + 6) };
    trim(buffer, start + kept)?;
    let its_octets = if protocol == TCP {
        sum(&read::<_, [u32; SEGMENT / 4]>(buffer, start)?)
    } else {
        sum(&read::<_, [u32; SHORT / 4]>(buffer, start)?)
    };
    let its_checksum: u16 = read(buffer, checksum_at)?;
    let embedded = if is_summed_later(buffer, checksum_at)? {
        // Then the packet's words and what its checksum covers besides them come to nothing.
        Difference::default().add(!(its_checksum as u32))
    } else {
        its_octets
    };
    write(buffer, checksum_at, its_checksum)?;
    let header = match family {
        Family::V4 => sum(&read::<_, [u32; 5]>(buffer, LINK)?),
        Family::V6 => sum(&read::<_, [u32; 10]>(buffer, LINK)?),
    };
    let icmp = match family {
        Family::V4 => ICMP,
        Family::V6 => ICMPV6,
    };
    let length = (SHORT + family.header() + kept) as u16;
    let room = family.header() + SHORT;
    // SAFETY: the helper checks its arguments.
    if unsafe { bpf_skb_adjust_room(buffer.0.skb.skb, room as i32, BPF_ADJ_ROOM_MAC, 0) } != 0 {
        return Err(PacketEvent::NoEndpoint);
    }
    let all = sum(&message).add(header.bits()).add(embedded.bits());
    let all = match family {
        Family::V4 => all,
        Family::V6 => all.add(ends.pseudo(ICMPV6, length).bits()),
    };
    write(buffer, start, message)?;
    write(buffer, start + 2, all.apply(!0))?;
    ends.write(buffer, family, icmp, length)
}

/// Cuts off what follows.
#[inline(always)]
fn trim<const LINK: usize>(buffer: &Buffer<LINK>, length: usize) -> Result<(), PacketEvent> {
    // SAFETY: the helper checks its arguments.
    match unsafe { bpf_skb_change_tail(buffer.0.skb.skb, length as u32, 0) } {
        0 => Ok(()),
        _ => Err(PacketEvent::NoEndpoint),
    }
}

/// Whether the kernel or a network card will sum up the octets from the transport's header on and put the checksum in
/// its place, where the sum of the rest stands until then. Overwrites that place.
#[inline(always)]
fn is_summed_later<const LINK: usize>(buffer: &Buffer<LINK>, at: usize) -> Result<bool, PacketEvent> {
    write(buffer, at, 0_u16)?;
    // A change of octets is no matter then, and is one of the checksum else.
    // SAFETY: the helper checks its arguments.
    unsafe { bpf_l4_csum_replace(buffer.0.skb.skb, at as u32, 0, 1, 0) };
    Ok(read::<_, u16>(buffer, at)? == 0)
}

#[inline(always)]
fn sum<const WORDS: usize>(words: &[u32; WORDS]) -> Difference {
    let mut sum = Difference::default();
    let mut at = 0;
    while at < WORDS {
        sum = sum.add(words[at]);
        at += 1;
    }
    sum
}
