//! A thread with an epoll loop that carries the traffic of its connections.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use mesonet_lb_plan::Op;
use mesonet_model::ServiceKey;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::io::Errno;
use rustix::thread::set_current_timer_slack;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use tracing::warn;

use super::WorkerOp;
use super::affinity::Affinities;
use super::connection::Connection;
use super::descriptor_budget::DescriptorBudget;
use super::direction::{SCRATCH_BYTES, Tools};
use super::listener::Listener;
use super::local_tcp::LocalTcp;
use super::pace::{Done, Look, Pace};
use super::patience::Patience;
use super::pipe_pool::PipePool;
use super::routes::Routes;
use super::shortage::Shortage;
use super::slots::{SlotKey, Slots};
use super::token::Token;
use super::udp::UdpSessions;
use crate::Metrics;
use crate::busy::Busy;

/// Events taken from the kernel in one round; more wait for the next.
const EVENTS_PER_ROUND: usize = 256;

/// How much longer than asked for a worker may wait, so that the kernel can wake it together with others.
const TIMER_SLACK_NS: u64 = 1_000;

const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Operations to carry out, and whom to tell when that is done.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) ops: Arc<[WorkerOp]>,
    pub(super) done: oneshot::Sender<()>,
}

/// A listener as one worker has it.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) listener: Listener,
    pub(super) service: SlotKey,
    /// How many clients to accept without a look at whether more wait: about as many as there were lately.
    pub(super) batch: usize,
}

/// What a worker is made with.
#[derive(Debug)]
pub(super) struct WorkerSettings {
    pub(super) metrics: Metrics,
    pub(super) busy: Busy,
    pub(super) budget: DescriptorBudget,
    pub(super) patience: Patience,
    pub(super) local_tcp: LocalTcp,
    pub(super) affinities: Affinities,
}

/// One round of the loop: events in the order in which the kernel reports them, then connections that had more to do,
/// then what is due, then commands. Every step is bounded, so that no connection and no command waits for long.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) number: usize,
    wake: Arc<OwnedFd>,
    commands: Receiver<Command>,
    pub(super) epoll: OwnedFd,
    pub(super) budget: DescriptorBudget,
    pub(super) patience: Patience,
    pub(super) local_tcp: LocalTcp,
    pub(super) routes: Routes,
    pub(super) listeners: Slots<Watched>,
    pub(super) connections: Slots<Connection>,
    pub(super) sessions: UdpSessions,
    /// Connections that had more to do when their turn was over.
    pub(super) unfinished: Vec<SlotKey>,
    /// Connection attempts under way, in the order of their deadlines: the connection, and which of its dials it is.
    pub(super) dials: BTreeSet<(Instant, SlotKey, u64)>,
    /// Connections that no endpoint took, in the order in which endpoints are to be asked again.
    pub(super) pauses: VecDeque<(Instant, SlotKey)>,
    /// Clients that were accepted, and from when on an endpoint is looked for even if they say nothing. In their order:
    /// those that are not waited for, and those that are.
    pub(super) arrivals: [VecDeque<(Instant, SlotKey)>; 2],
    pub(super) tools: Tools,
    pub(super) pace: Pace,
    /// How many clients were accepted since the round began.
    pub(super) accepted: usize,
    /// Set while no client is accepted.
    pub(super) accepts_again_at: Option<Instant>,
    pub(super) shortage: Shortage,
    /// When to look for connections on which nothing moves; `None` while no endpoint has ended one.
    pub(super) next_stall_look: Option<Instant>,
    /// The time at which the round began.
    pub(super) now: Instant,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        wake: Arc<OwnedFd>,
        commands: Receiver<Command>,
        settings: WorkerSettings,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*wake, Token::Wake.pack(), EventFlags::IN)?;
        let budget = settings.budget;
        let scratch = vec![0; SCRATCH_BYTES].into_boxed_slice();
        // The standard library's map seeds are the one source of entropy at hand; which endpoint is chosen is no secret.
        let seed = RandomState::new().build_hasher().finish();
        let now = Instant::now();
        Ok(Self {
            number,
            wake,
            commands,
            epoll,
            budget,
            patience: settings.patience,
            local_tcp: settings.local_tcp,
            routes: Routes::new(settings.metrics, settings.busy, settings.affinities, seed),
            listeners: Slots::new(),
            connections: Slots::new(),
            sessions: UdpSessions::new(),
            unfinished: Vec::new(),
            dials: BTreeSet::new(),
            pauses: VecDeque::new(),
            arrivals: [VecDeque::new(), VecDeque::new()],
            tools: Tools { scratch, pipes: PipePool::new(budget.pipes), bulk_bytes: 0 },
            pace: Pace::new(now),
            accepted: 0,
            accepts_again_at: None,
            shortage: Shortage::default(),
            next_stall_look: None,
            now,
        })
    }

    /// Works until the other end of the commands is gone.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_PER_ROUND);
        // By default the kernel makes every wait up to 50 us longer. Then that is how it is.
        let _slack_as_given = set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS));
        loop {
            events.clear();
            let done = Done {
                arrivals: std::mem::take(&mut self.accepted),
                bulk_bytes: std::mem::take(&mut self.tools.bulk_bytes),
            };
            self.look(&mut events, done);
            self.now = Instant::now();
            self.pace.note_round(events.len(), done, self.now, used_so_far);
            let mut woken = false;
            for event in &events {
                woken |= self.dispatch(*event);
            }
            for key in std::mem::take(&mut self.unfinished) {
                if let Some(connection) = self.connections.get_mut(key) {
                    connection.is_queued = false;
                }
                self.drive(key);
            }
            self.routes.count_bytes();
            self.begin_arrivals();
            self.expire_dials();
            self.expire_sessions();
            self.end_stalled();
            self.resume_accepting();
            if woken && !self.obey() {
                return;
            }
        }
    }

    /// Looks for events, now or after a moment.
    fn look(&self, events: &mut Vec<Event>, done: Done) {
        if self.unfinished.is_empty() {
            match self.pace.look(done) {
                Look::AtOnce => {}
                Look::UnlessSomeWait(moment) => {
                    self.wait(events, Some(NO_TIME));
                    if !events.is_empty() {
                        return;
                    }
                    thread::sleep(moment);
                }
                Look::Later(moment) => thread::sleep(moment),
            }
        }
        self.wait(events, self.timeout());
    }

    /// Waits for events.
    fn wait(&self, events: &mut Vec<Event>, timeout: Option<Timespec>) {
        let room = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, room, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("BUG: the proxy waits wrongly for events: {error}"),
        }
    }

    /// Handles one event. Returns whether it says that there are commands.
    fn dispatch(&mut self, event: Event) -> bool {
        let flags = event.flags;
        match Token::unpack(event.data) {
            Token::Wake => return true,
            Token::Listener(key) => match self.listeners.get(key).map(|watched| watched.listener.is_tcp()) {
                Some(true) => self.accept(key),
                Some(false) => self.receive_from_clients(key),
                None => {}
            },
            Token::Client(key) => self.on_client_event(key, flags),
            Token::Backend(key) => self.on_backend_event(key, flags),
            Token::Session(key) => self.receive_from_endpoint(key),
        }
        false
    }

    fn timeout(&self) -> Option<Timespec> {
        if !self.unfinished.is_empty() {
            return Some(NO_TIME);
        }
        let arrivals = self.arrivals.iter().filter_map(|queue| queue.front()).map(|(until, _)| *until);
        let deadlines = [
            self.next_dial_deadline(),
            self.accepts_again_at,
            self.sessions.next_sweep(),
            self.next_stall_look,
        ];
        let first = deadlines.into_iter().flatten().chain(arrivals).min()?;
        let left = first.saturating_duration_since(Instant::now());
        Some(Timespec { tv_sec: i64::try_from(left.as_secs()).ok()?, tv_nsec: left.subsec_nanos().into() })
    }

    /// Carries out the commands that wait. Returns whether to go on.
    fn obey(&mut self) -> bool {
        let mut counter = [0; 8];
        // Emptied before the commands are taken, so that one sent meanwhile wakes the worker again.
        let _was_empty = rustix::io::read(&self.wake, &mut counter[..]);
        loop {
            match self.commands.try_recv() {
                Ok(command) => {
                    command.ops.iter().for_each(|op| self.carry_out(op));
                    // Nobody listens if the call was cancelled.
                    let _cancelled = command.done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn carry_out(&mut self, op: &WorkerOp) {
        match op {
            WorkerOp::Open(listener) => self.open_listener(listener),
            WorkerOp::Route(Op::AddEndpoint { service, endpoint, spec })
            | WorkerOp::Route(Op::SetEndpoint { service, endpoint, spec }) => {
                self.routes.set_endpoint(service, endpoint, *spec);
            }
            WorkerOp::Route(Op::RemoveEndpoint { service, endpoint }) => {
                if let Some(endpoint) = self.routes.remove_endpoint(service, endpoint) {
                    self.reset_connections_of(endpoint);
                    self.drop_sessions_of(endpoint);
                }
                self.routes.prune_service(service);
            }
            WorkerOp::Route(Op::SetPolicy { service, policy }) => {
                self.routes.set_policy(service, *policy);
                self.routes.prune_service(service);
            }
            WorkerOp::Route(Op::CloseListener { service, address }) => {
                self.close_listeners(service, |listener| listener.address == *address);
            }
            // Sent as `WorkerOp::Open`, with its socket.
            WorkerOp::Route(Op::OpenListener { .. }) => {}
        }
    }

    fn open_listener(&mut self, listener: &Listener) {
        if listener.socket.of_worker(self.number).is_none() {
            return;
        }
        let service = self.routes.make_service(&listener.service);
        let key = self.listeners.insert(Watched { listener: listener.clone(), service, batch: 1 });
        if let Some(service) = self.routes.service_mut(service) {
            service.listeners.push(key);
        }
        if !listener.is_tcp() || self.accepts_again_at.is_none() {
            self.watch_listener(key);
        }
    }

    pub(super) fn watch_listener(&mut self, key: SlotKey) {
        let Some(Watched { listener, .. }) = self.listeners.get(key) else { return };
        let Some(socket) = listener.socket.of_worker(self.number) else { return };
        let events = EventFlags::IN;
        if let Err(error) = epoll::add(&self.epoll, socket, Token::Listener(key).pack(), events) {
            warn!(address = %listener.address, %error, "A worker cannot watch a listener");
        }
    }

    fn close_listeners(&mut self, service: &ServiceKey, which: impl Fn(&Listener) -> bool) {
        let Some(slot) = self.routes.find_service(service) else { return };
        let keys = self.routes.service(slot).map(|service| service.listeners.clone()).unwrap_or_default();
        for key in keys {
            if self.listeners.get(key).is_some_and(|watched| which(&watched.listener))
                && let Some(Watched { listener, .. }) = self.listeners.remove(key)
            {
                // Other workers hold the socket, too, so to let go of it does not end the events.
                if let Some(socket) = listener.socket.of_worker(self.number) {
                    let _was_paused = epoll::delete(&self.epoll, socket);
                }
                self.drop_sessions_at(key);
                if let Some(service) = self.routes.service_mut(slot) {
                    service.listeners.retain(|other| *other != key);
                }
            }
        }
        self.routes.prune_service(service);
    }
}

/// The CPU time that the thread has used.
fn used_so_far() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), used.tv_nsec.try_into().unwrap_or(0))
}
