//! A map from names to entries that is changed in place.

use std::hash::{BuildHasher, RandomState};

use super::entry::Entry;

/// Parts of the map. Each grows on its own, so that no change has to move more than a small part of all entries.
const SHARDS: usize = 256;

/// The bits of the hash that choose the part; the lowest ones choose the place in it.
const SHARD_SHIFT: u32 = u64::BITS - SHARDS.trailing_zeros();

/// Fewest places of a part that has entries.
const CAPACITY_MIN: usize = 8;

/// A map from names to entries: two touches of memory for a lookup.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    shards: Vec<Shard>,
    /// With secret keys, so that nobody can choose names that all get into one place.
    hasher: RandomState,
    entry_octets: usize,
}

#[derive(Debug, Clone, Default)]
struct Shard {
    /// Their number is a power of two or zero. At most three quarters are taken.
    places: Vec<Option<Place>>,
    taken: usize,
}

#[derive(Debug, Clone)]
struct Place {
    hash: u64,
    entry: Entry,
}

impl Table {
    /// A map without entries.
    pub(crate) fn new() -> Self {
        Self { shards: vec![Shard::default(); SHARDS], hasher: RandomState::new(), entry_octets: 0 }
    }

    /// What the other methods take for a name.
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Has the memory that a lookup touches first brought into the cache.
    pub(crate) fn prefetch(&self, hash: u64) {
        if let Some(shard) = self.shards.get(shard_of(hash))
            && let Some(place) = shard.places.get(shard.start(hash))
        {
            prefetch(place);
        }
    }

    /// The entry of a name.
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<&Entry> {
        let shard = self.shards.get(shard_of(hash))?;
        let at = shard.find(hash, key)?;
        shard.places.get(at)?.as_ref().map(|place| &place.entry)
    }

    /// Puts an entry in, instead of the one of the same name.
    pub(crate) fn insert(&mut self, entry: Entry) {
        let hash = self.hash(entry.key());
        self.entry_octets += entry.octet_count();
        let shard = &mut self.shards[shard_of(hash)];
        if let Some(place) = shard.find(hash, entry.key()).and_then(|at| shard.places[at].as_mut()) {
            self.entry_octets -= place.entry.octet_count();
            place.entry = entry;
            return;
        }
        if (shard.taken + 1) * 4 > shard.places.len() * 3 {
            shard.resize((shard.places.len() * 2).max(CAPACITY_MIN));
        }
        shard.put(Place { hash, entry });
        shard.taken += 1;
    }

    /// Takes the entry of a name out.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        let hash = self.hash(key);
        let shard = &mut self.shards[shard_of(hash)];
        let Some(old) = shard.find(hash, key).and_then(|at| shard.take(at)) else {
            return;
        };
        self.entry_octets -= old.entry.octet_count();
        shard.taken -= 1;
        if shard.taken * 8 < shard.places.len() && shard.places.len() > CAPACITY_MIN {
            shard.resize(shard.places.len() / 2);
        }
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.taken).sum()
    }

    /// Octets of the map itself.
    pub(crate) fn own_octet_count(&self) -> usize {
        let places: usize = self.shards.iter().map(|shard| shard.places.len()).sum();
        SHARDS * size_of::<Shard>() + places * size_of::<Option<Place>>()
    }

    /// Octets of the entries.
    pub(crate) fn entry_octet_count(&self) -> usize {
        self.entry_octets + self.len() * Entry::OVERHEAD_LENGTH
    }
}

impl Shard {
    fn start(&self, hash: u64) -> usize {
        hash as usize & self.places.len().wrapping_sub(1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<usize> {
        let mut at = self.start(hash);
        loop {
            let place = self.places.get(at)?.as_ref()?;
            if place.hash == hash && place.entry.key() == key {
                return Some(at);
            }
            at = self.after(at);
        }
    }

    /// Puts a new one in; there must be room.
    fn put(&mut self, place: Place) {
        let mut at = self.start(place.hash);
        while self.places[at].is_some() {
            at = self.after(at);
        }
        self.places[at] = Some(place);
    }

    /// Takes one out, and moves those that are further from where they belong because of it.
    fn take(&mut self, mut free: usize) -> Option<Place> {
        let taken = self.places[free].take();
        let mut at = self.after(free);
        while let Some(place) = &self.places[at] {
            let wanted = self.start(place.hash);
            let mask = self.places.len() - 1;
            // It may move only if the free place is between where it belongs and where it is.
            if at.wrapping_sub(wanted) & mask >= at.wrapping_sub(free) & mask {
                self.places[free] = self.places[at].take();
                free = at;
            }
            at = self.after(at);
        }
        taken
    }

    fn resize(&mut self, capacity: usize) {
        let old = std::mem::replace(&mut self.places, vec![None; capacity]);
        for place in old.into_iter().flatten() {
            self.put(place);
        }
    }
}

fn shard_of(hash: u64) -> usize {
    (hash >> SHARD_SHIFT) as usize
}

/// Has a value brought into the cache; where that cannot be asked for, it comes when it is used.
pub(crate) fn prefetch<T: ?Sized>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: it reads nothing that the program sees, whatever the address is; every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn key(number: u16) -> Vec<u8> {
        [&[2_u8], &number.to_be_bytes()[..]].concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn a_map_holds_what_was_put_in_and_not_taken_out(
            steps in proptest::collection::vec((0..6000_u16, 1..5000_u16, 1..4_usize, any::<bool>()), 1..6),
        ) {
            let mut table = Table::new();
            let mut model: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
            for (first, count, step, put) in steps {
                for number in (first..first + count).step_by(step) {
                    if put {
                        table.insert(Entry::bare(&key(number), step == 1));
                        model.insert(key(number), step == 1);
                    } else {
                        table.remove(&key(number));
                        model.remove(&key(number));
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                for number in 0..11_000 {
                    let key = key(number);
                    let found = table.get(table.hash(&key), &key).map(Entry::is_for_full_path);
                    prop_assert_eq!(found, model.get(&key).copied());
                }
            }
            let octets: usize = model.keys().map(|key| Entry::bare(key, false).octet_count()).sum();
            prop_assert_eq!(table.entry_octets, octets);
            let places: usize = table.shards.iter().map(|shard| shard.places.len()).sum();
            prop_assert!(places <= model.len() * 8 + SHARDS * CAPACITY_MIN);
        }
    }
}
