//! What another version has left whose maps have another form, and how it is replaced without a gap.
//!
//! Its programs go on, and the new ones before them leave everything to them until the first services are in effect in the
//! new maps. Just before that, the flows that the older programs know are copied, as far as their form is the same:
//! answers go on to reach their clients, endpoints that drain keep their connections, and ports that stand for clients go
//! on to stand for the same ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use mesonet_ebpf_abi::{Frontend, PacketEndpoint, PacketService, Place, Track, Tuple};
use mesonet_lb_plan::{PacketTable, PacketWrite};

use super::maps::FlowTable;
use super::{PacketBalancer, programs};
use crate::word_map::WordMap;

/// An endpoint as tracks name it: its number and its stamp.
type Name = (u32, u32);

impl PacketBalancer {
    /// Puts what is held into effect, and ends the programs of other forms. Returns the virtual addresses for which that
    /// failed.
    pub(super) fn take_over(&mut self) -> Vec<(Frontend, io::Error)> {
        let older: Vec<Older> = self.older.drain(..).map(Older::open).collect();
        older.iter().for_each(|older| older.copy(&self.flows, &self.table));
        let mut failed = Vec::new();
        for write in std::mem::take(&mut self.held) {
            if let (PacketWrite::PutService(frontend, _), Err(error)) = (write, self.maps.write(&write)) {
                failed.push((frontend, error));
            }
        }
        if !failed.is_empty() {
            self.read_again();
        }
        for older in &older {
            // What has come in between.
            older.copy(&self.flows, &self.table);
            programs::detach_all(&older.pins);
            programs::forget(&older.pins);
        }
        failed
    }
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

    fn copy(&self, flows: &FlowTable, table: &PacketTable) {
        if let Some(Err(error)) = self.known.as_ref().map(|known| known.copy(flows, table)) {
            tracing::warn!(%error, path = %self.pins.display(), "Cannot copy the flows of another version");
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

    /// Copies the flows whose endpoints are still there, and that are not known yet: with both of their entries, since
    /// half a flow would be in the way of a whole one.
    fn copy(&self, flows: &FlowTable, table: &PacketTable) -> io::Result<()> {
        let names = self.names(table)?;
        let known: BTreeSet<Tuple> = flows.all()?.into_iter().map(|(tuple, _)| tuple).collect();
        let found: BTreeMap<Tuple, Track> = self.flows.all()?.into_iter().collect();
        let mut copied = Vec::new();
        for (request, track) in found.iter().filter(|(_, track)| track.direction != Track::TO_CLIENT) {
            let Some(&(endpoint, stamp)) = names.get(&(track.endpoint, track.stamp)) else { continue };
            let renamed = |track: &Track| Track { endpoint, stamp, ..*track };
            let answer = track.tuple.flip();
            let back = found.get(&answer).filter(|back| back.tuple.flip() == *request);
            let is_whole = track.direction == Track::DIRECT || back.is_some();
            if is_whole && !known.contains(request) && !known.contains(&answer) {
                copied.extend(back.map(|back| (answer, renamed(back))));
                copied.push((*request, renamed(track)));
            }
        }
        flows.put_many(&copied)
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
