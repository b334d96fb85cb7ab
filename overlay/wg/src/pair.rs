//! Two ends of a tunnel without sockets, devices and threads, on a time that the test lets pass.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::{Control, Output};
use crate::entry::Entry;
use crate::join::Joiner;
use crate::key::PrivateKey;
use crate::message::{DATA_HEADER_LENGTH, DATA_OVERHEAD};
use crate::session::Session;
use crate::settings::{Limits, MTU_DEFAULT, OwnKeys, PeerSettings, Peers};
use crate::socket::{Incoming, ReceivedBatch};
use crate::tables::Tables;

/// A packet from the first end to the second one, of a protocol that nobody has.
pub(crate) const HELLO: &[u8] = &[0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 9, 0, 1, 5, 9, 0, 2, 5];

/// One end.
pub(crate) struct End {
    pub(crate) tables: Arc<Tables>,
    pub(crate) control: Control,
    pub(crate) key: PrivateKey,
    pub(crate) address: SocketAddr,
    /// Packets for this end's kernel.
    pub(crate) delivered: Vec<Vec<u8>>,
    /// Datagrams on their way to the other end.
    pub(crate) wire: Vec<Vec<u8>>,
    entry: Entry,
    received: ReceivedBatch,
}

/// Both ends: `9.0.1.0/24` is at the first, `9.0.2.0/24` at the second.
pub(crate) struct Pair {
    pub(crate) ends: [End; 2],
    pub(crate) now: Instant,
}

impl End {
    fn new(number: u8, limits: Limits, now: Instant) -> Self {
        // The same keys each time, so that a failure can be repeated.
        let key = PrivateKey::from([number; 32]);
        let tables = Arc::new(Tables::new(limits, now).expect("a descriptor"));
        let keys = OwnKeys { primary: key.clone(), other: None };
        Self {
            control: Control::new(tables.clone(), MTU_DEFAULT, &keys, now),
            tables,
            key,
            address: ([192, 0, 2, number], 51820).into(),
            delivered: Vec::new(),
            wire: Vec::new(),
            entry: Entry::default(),
            received: ReceivedBatch::default(),
        }
    }

    /// How the other end knows this one.
    pub(crate) fn settings(&self) -> PeerSettings {
        let [_, _, _, number] = match self.address.ip() {
            std::net::IpAddr::V4(address) => address.octets(),
            std::net::IpAddr::V6(_) => [0; 4],
        };
        PeerSettings {
            key: self.key.public(),
            other_key: None,
            endpoint: Some(self.address),
            addresses: vec![format!("9.0.{number}.0/24").parse().expect("a range")],
            keepalive: None,
        }
    }

    /// Takes datagrams in, as one message of the system.
    pub(crate) fn receive(&mut self, datagrams: &[u8], segment: usize, from: SocketAddr, now: Instant) {
        self.received.octets[..datagrams.len()].copy_from_slice(datagrams);
        self.received.messages.clear();
        self.received.messages.push(Incoming { start: 0, length: datagrams.len(), segment, from });
        let mut joiner = Joiner::default();
        self.entry.admit(&self.tables, &mut self.received, &mut joiner, now);
        joiner.finish(&mut self.received.octets);
        for join in joiner.joins() {
            let places = joiner.places(join).flat_map(|place| self.received.octets[place].to_vec());
            self.delivered.push(places.collect());
        }
    }

    /// Sends a packet to the other end, or keeps it until there is a session.
    pub(crate) fn send(&mut self, packet: &[u8], now: Instant) {
        let peers = self.tables.peers.load_full();
        let peer = peers.values().next().expect("a peer");
        match peer.session.load_full() {
            Some(session) => {
                self.seal(&session, packet, now);
                let time = self.tables.clock.milliseconds(now);
                peer.times.data_sent.store(time, std::sync::atomic::Ordering::Relaxed);
                if session.is_due(&self.tables.limits, now) {
                    self.tables.want_handshake(peer);
                }
            }
            None => {
                peer.wait(packet);
                self.tables.want_handshake(peer);
            }
        }
    }

    fn seal(&mut self, session: &Session, packet: &[u8], now: Instant) {
        let Some(counter) = session.take_counters(1) else {
            return;
        };
        let mut message = vec![0; packet.len() + DATA_OVERHEAD];
        message[DATA_HEADER_LENGTH..DATA_HEADER_LENGTH + packet.len()].copy_from_slice(packet);
        session.write_header(counter, &mut message);
        let length = message.len();
        session.seal(&mut message, length);
        let time = self.tables.clock.milliseconds(now);
        session.peer.times.sent.store(time, std::sync::atomic::Ordering::Relaxed);
        self.wire.push(message);
    }

    /// Does what the control thread does.
    pub(crate) fn settle(&mut self, now: Instant) {
        while let Some((event, waiting)) = self.tables.events.pop() {
            self.control.handle(event, waiting, now);
        }
        self.control.tick(now);
        for output in std::mem::take(&mut self.control.outbox) {
            match output {
                Output::Message { octets, length, .. } => self.wire.push(octets[..length].to_vec()),
                Output::Keepalive { session } => self.seal(&session, &[], now),
                Output::Waiting { session } => {
                    let waiting = session.peer.take_waiting();
                    if waiting.is_empty() && session.is_initiator {
                        self.seal(&session, &[], now);
                    }
                    for packet in waiting {
                        self.seal(&session, &packet, now);
                    }
                }
                Output::Probe { session, probing } => {
                    let mut packet = vec![0; probing.packet_length()];
                    probing.write(&mut packet);
                    self.seal(&session, &packet, now);
                }
            }
        }
    }
}

impl Pair {
    pub(crate) fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let mut pair = Self { ends: [1, 2].map(|number| End::new(number, limits, now)), now };
        for end in 0..2 {
            let peers = Peers::from([("other".to_owned(), pair.ends[1 - end].settings())]);
            pair.ends[end].control.set_peers(peers, now);
        }
        pair
    }

    /// Carries datagrams until there are none. What was carried, with the end that it came from.
    pub(crate) fn exchange(&mut self) -> Vec<(usize, Vec<u8>)> {
        let mut carried = Vec::new();
        loop {
            for end in &mut self.ends {
                end.settle(self.now);
            }
            let wires = [0, 1].map(|end: usize| std::mem::take(&mut self.ends[end].wire));
            if wires.iter().all(Vec::is_empty) {
                return carried;
            }
            for (end, wire) in wires.into_iter().enumerate() {
                let from = self.ends[end].address;
                for datagram in wire {
                    self.ends[1 - end].receive(&datagram, datagram.len(), from, self.now);
                    carried.push((end, datagram));
                }
            }
        }
    }

    /// Lets time pass, in steps of a timer.
    #[cfg(test)]
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100).min(end - self.now);
            self.exchange();
        }
    }

    /// Sends a packet from an end and carries everything.
    pub(crate) fn send(&mut self, end: usize, packet: &[u8]) {
        self.ends[end].send(packet, self.now);
        self.exchange();
    }
}
