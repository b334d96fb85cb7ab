//! Views on their way to planes, over masters that stand by, and reports on their way back.

use std::collections::BTreeMap;
use std::time::Duration;

use mesonet::control_plane::Input;
use mesonet_model::{AgentCommand, AgentId, AgentReport, ClusterView, Plane, PlaneReport, Revision};

use crate::links::{Client, Down, End, Side, Up};
use crate::simulation::{Happening, Simulation};

impl Simulation {
    // === The masters' ends ===

    /// Somebody wants to be let in.
    pub(crate) fn hello(&mut self, id: u64) {
        let Some(link) = self.links.get(&id) else { return };
        let (client, server) = (link.client, link.server);
        let own = &self.masters[server];
        if !own.is_up {
            return;
        }
        let leads = own.serves();
        if !leads && !matches!(client, Client::Plane(_)) {
            let leader = own.leader.filter(|leader| *leader != server);
            self.tell(id, Down::Refused { leader }, Duration::ZERO);
            return self.end(id, Side::Server);
        }
        let term = own.term;
        self.supersede(id, client, server);
        if let Some(link) = self.links.get_mut(&id) {
            link.server_end = End::Open;
        }
        self.tell(id, Down::Welcome { term }, Duration::ZERO);
        if !matches!(client, Client::Agent(_)) {
            self.show(id);
        }
    }

    /// The earlier connections of a client that has a new one are over.
    fn supersede(&mut self, id: u64, client: Client, server: usize) {
        let is_earlier = |(other, link): &(&u64, &crate::links::Link)| {
            **other != id && link.client == client && link.server == server && link.server_end == End::Open
        };
        let earlier: Vec<u64> = self.links.iter().filter(is_earlier).map(|(id, _)| *id).collect();
        for link in earlier {
            self.end_lost(link, Side::Server);
            self.soon(20, Happening::EndLost { link, side: Side::Client });
        }
    }

    /// A client says something on an open connection.
    pub(crate) fn heard(&mut self, id: u64, message: Up) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let (client, server) = (link.client, link.server);
        match (client, message) {
            (Client::Agent(node), Up::Agent(report)) => {
                link.has_registered |= matches!(report, AgentReport::Register { .. });
                self.arrive(server, Input::Agent(report), Some((node, id)));
            }
            (Client::Plane(_), Up::Plane(plane, report)) => {
                // Nobody has applied what has not been published.
                let newest = self.masters[server].feed.as_ref().map_or(Revision::ZERO, |view| view.revision);
                let report = PlaneReport { applied: report.applied.min(newest), ..report };
                self.masters[server].planes_here.insert(plane, report.clone());
                self.pass_on(server, None, plane, report);
            }
            (Client::Standby(standby), Up::Plane(plane, report)) => {
                self.counts.relayed += 1;
                self.pass_on(server, Some(standby), plane, report);
            }
            (Client::Standby(standby), Up::Gone(plane)) => self.plane_gone(server, Some(standby), plane),
            (client, message) => panic!("{client:?} says {message:?}"),
        }
    }

    /// A plane's report is for the leader.
    fn pass_on(&mut self, master: usize, path: Option<usize>, plane: usize, report: PlaneReport) {
        if let Some(leader) = self.masters[master].serving_mut() {
            leader.hear_plane(path, plane, report);
            self.plan_turn(master);
        } else if let Some(upstream) = self.open_upstream(master) {
            self.say(upstream, Up::Plane(plane, report));
        }
    }

    fn plane_gone(&mut self, master: usize, path: Option<usize>, plane: usize) {
        let (node, kind) = self.plane_id(plane);
        let now = self.now;
        if let Some(leader) = self.masters[master].serving_mut() {
            leader.lose_plane(path, plane, (&node, kind), now);
            self.plan_turn(master);
        } else if let Some(upstream) = self.open_upstream(master) {
            self.say(upstream, Up::Gone(plane));
        }
    }

    /// A master learns that a client is gone.
    pub(crate) fn farewell(&mut self, client: Client, master: usize, has_registered: bool) {
        match client {
            Client::Agent(node) => {
                if let Some(agent) = self.nodes[node].agent.id.clone().filter(|_| has_registered) {
                    self.arrive(master, Input::Agent(AgentReport::Disconnected { agent }), None);
                }
            }
            Client::Plane(plane) => {
                self.masters[master].planes_here.remove(&plane);
                self.plane_gone(master, None, plane);
            }
            Client::Standby(standby) => {
                let planes: Vec<(AgentId, Plane)> =
                    (0..self.planes.len()).map(|plane| self.plane_id(plane)).collect();
                let now = self.now;
                if let Some(leader) = self.masters[master].serving_mut() {
                    leader.lose_path(Some(standby), &planes, now);
                    self.plan_turn(master);
                }
            }
        }
    }

    /// A view is the newest at a master.
    pub(crate) fn publish(&mut self, master: usize, view: &ClusterView) {
        let own = &mut self.masters[master];
        if own.feed.as_ref().is_some_and(|newest| newest.revision >= view.revision) {
            return;
        }
        own.feed = Some(view.clone());
        let followers: Vec<u64> =
            self.links.iter().filter(|(_, link)| link.server == master).map(|(id, _)| *id).collect();
        for link in followers {
            self.show(link);
        }
    }

    /// Sends the newest view to a client that does not have it, one at a time.
    pub(crate) fn show(&mut self, id: u64) {
        let Some(link) = self.links.get(&id) else { return };
        let Some(newest) = &self.masters[link.server].feed else { return };
        let has_newer = link.view_sent >= Some(newest.revision);
        let is_agent = matches!(link.client, Client::Agent(_));
        if has_newer || is_agent || link.is_view_under_way || link.server_end != End::Open {
            return;
        }
        let view = newest.clone();
        // Now and then a node has no time.
        let later =
            if self.trouble(2) { Duration::from_millis(self.rng.u64(..15_000)) } else { Duration::ZERO };
        if let Some(link) = self.links.get_mut(&id) {
            link.is_view_under_way = true;
            link.view_sent = Some(view.revision);
        }
        self.tell(id, Down::View(Box::new(view)), later);
    }

    // === The clients' ends ===

    /// A master lets a client in, which does not want one of an earlier term than it has seen.
    pub(crate) fn welcomed(&mut self, id: u64, term: u64) {
        let Some(client) = self.links.get(&id).map(|link| link.client) else { return };
        let newest = match client {
            Client::Agent(node) => &mut self.nodes[node].term,
            Client::Plane(plane) => &mut self.planes[plane].term,
            Client::Standby(master) => &mut self.masters[master].term,
        };
        if term < *newest {
            self.counts.outdated += 1;
            self.close(id, Side::Client);
            return self.redial_soon(client, id);
        }
        *newest = term;
        if let Some(link) = self.links.get_mut(&id) {
            link.client_end = End::Open;
            link.term = term;
        }
        match client {
            Client::Agent(node) => self.introduce_agent(node, id),
            Client::Plane(plane) => self.report_plane(plane),
            Client::Standby(master) => {
                // The leader may not know any of these planes.
                for (plane, report) in self.masters[master].planes_here.clone() {
                    self.say(id, Up::Plane(plane, report));
                }
            }
        }
    }

    pub(crate) fn refused(&mut self, id: u64, leader: Option<usize>) {
        let Some(client) = self.links.get(&id).map(|link| link.client) else { return };
        if let Client::Agent(node) = client {
            self.nodes[node].leader = leader;
        }
        self.close(id, Side::Client);
        self.redial_soon(client, id);
    }

    pub(crate) fn commanded(&mut self, id: u64, command: AgentCommand) {
        let Some(link) = self.links.get(&id) else { return };
        let (Client::Agent(node), term) = (link.client, link.term) else { panic!("a command for a plane") };
        let newest = self.nodes[node].term;
        assert!(term >= newest, "agent {node} obeys term {term}, but has seen term {newest}");
        self.command_arrives(node, command);
    }

    pub(crate) fn shown(&mut self, id: u64, view: &ClusterView) {
        match self.links.get(&id).map(|link| link.client) {
            Some(Client::Plane(plane)) => self.update_plane(plane, view),
            Some(Client::Standby(master)) => self.publish(master, view),
            Some(Client::Agent(_)) | None => {}
        }
    }

    /// A client without a connection tries again, at once if it knows where to.
    pub(crate) fn redial_soon(&mut self, client: Client, id: u64) {
        match client {
            Client::Agent(node) if self.nodes[node].link == Some(id) => {
                self.nodes[node].link = None;
                let pause = if self.nodes[node].leader.is_some() { 10 } else { 1000 };
                self.soon(pause, Happening::AgentConnects { node });
            }
            Client::Plane(plane) if self.planes[plane].link == Some(id) => {
                self.planes[plane].link = None;
                self.soon(1000, Happening::PlaneConnects { plane });
            }
            Client::Standby(master) if self.masters[master].upstream == Some(id) => {
                self.masters[master].upstream = None;
            }
            Client::Agent(_) | Client::Plane(_) | Client::Standby(_) => {}
        }
    }

    pub(crate) fn connect_plane(&mut self, plane: usize) {
        if self.planes[plane].link.is_some() {
            return;
        }
        let master = self.rng.usize(..self.masters.len());
        let known = self.planes[plane].view.as_ref().map(|view| view.revision);
        let link = self.dial(Client::Plane(plane), master, known);
        self.planes[plane].link = Some(link);
    }

    fn update_plane(&mut self, plane: usize, view: &ClusterView) {
        let own = &mut self.planes[plane];
        if own.view.as_ref().is_some_and(|newest| newest.revision >= view.revision) {
            return;
        }
        own.apply(view);
        if self.rng.bool() {
            self.planes[plane].on_disk = Some(view.clone());
        }
        self.check_withdrawn(plane);
        self.report_plane(plane);
    }

    /// What was told to end when nobody sent clients to it is not sent clients again, except by a plane that has begun
    /// anew with a view from disk that is not its latest one.
    pub(crate) fn check_withdrawn(&self, plane: usize) {
        let own = &self.planes[plane];
        let back = self.watch.withdrawn.iter().find(|task| own.serves(task));
        assert!(
            back.is_none() || own.is_behind(),
            "plane {plane} sends clients to {back:?}, which was told to end"
        );
    }

    pub(crate) fn report_plane(&mut self, plane: usize) {
        let own = &self.planes[plane];
        let (Some(view), Some(link)) = (&own.view, own.link) else { return };
        let is_open = self.links.get(&link).is_some_and(|link| link.client_end == End::Open);
        if !is_open {
            return;
        }
        let (node, kind) = self.plane_id(plane);
        let (applied, busy) = (view.revision, own.busy());
        let failed = BTreeMap::new();
        let report = PlaneReport { node, plane: kind, applied, busy, failed, outage: None, tunnel: None };
        self.say(link, Up::Plane(plane, report));
    }

    /// How planes are named.
    fn plane_id(&self, plane: usize) -> (AgentId, Plane) {
        let own = &self.planes[plane];
        (AgentId::new(format!("node{}", own.node)), own.kind)
    }

    fn open_upstream(&self, master: usize) -> Option<u64> {
        let id = self.masters[master].upstream?;
        self.links.get(&id).filter(|link| link.client_end == End::Open).map(|_| id)
    }
}
