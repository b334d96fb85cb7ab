//! The maps of the programs, read and written as octets.

use aya::maps::{HashMap, Map, MapData, MapError};
use mesonet_ebpf_abi::{Flow, Frontend, Member, Place, Service, Slot, SlotKey, Words};
use mesonet_lb_plan::{KernelTable, MapWrite};

use super::EbpfError;

/// A map of words to words.
#[derive(Debug)]
pub(super) struct WordMap<const KEY: usize, const VALUE: usize>(HashMap<MapData, [u8; KEY], [u8; VALUE]>);

/// What the user side writes.
#[derive(Debug)]
pub(super) struct Maps {
    services: WordMap<{ Frontend::SIZE }, { Service::SIZE }>,
    slots: WordMap<{ SlotKey::SIZE }, { Slot::SIZE }>,
    members: WordMap<{ Member::SIZE }, { u32::SIZE }>,
}

/// From a socket and an endpoint to the virtual address that the client knows. Written by the programs.
pub(super) type Origins = WordMap<{ Flow::SIZE }, { Place::SIZE }>;

impl<const KEY: usize, const VALUE: usize> WordMap<KEY, VALUE> {
    pub(super) fn new(map: Map) -> Result<Self, EbpfError> {
        HashMap::try_from(map).map(Self).map_err(EbpfError::Map)
    }

    pub(super) fn get<K: Words, V: Words>(&self, key: &K) -> Option<V> {
        let octets = self.0.get(&octets::<K, KEY>(key), 0).ok()?;
        Some(V::read(&octets))
    }

    fn put<K: Words, V: Words>(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.0.insert(octets::<K, KEY>(key), octets::<V, VALUE>(value), 0)
    }

    /// Removing what is not there is done already.
    fn remove<K: Words>(&mut self, key: &K) -> Result<(), MapError> {
        match self.0.remove(&octets::<K, KEY>(key)) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            other => other,
        }
    }

    fn all<K: Words, V: Words>(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut all = Vec::new();
        for key in self.0.keys() {
            let key = key?;
            if let Ok(value) = self.0.get(&key, 0) {
                all.push((K::read(&key), V::read(&value)));
            }
        }
        Ok(all)
    }
}

impl Maps {
    pub(super) fn new(services: Map, slots: Map, members: Map) -> Result<Self, EbpfError> {
        Ok(Self {
            services: WordMap::new(services)?,
            slots: WordMap::new(slots)?,
            members: WordMap::new(members)?,
        })
    }

    /// What they hold, and what to remove from them.
    pub(super) fn read(&self) -> Result<(KernelTable, Vec<MapWrite>), MapError> {
        let services: Vec<(Frontend, Service)> = self.services.all()?;
        let slots: Vec<(SlotKey, Slot)> = self.slots.all()?;
        let members: Vec<(Member, u32)> = self.members.all()?;
        Ok(KernelTable::read(services, slots, members))
    }

    /// Makes one write.
    pub(super) fn write(&mut self, write: &MapWrite) -> Result<(), MapError> {
        match write {
            MapWrite::PutMember(member, counter) => self.members.put(member, counter),
            MapWrite::PutSlot(key, slot) => self.slots.put(key, slot),
            MapWrite::PutService(frontend, service) => self.services.put(frontend, service),
            MapWrite::RemoveService(frontend) => self.services.remove(frontend),
            MapWrite::RemoveSlot(key) => self.slots.remove(key),
            MapWrite::RemoveMember(member) => self.members.remove(member),
        }
    }
}

fn octets<T: Words, const SIZE: usize>(value: &T) -> [u8; SIZE] {
    let mut octets = [0; SIZE];
    value.write(&mut octets);
    octets
}
