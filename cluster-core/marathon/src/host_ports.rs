//! Which host ports a task gets.

use std::collections::BTreeMap;

use mesonet_model::{AgentId, PortRanges};

/// Chooses dynamic host ports round-robin per agent from a seeded start, so that a port comes back as late as possible:
/// a client that still has the address of an ended task does not reach another app.
#[derive(Debug)]
pub(crate) struct HostPorts {
    seed: u64,
    next: BTreeMap<AgentId, u16>,
}

impl HostPorts {
    /// A chooser whose starts follow from the seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, next: BTreeMap::new() }
    }

    /// One port of the agent for each one wanted: a number exactly, 0 any, absent none. `None` if there are not enough.
    pub(crate) fn choose(
        &mut self,
        agent: &AgentId,
        wanted: &[Option<u16>],
        available: &PortRanges,
    ) -> Option<Vec<Option<u16>>> {
        if wanted.iter().all(Option::is_none) {
            return Some(wanted.to_vec());
        }
        let mut free = available.clone();
        for port in wanted.iter().flatten().filter(|port| **port != 0) {
            if !free.contains(*port) {
                return None;
            }
            free.remove_all(&PortRanges::span(*port, *port));
        }
        let mut next = match self.next.get(agent) {
            Some(next) => *next,
            None => self.start(agent, available),
        };
        let mut chosen = wanted.to_vec();
        for port in chosen.iter_mut().flatten().filter(|port| **port == 0) {
            *port = first_from(&free, next)?;
            free.remove_all(&PortRanges::span(*port, *port));
            next = port.wrapping_add(1);
        }
        self.next.insert(agent.clone(), next);
        Some(chosen)
    }

    /// Where the agent's round begins.
    fn start(&self, agent: &AgentId, available: &PortRanges) -> u16 {
        // FNV-1a: spreads the agents' starts, no more is needed.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ self.seed;
        for byte in agent.as_str().bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut index = usize::try_from(hash >> 16).unwrap_or(0) % available.len().max(1);
        for (first, last) in available.ranges() {
            let length = usize::from(last - first) + 1;
            if index < length {
                return first.saturating_add(u16::try_from(index).unwrap_or(u16::MAX));
            }
            index -= length;
        }
        0
    }
}

/// The first port of the set from `next` on, else its smallest.
fn first_from(free: &PortRanges, next: u16) -> Option<u16> {
    let ranges = free.ranges();
    let after = ranges.iter().find(|(_, last)| *last >= next).map(|(first, _)| (*first).max(next));
    after.or_else(|| ranges.first().map(|(first, _)| *first))
}
