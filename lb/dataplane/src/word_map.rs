//! Maps of eBPF programs from words to words, read and written as octets.

use std::io;
use std::marker::PhantomData;
use std::num::NonZero;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

use aya::maps::{Map, MapData, MapError};
use mesonet_ebpf_abi::Words;

use crate::bpf_call;

/// Entries that a thread of its own is worth for.
const PART_MIN: usize = 8192;

/// A map of types that are made of words.
#[derive(Debug)]
pub(crate) struct WordMap<K, V> {
    data: MapData,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Words, V: Words> WordMap<K, V> {
    /// A map of other keys or values than this version's is refused.
    pub(crate) fn new(data: MapData) -> Result<Self, MapError> {
        let info = data.info()?;
        let (key, value) = (info.key_size() as usize, info.value_size() as usize);
        if key != K::SIZE {
            return Err(MapError::InvalidKeySize { size: key, expected: K::SIZE });
        }
        if value != V::SIZE {
            return Err(MapError::InvalidValueSize { size: value, expected: V::SIZE });
        }
        Ok(Self { data, types: PhantomData })
    }

    /// One that is pinned.
    pub(crate) fn open(path: &Path) -> Result<Self, MapError> {
        Self::new(MapData::from_pin(path)?)
    }

    pub(crate) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        self.put_some(&[(key, value)])
    }

    /// Writes it unless the key has a value. Returns whether it had none.
    pub(crate) fn put_new(&self, key: &K, value: &V) -> io::Result<bool> {
        match bpf_call::update(self.descriptor(), &octets(key), &octets(value), true) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = vec![0; V::SIZE];
        match bpf_call::lookup(self.descriptor(), &octets(key), &mut value) {
            Ok(()) => Ok(Some(V::read(&value))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where there are many, all processors do it: most of the time goes into the kernel's memory.
    pub(crate) fn put_many(&self, entries: &[(&K, &V)]) -> io::Result<()>
    where
        K: Sync,
        V: Sync,
    {
        let processors = thread::available_parallelism().map_or(1, NonZero::get);
        let part = entries.len().div_ceil(processors).max(PART_MIN);
        if entries.len() <= part {
            return self.put_some(entries);
        }
        thread::scope(|scope| {
            let parts = entries.chunks(part).map(|some| scope.spawn(move || self.put_some(some)));
            let joined = |part: ScopedJoinHandle<'_, io::Result<()>>| {
                part.join().unwrap_or_else(|_| Err(io::Error::other("BUG: a thread has failed")))
            };
            parts.collect::<Vec<_>>().into_iter().try_for_each(joined)
        })
    }

    /// In their order.
    fn put_some(&self, entries: &[(&K, &V)]) -> io::Result<()> {
        let mut keys = vec![0; K::SIZE * entries.len()];
        let mut values = vec![0; V::SIZE * entries.len()];
        for (at, (key, value)) in entries.iter().enumerate() {
            key.write(&mut keys[at * K::SIZE..]);
            value.write(&mut values[at * V::SIZE..]);
        }
        bpf_call::update_many(self.descriptor(), &keys, &values, entries.len())
    }

    /// Removing what is not there is done already.
    pub(crate) fn remove(&self, key: &K) -> io::Result<()> {
        self.remove_many(&[key])
    }

    /// The same of many.
    pub(crate) fn remove_many(&self, keys: &[&K]) -> io::Result<()> {
        let mut packed = vec![0; K::SIZE * keys.len()];
        for (at, key) in keys.iter().enumerate() {
            key.write(&mut packed[at * K::SIZE..]);
        }
        remove_all(self.descriptor(), &packed, K::SIZE)
    }

    pub(crate) fn all(&self) -> io::Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.for_each(|key, value| all.push((K::read(key), V::read(value))))?;
        Ok(all)
    }

    /// Shows every entry as octets. Those that are made or removed meanwhile may be missed.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        bpf_call::lookup_all(self.descriptor(), (K::SIZE, V::SIZE), |keys, values| {
            let pairs = keys.chunks_exact(K::SIZE).zip(values.chunks_exact(V::SIZE));
            pairs.for_each(|(key, value)| each(key, value));
        })
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.data.fd().as_fd()
    }
}

/// The descriptor of a map of any kind that is used here.
pub(crate) fn data(map: Map) -> Option<MapData> {
    match map {
        Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::PerCpuHashMap(data) => {
            Some(data)
        }
        _ => None,
    }
}

/// Removes keys that are packed. The kernel stops at one that is not there; such a one is passed over.
pub(crate) fn remove_all(map: BorrowedFd<'_>, mut keys: &[u8], size: usize) -> io::Result<()> {
    while !keys.is_empty() {
        let (removed, result) = bpf_call::delete_many(map, keys, size);
        match result {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                keys = keys.get((removed + 1) * size..).unwrap_or_default();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A value as octets.
pub(crate) fn octets<T: Words>(value: &T) -> Vec<u8> {
    let mut octets = vec![0; T::SIZE];
    value.write(&mut octets);
    octets
}
