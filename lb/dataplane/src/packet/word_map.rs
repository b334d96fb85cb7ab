//! Maps of eBPF programs from words to words, read and written as octets.

use std::io;

use aya::maps::{HashMap, Map, MapData, MapError};
use mesonet_ebpf_abi::Words;

/// A hash map of types that are made of words.
#[derive(Debug)]
pub(super) struct WordMap<const KEY: usize, const VALUE: usize>(HashMap<MapData, [u8; KEY], [u8; VALUE]>);

impl<const KEY: usize, const VALUE: usize> WordMap<KEY, VALUE> {
    pub(super) fn new(map: Map) -> Result<Self, MapError> {
        HashMap::try_from(map).map(Self)
    }

    pub(super) fn put<K: Words, V: Words>(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.0.insert(octets::<K, KEY>(key), octets::<V, VALUE>(value), 0)
    }

    /// Removing what is not there is done already.
    pub(super) fn remove<K: Words>(&mut self, key: &K) -> Result<(), MapError> {
        match self.0.remove(&octets::<K, KEY>(key)) {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(super) fn all<K: Words, V: Words>(&self) -> Result<Vec<(K, V)>, MapError> {
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

/// A value as octets.
pub(super) fn octets<T: Words, const SIZE: usize>(value: &T) -> [u8; SIZE] {
    let mut octets = [0; SIZE];
    value.write(&mut octets);
    octets
}
