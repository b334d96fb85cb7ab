//! The loaded programs as functions: what would become of a packet (BPF_PROG_TEST_RUN).

use std::net::SocketAddr;
use std::time::Duration;

use aya::programs::{TestRun as _, TestRunOptions};
use mesonet_ebpf_abi::{Difference, LOOPBACK_INTERFACE, Place};
use mesonet_model::Protocol;

use super::{PacketBalancer, PacketError, PacketHook, programs};

/// Where fields of the contexts are (linux/bpf.h).
const XDP_CONTEXT: usize = 24;
const XDP_DATA_END: usize = 4;
const XDP_INTERFACE: usize = 12;
const BUFFER_CONTEXT: usize = 192;
const BUFFER_INTERFACE: usize = 40;

/// A packet may grow by the header of a tunnel.
const ROOM: usize = 256;

/// What the first packet of a flow asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketQuestion {
    /// The protocol.
    pub protocol: Protocol,
    /// The client.
    pub from: SocketAddr,
    /// The virtual address, or any other.
    pub to: SocketAddr,
}

/// What the loaded program does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PacketAnswer {
    /// It is not touched.
    Passes,
    /// It goes nowhere, since no endpoint takes it.
    Dropped,
    /// It goes to an endpoint.
    Goes {
        /// The address that the endpoint sees.
        from: SocketAddr,
        /// The endpoint.
        to: SocketAddr,
    },
}

/// What became of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketRun {
    /// The program's verdict, a number of XDP or tc.
    pub verdict: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// Time for one run, the mean of all.
    pub time: Duration,
}

impl PacketBalancer {
    /// Asks the loaded program where a new flow would go. It leaves nothing behind: no flow is noted, nothing is counted.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn trace(&mut self, question: &PacketQuestion) -> Result<PacketAnswer, PacketError> {
        let hook = PacketHook::In;
        let packet = first_packet(question);
        let run = self.run(hook, &packet, LOOPBACK_INTERFACE, 1)?;
        Ok(if hook.is_drop(run.verdict) {
            PacketAnswer::Dropped
        } else if run.packet == packet {
            PacketAnswer::Passes
        } else {
            match ends(&run.packet) {
                Some((from, to)) => PacketAnswer::Goes { from, to },
                None => PacketAnswer::Passes,
            }
        })
    }

    /// Runs a loaded program on a packet that seems to have come in or to go out through an interface of this network
    /// namespace, several times. All but the packet is as real: flows are noted and packets counted.
    ///
    /// # Errors
    /// When the kernel does not run it.
    pub fn run(
        &mut self,
        hook: PacketHook,
        packet: &[u8],
        interface: u32,
        times: u32,
    ) -> Result<PacketRun, PacketError> {
        let mut after = vec![0; packet.len() + ROOM];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut after);
        options.repeat = times;
        let (mut frame, mut buffer) = ([0; XDP_CONTEXT], [0; BUFFER_CONTEXT]);
        // Packets are shorter than 4 GiB.
        frame[XDP_DATA_END..][..4].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        frame[XDP_INTERFACE..][..4].copy_from_slice(&interface.to_ne_bytes());
        buffer[BUFFER_INTERFACE..][..4].copy_from_slice(&interface.to_ne_bytes());
        let is_elsewhere = interface != LOOPBACK_INTERFACE;
        let failed = |source| PacketError::Run { hook: hook.program(), source };
        programs::load_one(&mut self.ebpf, hook)?;
        let result = match hook {
            PacketHook::Xdp => {
                options.ctx_in = is_elsewhere.then_some(&frame);
                programs::xdp(&mut self.ebpf)?.test_run(options).map_err(failed)?
            }
            _ => {
                options.ctx_in = is_elsewhere.then_some(&buffer);
                programs::classifier(&mut self.ebpf, hook.program())?.test_run(options).map_err(failed)?
            }
        };
        after.truncate(result.data_size_out as usize);
        Ok(PacketRun { verdict: result.return_value, packet: after, time: result.duration })
    }
}

impl PacketHook {
    /// The verdict that means that the rest of the kernel goes on with the packet.
    pub fn pass(self) -> u32 {
        const XDP_PASS: u32 = 2;
        const TC_ACT_UNSPEC: u32 = u32::MAX;
        if self == Self::Xdp { XDP_PASS } else { TC_ACT_UNSPEC }
    }

    /// Whether a verdict means that the packet goes nowhere.
    pub fn is_drop(self, verdict: u32) -> bool {
        const XDP_DROP: u32 = 1;
        const TC_ACT_SHOT: u32 = 2;
        verdict == if self == Self::Xdp { XDP_DROP } else { TC_ACT_SHOT }
    }
}

/// The first packet of a flow, with headers of Ethernet and nothing in it.
fn first_packet(question: &PacketQuestion) -> Vec<u8> {
    let (from, to) = (question.from, question.to);
    let transport = match question.protocol {
        Protocol::Tcp => syn(from.port(), to.port()),
        Protocol::Udp => {
            let mut header = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
            header.extend([0, 8, 0, 0]);
            header
        }
    };
    let number = match question.protocol {
        Protocol::Tcp => mesonet_ebpf_abi::TCP,
        Protocol::Udp => mesonet_ebpf_abi::UDP,
    };
    let mut packet = vec![0; 12];
    match (Place::from(from), Place::from(to)) {
        (source, target) if source.is_ipv4() && target.is_ipv4() => {
            packet.extend([0x08, 0x00]);
            let total = (20 + transport.len()) as u16;
            let mut header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            header[2..4].copy_from_slice(&total.to_be_bytes());
            header[12..16].copy_from_slice(&source.address[3].to_ne_bytes());
            header[16..20].copy_from_slice(&target.address[3].to_ne_bytes());
            let sum = header.chunks_exact(4).fold(Difference::default(), |sum, word| {
                sum.add(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))
            });
            header[10..12].copy_from_slice(&sum.apply(0xffff).to_ne_bytes());
            packet.extend(header);
        }
        (source, target) => {
            packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            packet.extend((transport.len() as u16).to_be_bytes());
            packet.extend([number, 64]);
            packet.extend(source.address.iter().chain(&target.address).flat_map(|word| word.to_ne_bytes()));
        }
    }
    packet.extend(transport);
    packet
}

fn syn(from: u16, to: u16) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// The addresses and ports of a packet like the one above.
fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let word = |at: usize| {
        let octets = packet.get(at..at + 4)?;
        Some(u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]))
    };
    let port = |at: usize| {
        let octets = packet.get(at..at + 2)?;
        Some(u32::from(u16::from_ne_bytes([octets[0], octets[1]])))
    };
    let address = |at: usize| Some([word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?]);
    let (from, to) = if packet.get(12..14)? == [0x08, 0x00] {
        (Place::ipv4(word(26)?, port(34)?), Place::ipv4(word(30)?, port(36)?))
    } else {
        (Place { address: address(22)?, port: port(54)? }, Place { address: address(38)?, port: port(56)? })
    };
    Some((from.into(), to.into()))
}
