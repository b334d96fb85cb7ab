//! Connections over QUIC: two ends, each of which learns in its own time that the other one is gone.

use std::collections::VecDeque;
use std::time::Duration;

use mesonet_model::{AgentCommand, AgentId, AgentReport, ClusterView, PlaneReport, Revision, Timestamp};

use crate::network::{Party, Weather};
use crate::simulation::{Happening, Simulation};

/// Silence for so long ends a connection, in milliseconds.
const IDLE_MIN: u64 = 4000;
const IDLE_MAX: u64 = 5000;

/// How long a handshake may take, in milliseconds.
const HANDSHAKE_MAX: u64 = 2000;

/// Who has dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// The agent of a node.
    Agent(usize),
    /// A plane, which is a daemon of its own.
    Plane(usize),
    /// A master that stands by.
    Standby(usize),
}

/// How an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Waiting,
    Open,
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// What a client says.
#[derive(Debug, Clone)]
pub(crate) enum Up {
    Hello,
    Agent(AgentReport),
    /// A plane's report, by the plane itself or a master that it is connected to.
    Plane(usize, PlaneReport),
    /// A plane is not connected any more to the master that says so.
    Gone(usize),
}

/// What a master says.
#[derive(Debug, Clone)]
pub(crate) enum Down {
    Welcome { term: u64 },
    Refused { leader: Option<usize> },
    Command(AgentCommand),
    View(Box<ClusterView>),
}

/// A connection to a master.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) server: usize,
    /// The term of the master's welcome.
    pub(crate) term: u64,
    pub(crate) client_end: End,
    pub(crate) server_end: End,
    up: VecDeque<Up>,
    down: VecDeque<Down>,
    up_last: Timestamp,
    down_last: Timestamp,
    /// Since when nothing is under way upwards that was not heard.
    heard_all_since: Timestamp,
    /// The newest view that the client has or is sent.
    pub(crate) view_sent: Option<Revision>,
    /// One view at a time is under way.
    pub(crate) is_view_under_way: bool,
    /// Whether the agent has registered, and as which one: its commands come from then on.
    pub(crate) has_registered: bool,
    pub(crate) registered: Option<AgentId>,
}

impl Link {
    /// Since when the master has heard everything that was said, if the connection is open.
    pub(crate) fn heard_all_since(&self) -> Option<Timestamp> {
        let is_open = self.client_end == End::Open && self.server_end == End::Open;
        (is_open && self.up.is_empty()).then_some(self.heard_all_since)
    }
}

impl Simulation {
    /// A client dials a master.
    pub(crate) fn dial(&mut self, client: Client, server: usize, known: Option<Revision>) -> u64 {
        self.numbers += 1;
        let id = self.numbers;
        let now = self.now;
        let link = Link {
            client,
            server,
            term: 0,
            client_end: End::Waiting,
            server_end: End::Waiting,
            up: VecDeque::new(),
            down: VecDeque::new(),
            up_last: now,
            down_last: now,
            heard_all_since: now,
            view_sent: known,
            is_view_under_way: false,
            has_registered: false,
            registered: None,
        };
        self.links.insert(id, link);
        self.say(id, Up::Hello);
        self.soon_after(HANDSHAKE_MAX / 2, HANDSHAKE_MAX, Happening::HandshakeOver { link: id });
        id
    }

    /// The client says something.
    pub(crate) fn say(&mut self, id: u64, message: Up) {
        let delay = self.weather.delay(&mut self.rng);
        let Some(link) = self.links.get_mut(&id).filter(|link| link.client_end != End::Closed) else {
            return;
        };
        link.up.push_back(message);
        link.up_last = link.up_last.max(self.now.plus(delay));
        let at = link.up_last;
        self.at(at, Happening::UpArrives { link: id });
    }

    /// The master says something.
    pub(crate) fn tell(&mut self, id: u64, message: Down, later: Duration) {
        let delay = self.weather.delay(&mut self.rng) + later;
        let Some(link) = self.links.get_mut(&id).filter(|link| link.server_end != End::Closed) else {
            return;
        };
        link.down.push_back(message);
        link.down_last = link.down_last.max(self.now.plus(delay));
        let at = link.down_last;
        self.at(at, Happening::DownArrives { link: id });
    }

    pub(crate) fn up_arrives(&mut self, id: u64) {
        let Some((client, server)) = self.parties(id) else { return };
        if self.network.is_cut(client, server) {
            let at = self.now.plus(Weather::retransmission(&mut self.rng));
            return self.at(at, Happening::UpArrives { link: id });
        }
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(message) = link.up.pop_front() else { return };
        link.heard_all_since = now;
        match (link.server_end, message) {
            (End::Waiting, Up::Hello) => self.hello(id),
            (End::Open, message) => self.heard(id, message),
            (End::Waiting | End::Closed, _) => {}
        }
    }

    pub(crate) fn down_arrives(&mut self, id: u64) {
        let Some((client, server)) = self.parties(id) else { return };
        if self.network.is_cut(client, server) {
            let at = self.now.plus(Weather::retransmission(&mut self.rng));
            return self.at(at, Happening::DownArrives { link: id });
        }
        let now = self.now;
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(message) = link.down.pop_front() else { return };
        match (link.client_end, message) {
            (End::Closed, _) => {}
            (_, Down::Welcome { term }) => {
                link.heard_all_since = now;
                self.welcomed(id, term);
            }
            (_, Down::Refused { leader }) => self.refused(id, leader),
            (_, Down::Command(command)) => self.commanded(id, command),
            (_, Down::View(view)) => {
                link.is_view_under_way = false;
                self.shown(id, &view);
                self.show(id);
            }
        }
    }

    /// One side ends a connection, of which the other one hears if it can.
    pub(crate) fn close(&mut self, id: u64, side: Side) {
        let Some((client, server)) = self.parties(id) else { return };
        let other = if side == Side::Client { Side::Server } else { Side::Client };
        self.end(id, side);
        let (least, most) = if self.network.is_cut(client, server) { (IDLE_MIN, IDLE_MAX) } else { (0, 20) };
        self.soon_after(least, most, Happening::EndLost { link: id, side: other });
    }

    /// A process is gone without a word: its ends with it, and its peers learn it after a while.
    pub(crate) fn forget_ends(&mut self, is_of: impl Fn(&Link) -> Option<Side>) {
        let lost: Vec<(u64, Side)> =
            self.links.iter().filter_map(|(id, link)| Some((*id, is_of(link)?))).collect();
        for (id, side) in lost {
            let other = if side == Side::Client { Side::Server } else { Side::Client };
            self.end(id, side);
            self.soon_after(0, IDLE_MAX, Happening::EndLost { link: id, side: other });
        }
    }

    /// Two machines do not reach each other, and their connections end if that lasts.
    pub(crate) fn silence(&mut self, a: Party, b: Party) {
        self.network.cut(a, b, self.now);
        self.soon_after(IDLE_MIN, IDLE_MAX, Happening::Silent { a, b, since: self.now });
    }

    pub(crate) fn silent(&mut self, a: Party, b: Party, since: Timestamp) {
        if self.network.cut_since(a, b) != Some(since) {
            return;
        }
        let between: Vec<u64> = self.links.keys().copied().collect();
        for id in between {
            if self
                .parties(id)
                .is_some_and(|(client, server)| (client, server) == (a, b) || (client, server) == (b, a))
            {
                self.soon(1000, Happening::EndLost { link: id, side: Side::Client });
                self.soon(1000, Happening::EndLost { link: id, side: Side::Server });
            }
        }
    }

    /// A process is silent for so many milliseconds, which ends its connections if it is long enough.
    pub(crate) fn lose_if_silent(&mut self, master: usize, millis: u64) {
        let is_of = |link: &Link| link.server == master || link.client == Client::Standby(master);
        let own: Vec<u64> = self.links.iter().filter(|(_, link)| is_of(link)).map(|(id, _)| *id).collect();
        for link in own {
            let patience = self.rng.u64(IDLE_MIN..=IDLE_MAX);
            if patience < millis {
                let at = self.now.plus(Duration::from_millis(patience));
                self.at(at, Happening::EndLost { link, side: Side::Client });
                self.at(at, Happening::EndLost { link, side: Side::Server });
            }
        }
    }

    pub(crate) fn handshake_over(&mut self, id: u64) {
        if self.links.get(&id).is_some_and(|link| link.client_end == End::Waiting) {
            self.end_lost(id, Side::Client);
            self.soon_after(IDLE_MIN, IDLE_MAX, Happening::EndLost { link: id, side: Side::Server });
        }
    }

    /// A side learns that its connection is over.
    pub(crate) fn end_lost(&mut self, id: u64, side: Side) {
        let Some(link) = self.links.get(&id) else { return };
        let (client, server, end, has_registered) = match side {
            Side::Client => (link.client, link.server, link.client_end, false),
            Side::Server => (link.client, link.server, link.server_end, link.has_registered),
        };
        if end == End::Closed {
            return self.end(id, side);
        }
        self.end(id, side);
        match side {
            Side::Client => self.redial_soon(client, id),
            Side::Server if end == End::Open => self.farewell(client, server, has_registered),
            Side::Server => {}
        }
    }

    /// One side is over with a connection.
    pub(crate) fn end(&mut self, id: u64, side: Side) {
        let Some(link) = self.links.get_mut(&id) else { return };
        match side {
            Side::Client => link.client_end = End::Closed,
            Side::Server => link.server_end = End::Closed,
        }
        if link.client_end == End::Closed && link.server_end == End::Closed {
            self.links.remove(&id);
        }
    }

    /// The machines at both ends.
    fn parties(&self, id: u64) -> Option<(Party, Party)> {
        let link = self.links.get(&id)?;
        let client = match link.client {
            Client::Agent(node) => Party::Node(node),
            Client::Plane(plane) => Party::Node(self.planes[plane].node),
            Client::Standby(master) => Party::Master(master),
        };
        Some((client, Party::Master(link.server)))
    }
}
