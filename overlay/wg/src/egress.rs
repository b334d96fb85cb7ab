//! Packets on their way to peers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::cut::{Cut, CutError};
use crate::device::{Device, PACKET_ROOM};
use crate::drops::Drop;
use crate::ip::Outline;
use crate::message::{DATA_OVERHEAD, PADDING};
use crate::peer::Peer;
use crate::send_batch::SendBatch;
use crate::session::Session;
use crate::socket::{UdpSocket, mapped};
use crate::tables::{Event, Tables};
use crate::too_big::refusal;
use crate::vnet::{VNET_LENGTH, VnetHeader};

/// Packets that are read before messages are sent: so many that a message is full, so few that the first one does
/// not wait long.
const READS_MAX: usize = 32;

/// Packets longer than this are not padded: there is little to hide, and less room.
const PADDED_MAX: usize = 1408;

/// Reads a queue of the device, encrypts, sends.
#[derive(Debug)]
pub(crate) struct Egress {
    queue: usize,
    plain: Box<[u8]>,
    sealer: Sealer,
}

impl Egress {
    pub(crate) fn new(queue: usize, cuts: bool) -> Self {
        Self { queue, plain: vec![0; PACKET_ROOM].into_boxed_slice(), sealer: Sealer::new(cuts) }
    }

    /// Moves what the kernel has for peers. Whether that was anything.
    pub(crate) fn run(&mut self, tables: &Tables, device: &Device, socket: &UdpSocket, now: Instant) -> bool {
        let mut moved = false;
        for _ in 0..READS_MAX {
            let packet = match device.read(self.queue, &mut self.plain) {
                Ok(packet) => packet,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "A packet could not be read from the device");
                    break;
                }
            };
            moved = true;
            if let Some(answer) = self.sealer.packet(tables, socket, packet, now) {
                let _ = device.write(self.queue, VnetHeader::default(), std::iter::once(&answer[..]));
            }
        }
        self.sealer.flush(tables, socket);
        moved
    }
}

/// Finds the peer of packets, and encrypts them into a batch.
#[derive(Debug)]
pub(crate) struct Sealer {
    batch: SendBatch,
}

impl Sealer {
    pub(crate) fn new(cuts: bool) -> Self {
        Self { batch: SendBatch::new(cuts) }
    }

    /// Takes a packet with its header. Gives what its sender is told, if it does not fit.
    pub(crate) fn packet(
        &mut self,
        tables: &Tables,
        socket: &UdpSocket,
        octets: &mut [u8],
        now: Instant,
    ) -> Option<Vec<u8>> {
        let Some((header, outline)) = octets
            .split_first_chunk()
            .and_then(|(header, packet)| Some((VnetHeader::read(header)?, Outline::of(packet)?)))
        else {
            tables.drops.count(Drop::Malformed);
            return None;
        };
        let addresses = tables.addresses.load();
        let Some(peer) = addresses.lookup(outline.destination) else {
            tables.drops.count(Drop::NoPeer);
            return None;
        };
        let session = peer.session.load();
        let Some(session) = session.as_ref().filter(|session| {
            now.saturating_duration_since(session.established) < tables.limits.reject_after
        }) else {
            peer.wait(octets);
            tables.want_handshake(peer);
            return None;
        };
        let limit = usize::from(peer.mtu.load(Ordering::Relaxed));
        let limits = if peer.is_mtu_known.load(Ordering::Relaxed) { [limit; 2] } else { [limit, usize::MAX] };
        for limit in limits {
            match Cut::new(header, &mut octets[VNET_LENGTH..], limit) {
                Ok(cut) => {
                    self.seal(tables, socket, session, &cut, limit, now);
                    return None;
                }
                Err(CutError::Malformed) => {
                    tables.drops.count(Drop::Malformed);
                    return None;
                }
                Err(CutError::TooBig) => {}
            }
        }
        peer.drops.count(Drop::TooBig);
        refusal(&octets[VNET_LENGTH..], limit)
    }

    /// Puts the pieces of a packet where they are encrypted and sent from.
    fn seal(
        &mut self,
        tables: &Tables,
        socket: &UdpSocket,
        session: &Arc<Session>,
        cut: &Cut<'_>,
        limit: usize,
        now: Instant,
    ) {
        let peer = &session.peer;
        let Some(to) = peer.endpoint.load().as_ref().map(|endpoint| mapped(**endpoint)) else {
            peer.drops.count(Drop::NoEndpoint);
            return;
        };
        let Some(counter) = session.take_counters(cut.count as u64) else {
            tables.want_handshake(peer);
            peer.drops.count(Drop::QueueFull);
            return;
        };
        // A packet that is sent in two parts becomes two at the other end.
        if !self.batch.has_room(cut.count, cut.length_of(0)) {
            self.flush(tables, socket);
        }
        let mut octets = 0;
        for piece in 0..cut.count {
            let length = cut.length_of(piece);
            let padded = length.next_multiple_of(PADDING).min(limit.min(PADDED_MAX).max(length));
            if !self.batch.has_room(1, padded) {
                self.flush(tables, socket);
            }
            let place = self.batch.place(session, counter + piece as u64, &to, padded);
            let (packet, padding) = place.split_at_mut(length);
            cut.write(piece, packet);
            padding.fill(0);
            octets += length;
        }
        peer.sent.add(cut.count as u64, octets as u64);
        let time = tables.clock.milliseconds(now);
        peer.times.sent.store(time, Ordering::Relaxed);
        peer.times.data_sent.store(time, Ordering::Relaxed);
        if session.is_due(&tables.limits, now) {
            tables.want_handshake(peer);
        }
    }

    /// Sends something that is no packet of anybody: a question about the path, or nothing at all.
    pub(crate) fn control(
        &mut self,
        tables: &Tables,
        socket: &UdpSocket,
        session: &Arc<Session>,
        length: usize,
        write: impl FnOnce(&mut [u8]),
        now: Instant,
    ) {
        let peer = &session.peer;
        let Some(to) = peer.endpoint.load().as_ref().map(|endpoint| mapped(**endpoint)) else {
            return;
        };
        let Some(counter) = session.take_counters(1) else {
            return;
        };
        if !self.batch.has_room(1, length) {
            self.flush(tables, socket);
        }
        write(self.batch.place(session, counter, &to, length));
        peer.times.sent.store(tables.clock.milliseconds(now), Ordering::Relaxed);
    }

    /// Sends what is in the batch.
    pub(crate) fn flush(&mut self, tables: &Tables, socket: &UdpSocket) {
        if self.batch.is_empty() {
            return;
        }
        self.batch.flush(socket, |message, error| {
            let datagrams = message.length.div_ceil(message.segment) as u64;
            let peer = peer_at(tables, message.to);
            let drops = peer.as_ref().map_or(&tables.drops, |peer| &peer.drops);
            drops.add(Drop::Send, datagrams);
            if error.raw_os_error() == Some(libc::EMSGSIZE)
                && let Some(peer) = peer
            {
                tables.events.push(Event::LinkTooSmall { peer, length: message.segment - DATA_OVERHEAD });
            }
        });
    }
}

/// The peer at an address. It is only looked for when something could not be sent there.
fn peer_at(tables: &Tables, address: std::net::SocketAddrV6) -> Option<Arc<Peer>> {
    let is_there = |peer: &&Arc<Peer>| {
        peer.endpoint.load().as_ref().is_some_and(|endpoint| mapped(**endpoint) == address)
    };
    tables.peers.load().values().find(is_there).cloned()
}
