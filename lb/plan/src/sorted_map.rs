//! A map of few entries.

use std::fmt;
use std::ops::Index;

/// Entries side by side, in the order of their keys, in no more memory than they take. Most services have few endpoints,
/// and a node of a B-tree has room for eleven entries: with many services, the kernel's work to hand out memory that
/// stays empty is what takes most of the time.
#[derive(Clone, PartialEq, Eq)]
pub struct SortedMap<K, V>(Vec<(K, V)>);

impl<K: Ord, V> SortedMap<K, V> {
    /// Without entries.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of a key.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.position(key).ok().map(|at| &self.0[at].1)
    }

    /// Whether a key has a value.
    pub fn contains_key(&self, key: &K) -> bool {
        self.position(key).is_ok()
    }

    /// Gives a key a value. Returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.position(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// Removes a key. Returns its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.position(key).ok()?;
        Some(self.0.remove(at).1)
    }

    /// Keys and values, in the order of the keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> + ExactSizeIterator + Clone {
        self.0.iter().map(|(key, value)| (key, value))
    }

    /// Keys, in their order.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &K> + ExactSizeIterator + Clone {
        self.0.iter().map(|(key, _)| key)
    }

    /// Values, in the order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> + ExactSizeIterator + Clone {
        self.0.iter().map(|(_, value)| value)
    }

    fn position(&self, key: &K) -> Result<usize, usize> {
        // Whoever adds entries one after another adds them in order.
        match self.0.last() {
            Some((last, _)) if last < key => Err(self.0.len()),
            _ => self.0.binary_search_by(|(each, _)| each.cmp(key)),
        }
    }
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SortedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(key, value)| (key, value))).finish()
    }
}

/// Of several values for a key, the last is taken.
impl<K: Ord, V> FromIterator<(K, V)> for SortedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut entries: Vec<(K, V)> = entries.into_iter().collect();
        if !entries.is_sorted_by(|(one, _), (next, _)| one < next) {
            entries.reverse();
            entries.sort_by(|(one, _), (other, _)| one.cmp(other));
            entries.dedup_by(|(one, _), (kept, _)| one == kept);
        }
        entries.shrink_to_fit();
        Self(entries)
    }
}

impl<K, V> IntoIterator for SortedMap<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<K: Ord, V> Index<&K> for SortedMap<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("BUG: no entry for the key")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_several_values_the_last_is_taken() {
        let map: SortedMap<u8, u8> = [(2, 1), (1, 2), (2, 3), (2, 4)].into_iter().collect();
        assert_eq!(map.iter().collect::<Vec<_>>(), [(&1, &2), (&2, &4)]);
        assert_eq!((map[&2], format!("{map:?}").as_str()), (4, "{1: 2, 2: 4}"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_map(collected in prop::collection::vec((0..9_u8, any::<u8>()), 0..9), steps in prop::collection::vec((0..9_u8, prop::option::of(any::<u8>())), 0..40)) {
            let mut map: SortedMap<u8, u8> = collected.iter().copied().collect();
            let mut reference: BTreeMap<u8, u8> = collected.into_iter().collect();
            for (key, value) in steps {
                match value {
                    Some(value) => prop_assert_eq!(map.insert(key, value), reference.insert(key, value)),
                    None => prop_assert_eq!(map.remove(&key), reference.remove(&key)),
                }
                prop_assert_eq!(map.get(&key), reference.get(&key));
                prop_assert_eq!(map.contains_key(&key), reference.contains_key(&key));
                prop_assert!(map.iter().eq(reference.iter()) && map.keys().eq(reference.keys()));
                prop_assert!(map.values().eq(reference.values()) && map.len() == reference.len());
                prop_assert_eq!(map.is_empty(), reference.is_empty());
            }
            prop_assert!(map.clone().into_iter().eq(reference));
            prop_assert_eq!(map.clone(), map);
        }
    }
}
