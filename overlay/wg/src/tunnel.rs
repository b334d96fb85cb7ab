//! The tunnel: its threads, and what its owner tells and asks it.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesonet_netlink::NetlinkError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use tokio::sync::watch;

use crate::control::{Control, Output};
use crate::device::{Device, DeviceError};
use crate::drops::Drop as Dropped;
use crate::egress::{Egress, Sealer};
use crate::ingress::{Ingress, Turns};
use crate::settings::{Offloads, OwnKeys, Peers, TunnelSettings};
use crate::socket::UdpSocket;
use crate::stats::{PeerStats, TunnelStats};
use crate::tables::{Tables, calm, new_signal, wake};

/// Events that are handled before their answers are sent and timers are looked at.
const EVENTS_PER_TURN: usize = 64;

/// Why there is no tunnel.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no socket.
    #[error("UDP port {port} for the overlay cannot be had")]
    Socket {
        /// Which one.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no more threads or descriptors.
    #[error("the overlay's threads cannot be started")]
    Threads(#[source] io::Error),
}

/// An encrypted tunnel to other nodes. It ends when it is dropped, and its device stays.
#[derive(Debug)]
pub struct Tunnel {
    shared: Arc<Shared>,
    control: Arc<Mutex<Control>>,
    threads: Vec<JoinHandle<()>>,
}

/// What all threads use.
#[derive(Debug)]
struct Shared {
    tables: Arc<Tables>,
    device: Device,
    socket: UdpSocket,
    offloads: Offloads,
    turns: Turns,
    /// How often something changed that the owner may want to act on.
    changes: watch::Sender<u64>,
    /// Whether somebody removed the device.
    is_device_gone: AtomicBool,
    /// Readable once the tunnel ends.
    end: std::os::fd::OwnedFd,
}

impl Tunnel {
    /// Opens a tunnel, without peers yet.
    pub fn open(settings: &TunnelSettings) -> Result<Self, OpenError> {
        let now = Instant::now();
        let workers = settings.workers.max(1);
        let device = Device::open(&settings.device, workers, settings.mtu, settings.offloads)?;
        let socket = UdpSocket::bind(settings.port, settings.offloads.outside)
            .map_err(|source| OpenError::Socket { port: settings.port, source })?;
        let offloads = Offloads { outside: socket.joins && socket.cuts, ..device.offloads() };
        if offloads == settings.offloads {
            tracing::info!(device = settings.device, ?offloads, workers, "The tunnel is open");
        } else {
            tracing::warn!(device = settings.device, ?offloads, workers, "The kernel lacks offloads");
        }
        let tables = Arc::new(Tables::new(settings.limits, now).map_err(OpenError::Threads)?);
        let control = Control::new(tables.clone(), settings.mtu, &settings.keys, now);
        let shared = Arc::new(Shared {
            tables,
            device,
            socket,
            offloads,
            turns: Turns::default(),
            changes: watch::Sender::new(0),
            is_device_gone: AtomicBool::new(false),
            end: new_signal().map_err(OpenError::Threads)?,
        });
        let mut tunnel = Self { shared, control: Arc::new(Mutex::new(control)), threads: Vec::new() };
        for queue in 0..workers {
            let shared = tunnel.shared.clone();
            tunnel.start(format!("overlay-{queue}"), move || work(&shared, queue))?;
        }
        let (shared, control) = (tunnel.shared.clone(), tunnel.control.clone());
        tunnel.start("overlay-control".to_owned(), move || run_control(&shared, &control))?;
        Ok(tunnel)
    }

    fn start(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(OpenError::Threads)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Tells the tunnel all peers that there are. Sessions with those that stay go on.
    pub fn set_peers(&self, peers: Peers) {
        self.control().set_peers(peers, Instant::now());
        wake(&self.shared.tables.events.signal);
    }

    /// Begins handshakes with the peers, unless they are very many. For a node that may have forgotten sessions that the
    /// peers still use: what they send by those is lost.
    pub fn greet(&self) {
        self.control().greet(Instant::now());
        wake(&self.shared.tables.events.signal);
    }

    /// Changes this node's keys. Sessions by a key that is still among them go on until they are renewed.
    pub fn set_keys(&self, keys: &OwnKeys) {
        self.control().set_keys(keys, Instant::now());
        wake(&self.shared.tables.events.signal);
    }

    /// The UDP port that peers send to.
    pub fn port(&self) -> io::Result<u16> {
        self.shared.socket.port()
    }

    /// What happened so far.
    pub fn stats(&self) -> TunnelStats {
        let now = Instant::now();
        self.shared.tables.drops.add(Dropped::DeviceQueue, self.shared.device.take_overflow());
        let control = self.control();
        let peers = control.peers.iter().map(|(name, peer)| (name.clone(), PeerStats::of(peer, now)));
        TunnelStats {
            offloads: self.shared.offloads,
            is_device_gone: self.shared.is_device_gone.load(Ordering::Relaxed),
            peers: peers.collect(),
            drops: self.shared.tables.drops.read(),
        }
    }

    /// A number that grows whenever the MTU of a path changes, a peer begins to answer or ceases to, or the device is
    /// gone: what changed is in the [`stats`](Self::stats).
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Ends the tunnel and removes its device, with all its routes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(self) -> Result<(), NetlinkError> {
        self.shared.device.remove()
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        wake(&self.shared.end);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("BUG: a thread of the overlay panicked");
            }
        }
    }
}

/// Moves packets until the tunnel ends.
fn work(shared: &Shared, queue: usize) {
    let Shared { tables, device, socket, offloads, turns, .. } = shared;
    let mut egress = Egress::new(queue, socket.cuts);
    let mut ingress = Ingress::new(queue, offloads.datagrams);
    let mut ready = Ready::ALL;
    loop {
        let now = Instant::now();
        // The kernel often answers what it is handed at once: pings, and streams by acknowledgements or more data.
        let received = ready.socket && ingress.run(tables, device, socket, turns, now);
        let sent = (ready.device || received) && egress.run(tables, device, socket, now);
        // Where something was there is often more in a moment, and a look costs less than to sleep and be woken.
        if received || sent {
            ready = Ready::ALL;
            continue;
        }
        match shared.wait_for_packets(queue) {
            Some(sources) => ready = sources,
            None => return,
        }
    }
}

/// Where there may be something to move. To find that there is nothing is a call of the system.
#[derive(Debug, Clone, Copy)]
struct Ready {
    socket: bool,
    device: bool,
}

impl Ready {
    const ALL: Self = Self { socket: true, device: true };
}

impl Shared {
    /// Waits until there is something to move. Nothing if the tunnel ends.
    fn wait_for_packets(&self, queue: usize) -> Option<Ready> {
        if self.device.take_failure() {
            self.look_at_device(queue);
        }
        let sources = [self.end.as_fd(), self.socket.as_fd(), self.device.queue(queue)];
        let mut polled = sources.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN));
        // A device that is gone might always be ready, with an error.
        let is_gone = self.is_device_gone.load(Ordering::Relaxed);
        let count = if is_gone { 2 } else { 3 };
        if poll(&mut polled[..count], None).is_err() {
            return Some(Ready { socket: false, device: false });
        }
        let [end, socket, device] = polled.map(|polled| polled.revents());
        if !is_gone && device.intersects(PollFlags::ERR | PollFlags::NVAL) {
            self.look_at_device(queue);
        }
        end.is_empty().then_some(Ready { socket: !socket.is_empty(), device: device.contains(PollFlags::IN) })
    }

    /// Something is wrong with the device. If it is gone, its owner is told.
    fn look_at_device(&self, queue: usize) {
        if self.device.is_gone(queue) && !self.is_device_gone.swap(true, Ordering::AcqRel) {
            tracing::warn!("Somebody removed the device of the tunnel");
            self.changes.send_modify(|changes| *changes += 1);
        }
    }
}

/// Answers handshakes and keeps timers until the tunnel ends.
fn run_control(shared: &Shared, control: &Mutex<Control>) {
    let Shared { tables, socket, .. } = shared;
    let mut sealer = Sealer::new(socket.cuts);
    loop {
        let now = Instant::now();
        let mut handled = 0;
        let (wait, outputs) = {
            let mut control = control.lock().unwrap_or_else(PoisonError::into_inner);
            while handled < EVENTS_PER_TURN
                && let Some((event, waiting)) = tables.events.pop()
            {
                control.handle(event, waiting, now);
                handled += 1;
            }
            let wait = control.tick(now);
            if std::mem::take(&mut control.has_changed) {
                shared.changes.send_modify(|changes| *changes += 1);
            }
            (wait, std::mem::take(&mut control.outbox))
        };
        for output in outputs {
            send(tables, socket, &mut sealer, output, now);
        }
        sealer.flush(tables, socket);
        if handled == EVENTS_PER_TURN {
            continue;
        }
        if wait_for_event(shared, wait) {
            return;
        }
        calm(&tables.events.signal);
    }
}

/// Waits for an event or a time. Whether the tunnel ends.
fn wait_for_event(shared: &Shared, wait: Option<Duration>) -> bool {
    let mut polled = [&shared.tables.events.signal, &shared.end]
        .map(|signal| PollFd::from_borrowed_fd(signal.as_fd(), PollFlags::IN));
    let wait = wait.and_then(|wait| Timespec::try_from(wait).ok());
    match poll(&mut polled, wait.as_ref()) {
        Ok(_) => !polled[1].revents().is_empty(),
        Err(_) => false,
    }
}

fn send(tables: &Tables, socket: &UdpSocket, sealer: &mut Sealer, output: Output, now: Instant) {
    match output {
        Output::Message { octets, length, to } => {
            if let Err(error) = socket.send(&octets[..length], to) {
                tracing::debug!(%error, %to, "A handshake message could not be sent");
            }
        }
        Output::Waiting { session } => {
            let mut waiting = session.peer.take_waiting();
            if waiting.is_empty() && session.is_initiator {
                sealer.control(tables, socket, &session, 0, |_| {}, now);
            }
            for packet in &mut waiting {
                sealer.packet(tables, socket, packet, now);
            }
        }
        Output::Keepalive { session } => sealer.control(tables, socket, &session, 0, |_| {}, now),
        Output::Probe { session, probing } => {
            let length = probing.packet_length();
            sealer.control(tables, socket, &session, length, |out| probing.write(out), now);
        }
    }
}
