//! What another version has left in the kernel, and how it is replaced without a gap.
//!
//! Its programs go on beside the new ones, and before them, until the first view is in effect in the new maps. Then
//! what they remember of sockets is copied, as far as its form is the same: clients go on to see virtual addresses, and
//! flows of datagrams stay with their endpoints. Connections need nothing of the kind.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use mesonet_ebpf_abi::{Connection, Flow, Frontend, LAYOUT, Origin, Slot, UDP};
use mesonet_lb_plan::KernelTable;

use super::maps::{Connections, Memory};
use super::programs;
use crate::word_map::WordMap;

/// The directories of other layouts.
pub(super) fn find(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name() != LAYOUT && entry.path().is_dir())
        .map(|entry| entry.path())
        .collect()
}

/// Ends the programs of another layout, after what they remember has been copied.
pub(super) fn replace(layout: &Path, memory: &Memory, kernel: &KernelTable) -> io::Result<()> {
    let old = Old {
        connections: Connections::open(layout),
        origins: WordMap::open(&layout.join("ORIGINS")).ok(),
        flows: WordMap::open(&layout.join("FLOWS")).ok(),
    };
    old.copy(memory, kernel)?;
    programs::detach(layout)?;
    // What has come in between.
    old.copy(memory, kernel)?;
    fs::remove_dir_all(layout)?;
    tracing::info!(path = %layout.display(), "Replaced the programs of another version");
    Ok(())
}

/// What the other programs remember, if its form is this version's.
struct Old {
    connections: Option<Connections>,
    origins: Option<WordMap<Flow, Origin>>,
    flows: Option<WordMap<Flow, Slot>>,
}

impl Old {
    fn copy(&self, memory: &Memory, kernel: &KernelTable) -> io::Result<()> {
        let connections = self.connections.as_ref().map_or_else(|| Ok(Vec::new()), Connections::all)?;
        let mut origins = self.origins.as_ref().map_or_else(|| Ok(Vec::new()), WordMap::all)?;
        // Counters have other numbers there, so that nothing is counted at the end of these.
        origins.extend(connections.into_iter().map(flow));
        memory.origins.put_many(&borrowed(&origins))?;
        let flows = self.flows.as_ref().map_or_else(|| Ok(Vec::new()), WordMap::all)?;
        let counted = |(flow, slot): (Flow, Slot)| {
            let frontend = Frontend { place: flow.place, protocol: UDP.into() };
            let counter = kernel.counter(&frontend, &slot.place)?;
            Some((flow, Slot { counter, ..slot }))
        };
        let flows: Vec<(Flow, Slot)> = flows.into_iter().filter_map(counted).collect();
        memory.flows.put_many(&borrowed(&flows))?;
        if !origins.is_empty() {
            memory.has_uncounted.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// A connection as the flow that it is.
pub(super) fn flow(connection: Connection) -> (Flow, Origin) {
    let Connection { socket, endpoint, origin } = connection;
    // Low word first.
    (Flow { socket: [socket as u32, (socket >> 32) as u32], place: endpoint }, origin)
}

fn borrowed<K, V>(entries: &[(K, V)]) -> Vec<(&K, &V)> {
    entries.iter().map(|(key, value)| (key, value)).collect()
}
