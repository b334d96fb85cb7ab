//! A map from names to entries that shares all but the changed path with its predecessor.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::entry::Entry;

/// Bits of the hash that choose a child. More make the map flatter, but a change copies all children on its path.
const CHOICE_BITS: u32 = 4;

/// Children of a branch.
const CHILDREN: usize = 1 << CHOICE_BITS;

/// Most entries of a leaf; one that would have more becomes a branch. A lookup compares their hashes one by one.
const LEAF_LENGTH_MAX: usize = 32;

/// Where the hash is used up. Leaves there take any number of entries.
const DEPTH_MAX: u32 = u64::BITS / CHOICE_BITS;

/// A map from names to entries. A clone costs a few pointer copies.
#[derive(Debug, Clone)]
pub(crate) struct Trie {
    root: Node,
    /// With secret keys, so that nobody can choose names that all fall into one leaf.
    hasher: RandomState,
    entries: usize,
    entry_octets: usize,
    branches: usize,
}

#[derive(Debug, Clone)]
enum Node {
    Leaf(Arc<[Slot]>),
    Branch(Arc<[Node; CHILDREN]>),
}

#[derive(Debug, Clone)]
struct Slot {
    hash: u64,
    entry: Entry,
}

impl Trie {
    /// A map without entries.
    pub(crate) fn new() -> Self {
        Self { root: Node::empty(), hasher: RandomState::new(), entries: 0, entry_octets: 0, branches: 0 }
    }

    /// The entry of a name.
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        let hash = self.hasher.hash_one(key);
        let mut node = &self.root;
        let mut rest = hash;
        loop {
            match node {
                Node::Branch(children) => {
                    node = &children[choice(rest)];
                    rest >>= CHOICE_BITS;
                }
                Node::Leaf(slots) => {
                    let slot = slots.iter().find(|slot| slot.hash == hash && slot.entry.key() == key)?;
                    return Some(&slot.entry);
                }
            }
        }
    }

    /// Puts an entry in, instead of the one of the same name.
    pub(crate) fn insert(&mut self, entry: Entry) {
        self.entry_octets += entry.octet_count();
        let slot = Slot { hash: self.hasher.hash_one(entry.key()), entry };
        match self.root.insert(slot, 0, &mut self.branches) {
            Some(old) => self.entry_octets -= old.octet_count(),
            None => self.entries += 1,
        }
    }

    /// Takes the entry of a name out.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        // Without an entry nothing is to be copied.
        if self.get(key).is_none() {
            return;
        }
        let hash = self.hasher.hash_one(key);
        if let Some(old) = self.root.remove(hash, hash, key) {
            self.entry_octets -= old.octet_count();
            self.entries -= 1;
        }
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// About how much memory it takes, in octets. What it shares with others counts.
    pub(crate) fn octet_count(&self) -> usize {
        let branch = size_of::<[Node; CHILDREN]>() + COUNTERS_LENGTH;
        let leaves = self.branches * (CHILDREN - 1) + 1;
        let slot = size_of::<Slot>() + COUNTERS_LENGTH;
        self.entry_octets + self.entries * slot + self.branches * branch + leaves * COUNTERS_LENGTH
    }
}

/// Octets of the two counters in front of shared values.
const COUNTERS_LENGTH: usize = 16;

impl Node {
    fn empty() -> Self {
        Self::Leaf(Arc::from([]))
    }

    /// The entry that was there before.
    fn insert(&mut self, slot: Slot, depth: u32, branches: &mut usize) -> Option<Entry> {
        match self {
            Self::Branch(children) => {
                let at = choice(remaining(slot.hash, depth));
                Arc::make_mut(children)[at].insert(slot, depth + 1, branches)
            }
            Self::Leaf(slots) => {
                let same = |each: &Slot| each.hash == slot.hash && each.entry.key() == slot.entry.key();
                if let Some(at) = slots.iter().position(same) {
                    return Some(std::mem::replace(&mut Arc::make_mut(slots)[at], slot).entry);
                }
                let longer: Vec<Slot> = slots.iter().cloned().chain([slot]).collect();
                *self = Self::of(longer, depth, branches);
                None
            }
        }
    }

    fn of(slots: Vec<Slot>, depth: u32, branches: &mut usize) -> Self {
        if slots.len() <= LEAF_LENGTH_MAX || depth == DEPTH_MAX {
            return Self::Leaf(Arc::from(slots));
        }
        *branches += 1;
        let mut parts: [Vec<Slot>; CHILDREN] = Default::default();
        for slot in slots {
            parts[choice(remaining(slot.hash, depth))].push(slot);
        }
        Self::Branch(Arc::new(parts.map(|part| Self::of(part, depth + 1, branches))))
    }

    /// The entry that was there. Branches stay: names come and go, and most come again.
    fn remove(&mut self, hash: u64, rest: u64, key: &[u8]) -> Option<Entry> {
        match self {
            Self::Branch(children) => {
                Arc::make_mut(children)[choice(rest)].remove(hash, rest >> CHOICE_BITS, key)
            }
            Self::Leaf(slots) => {
                let at = slots.iter().position(|slot| slot.hash == hash && slot.entry.key() == key)?;
                let mut shorter = slots.to_vec();
                let old = shorter.remove(at);
                *slots = Arc::from(shorter);
                Some(old.entry)
            }
        }
    }
}

fn choice(rest: u64) -> usize {
    rest as usize & (CHILDREN - 1)
}

fn remaining(hash: u64, depth: u32) -> u64 {
    hash.checked_shr(depth * CHOICE_BITS).unwrap_or(0)
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

        /// Some thousand names, so that leaves become branches twice; a version in between stays as it was.
        #[test]
        fn a_map_holds_what_was_put_in_and_not_taken_out(
            steps in proptest::collection::vec((0..6000_u16, 1..3000_u16, any::<bool>()), 1..6),
        ) {
            let mut trie = Trie::new();
            let mut model: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
            for (step, (first, count, put)) in steps.into_iter().enumerate() {
                let before = (trie.clone(), model.clone());
                for number in first..first + count {
                    if put {
                        trie.insert(Entry::bare(&key(number), step % 2 == 0));
                        model.insert(key(number), step % 2);
                    } else {
                        trie.remove(&key(number));
                        model.remove(&key(number));
                    }
                }
                for (trie, model) in [&before, &(trie.clone(), model.clone())] {
                    prop_assert_eq!(trie.len(), model.len());
                    for number in 0..9000 {
                        let found = trie.get(&key(number)).map(|entry| usize::from(!entry.is_for_full_path()));
                        prop_assert_eq!(found, model.get(&key(number)).copied());
                    }
                }
            }
            let octets: usize = model.keys().map(|key| Entry::bare(key, false).octet_count()).sum();
            prop_assert_eq!(trie.entry_octets, octets);
        }
    }
}
