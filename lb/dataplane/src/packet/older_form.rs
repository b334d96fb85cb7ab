//! What another version has left whose maps have another form, and how it is replaced without a gap.
//!
//! Its programs go on, and the new ones before them leave everything to them that they do not know, until the first services
//! are in effect in the new maps. From one moment on, new flows are the new programs'; those that the older ones know stay
//! with them, and keep their ports, while they are copied, as far as their form is the same: answers go on to reach their
//! clients, endpoints that drain keep their connections, and ports that stand for clients go on to stand for the same ones.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use mesonet_ebpf_abi::{Frontend, PacketEndpoint, PacketService, Place, Track, Tuple};
use mesonet_lb_plan::PacketTable;

use super::maps::{FlowTable, OlderPrograms};
use super::{PacketBalancer, programs};
use crate::word_map::WordMap;

/// An endpoint as tracks name it: its number and its stamp.
type Name = (u32, u32);

/// Requests of flows, and what is noted of them.
type Requests = Vec<(Tuple, Track)>;

/// Leaves everything to the programs of other versions for now; only the flows that they know, if services are in effect in
/// the maps of these ones: a process before has taken over, or begun to, or it is the other version that never has.
pub(super) fn leave(older: &[PathBuf], programs: &OlderPrograms, is_in_effect: bool) -> io::Result<()> {
    let older: Vec<Older> = older.iter().cloned().map(Older::open).collect();
    if older.is_empty() {
        return Ok(());
    }
    if is_in_effect { programs.leave_flows(flows_in_charge(&older)) } else { programs.leave_all() }
}

impl PacketBalancer {
    /// Has the new programs begin flows, and ends those of other versions.
    pub(super) fn take_over(&mut self) {
        if self.older.is_empty() {
            return;
        }
        let older: Vec<Older> = self.older.iter().cloned().map(Older::open).collect();
        // Those that come first of all would go on to begin flows.
        older.iter().for_each(|older| programs::detach_early(&older.pins));
        if let Err(error) = self.older_programs.leave_flows(flows_in_charge(&older)) {
            // They go on until services are settled again.
            tracing::warn!(%error, "Cannot take over from the programs of another version");
            return;
        }
        self.older.clear();
        let copied: Vec<Requests> = older.iter().map(|older| older.copy(&self.flows, &self.table)).collect();
        if let Err(error) = self.older_programs.end() {
            tracing::warn!(%error, "Cannot forget the flows of another version");
        }
        for older in &older {
            // Whoever goes on after this process leaves nothing to programs that may be gone.
            programs::disown(&older.pins);
            programs::detach_all(&older.pins);
        }
        for (older, copied) in older.iter().zip(&copied) {
            older.catch_up(copied, &self.flows);
            programs::forget(&older.pins);
        }
    }
}

/// The flows of the version that serves: one that was replaced before it had any services does not.
fn flows_in_charge(older: &[Older]) -> Option<BorrowedFd<'_>> {
    let known = older.iter().filter_map(|older| older.known.as_ref());
    let in_charge = known.max_by_key(|known| known.services.all().map_or(0, |services| services.len()));
    in_charge.map(|known| known.flows.descriptor())
}

/// What another version has left.
struct Older {
    pins: PathBuf,
    known: Option<Known>,
}

impl Older {
    fn open(pins: PathBuf) -> Self {
        Self { known: Known::open(&pins), pins }
    }

    /// Copies the flows that its programs know. Returns them.
    fn copy(&self, flows: &FlowTable, table: &PacketTable) -> Requests {
        let Some(known) = &self.known else { return Requests::new() };
        known.copy(flows, table).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %self.pins.display(), "Cannot copy the flows of another version");
            Requests::new()
        })
    }

    /// Notes what its programs have seen of flows after those were copied.
    fn catch_up(&self, copied: &Requests, flows: &FlowTable) {
        let Some(known) = &self.known else { return };
        let noted = copied.iter().try_for_each(|(request, track)| known.catch_up(request, track, flows));
        if let Err(error) = noted {
            tracing::warn!(%error, path = %self.pins.display(), "Cannot read the flows of another version");
        }
    }
}

/// What the other programs know, if its form is this version's.
struct Known {
    services: WordMap<Frontend, PacketService>,
    endpoints: WordMap<u32, PacketEndpoint>,
    flows: WordMap<Tuple, Track>,
}

impl Known {
    fn open(pins: &Path) -> Option<Self> {
        Some(Self {
            services: WordMap::open(&pins.join("SERVICES")).ok()?,
            endpoints: WordMap::open(&pins.join("ENDPOINTS")).ok()?,
            flows: WordMap::open(&pins.join("FLOWS")).ok()?,
        })
    }

    /// Copies the flows whose endpoints are still there, unless their clients have begun them anew: with both of their
    /// entries, since half a flow would be in the way of a whole one.
    fn copy(&self, flows: &FlowTable, table: &PacketTable) -> io::Result<Requests> {
        let names = self.names(table)?;
        let found: BTreeMap<Tuple, Track> = self.flows.all()?.into_iter().collect();
        let mut copied = Requests::new();
        for (request, track) in found.iter().filter(|(_, track)| track.direction != Track::TO_CLIENT) {
            let Some(&(endpoint, stamp)) = names.get(&(track.endpoint, track.stamp)) else { continue };
            let renamed = |track: &Track| Track { endpoint, stamp, ..*track };
            let answer = track.tuple.flip();
            let back = found.get(&answer).filter(|back| back.tuple.flip() == *request);
            let is_whole = track.direction == Track::DIRECT || back.is_some();
            if !is_whole {
                continue;
            }
            // In this order, since the end of a flow that an answer tells is noted with its request. Answers are the older
            // programs' as long as they are not known here.
            if !flows.put_new(request, &renamed(track))? {
                continue;
            }
            copied.push((*request, renamed(track)));
            if let Some(back) = back {
                flows.put_new(&answer, &renamed(back))?;
            }
        }
        Ok(copied)
    }

    /// Notes what was seen of a flow after it was copied: an end of it would be waited for in vain.
    fn catch_up(&self, request: &Tuple, copied: &Track, flows: &FlowTable) -> io::Result<()> {
        const BOTH: u32 = Track::CLIENT_ENDED | Track::ENDPOINT_ENDED;
        let seen = self.flows.get(request)?.map_or(0, |last| last.seen);
        if seen & !copied.seen == 0 {
            return Ok(());
        }
        let is_same = |track: &Track| track.tuple == copied.tuple && track.stamp == copied.stamp;
        let Some(track) = flows.get(request)?.filter(is_same) else { return Ok(()) };
        let seen = track.seen | seen;
        let over = if seen & BOTH == BOTH { Track::OVER } else { 0 };
        flows.put(request, &Track { seen: seen | over, ..track })
    }

    /// What the endpoints of this table are called in another one.
    fn names(&self, table: &PacketTable) -> io::Result<BTreeMap<Name, Name>> {
        let frontends: BTreeMap<u32, Frontend> =
            self.services.all()?.into_iter().map(|(frontend, service)| (service.id, frontend)).collect();
        let members = |frontend: &Frontend| -> BTreeMap<Place, Name> {
            table.members(frontend).map(|(number, each)| (each.place, (number, each.stamp))).collect()
        };
        let new: BTreeMap<u32, BTreeMap<Place, Name>> =
            frontends.iter().map(|(id, frontend)| (*id, members(frontend))).collect();
        let name = |(number, endpoint): (u32, PacketEndpoint)| {
            let name = new.get(&endpoint.service)?.get(&endpoint.place)?;
            (endpoint.flags != 0).then_some(((number, endpoint.stamp), *name))
        };
        Ok(self.endpoints.all()?.into_iter().filter_map(name).collect())
    }
}
