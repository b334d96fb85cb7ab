//! How many entries there are in each map, and how many there may be.

use std::ops::{AddAssign, SubAssign};

use mesonet_ebpf_abi::{FRONTENDS_MAX, MAGLEV_CHUNKS_MAX, SLOTS_MAX, Service};
use thiserror::Error;

/// A map that holds what connections are balanced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KernelMap {
    /// Virtual addresses, each with its port and protocol.
    Services,
    /// Endpoints that take new connections, behind each address.
    Slots,
    /// Tables of addresses whose endpoints are chosen by the client, in chunks.
    Positions,
    /// Endpoints that drain or that clients may stay with, behind each address.
    Members,
}

/// Entries of each map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entries([usize; KernelMap::ALL.len()]);

/// A virtual address cannot be put into the maps. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the map of {} has no room for {wanted} more of at most {} entries{}; fewer services with fewer endpoints need \
     less{}", map.as_str(), map.entries_max(), kept(map.reserve()), advice(*map)
)]
pub struct NoRoom {
    /// What is full.
    pub map: KernelMap,
    /// How many more there would be.
    pub wanted: usize,
}

/// One entry of so many is kept for virtual addresses that are there already: a change of one needs room for its old and
/// its new endpoints at once, and must not fail because others have come.
const RESERVE_SHARE: usize = 16;

impl KernelMap {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Services, Self::Slots, Self::Positions, Self::Members];

    /// How many entries it can have.
    pub const fn entries_max(self) -> usize {
        (match self {
            Self::Services => FRONTENDS_MAX,
            Self::Slots | Self::Members => SLOTS_MAX,
            Self::Positions => MAGLEV_CHUNKS_MAX,
        }) as usize
    }

    /// For people, and for labels of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Slots => "slots",
            Self::Positions => "positions",
            Self::Members => "members",
        }
    }

    /// How many of the entries new virtual addresses do not get.
    const fn reserve(self) -> usize {
        match self {
            // An address that is there has its entry.
            Self::Services => 0,
            Self::Slots | Self::Positions | Self::Members => self.entries_max() / RESERVE_SHARE,
        }
    }
}

fn kept(reserve: usize) -> String {
    if reserve > 0 { format!(" ({reserve} are kept for changes)") } else { String::new() }
}

fn advice(map: KernelMap) -> &'static str {
    match map {
        KernelMap::Positions => ", and MESONET_LB_ALGORITHM other than maglev needs none",
        KernelMap::Services | KernelMap::Slots | KernelMap::Members => "",
    }
}

impl Entries {
    pub(super) fn new(services: usize, slots: usize, positions: usize, members: usize) -> Self {
        Self([services, slots, positions, members])
    }

    /// Those that are written anew whenever the endpoints of an address change.
    pub(super) fn of_generation(service: Service) -> Self {
        Self::new(0, service.slots as usize, super::chunks(service.points) as usize, 0)
    }

    /// Of one map.
    pub fn of(self, map: KernelMap) -> usize {
        self.0[map as usize]
    }

    /// Whether there is room for more of them.
    pub(super) fn check(self, wanted: Self, is_new: bool) -> Result<(), NoRoom> {
        let full = KernelMap::ALL.into_iter().find(|map| {
            let reserve = if is_new { map.reserve() } else { 0 };
            wanted.of(*map) > 0 && self.of(*map) + wanted.of(*map) > map.entries_max() - reserve
        });
        let refused = |map| NoRoom { map, wanted: wanted.of(map) };
        full.map_or(Ok(()), |map| Err(refused(map)))
    }
}

impl AddAssign for Entries {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, each)| *sum += each);
    }
}

impl SubAssign for Entries {
    fn sub_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, each)| *sum -= each);
    }
}
