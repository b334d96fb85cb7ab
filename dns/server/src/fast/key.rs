//! Names as keys of the map.

/// The longest name in octets, with the root's (RFC 1035 §2.3.4).
pub(crate) const NAME_LENGTH_MAX: usize = 255;

/// Most labels of a name: each but the root's takes at least two octets.
const LABELS_MAX: usize = NAME_LENGTH_MAX / 2;

/// The longest label in octets (RFC 1035 §2.3.4). What says that it is longer is a pointer or reserved.
const LABEL_LENGTH_MAX: u8 = 63;

/// A name in lower case, its labels from the root on, each behind its length: as the zone keeps names.
#[derive(Debug)]
pub(crate) struct Key {
    octets: [u8; NAME_LENGTH_MAX],
    length: usize,
    label_count: usize,
}

impl Key {
    /// The root.
    pub(crate) fn new() -> Self {
        Self { octets: [0; NAME_LENGTH_MAX], length: 0, label_count: 0 }
    }

    /// The octets.
    pub(crate) fn octets(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }

    /// Labels without the root's.
    pub(crate) fn label_count(&self) -> usize {
        self.label_count
    }

    /// Puts other octets in front instead of the first ones. Nothing if the name would be too long.
    pub(crate) fn replace_front(&mut self, length: usize, front: &[u8]) -> Option<()> {
        let end = (self.length + front.len()).checked_sub(length).filter(|end| *end < NAME_LENGTH_MAX)?;
        self.octets.copy_within(length..self.length, front.len());
        self.octets.get_mut(..front.len())?.copy_from_slice(front);
        self.length = end;
        Some(())
    }

    /// Reads the name that begins here, and says how many octets it has. Nothing if it is compressed or no name, or if
    /// a label begins with an asterisk, which means something to the full path.
    pub(crate) fn read(&mut self, wire: &[u8]) -> Option<usize> {
        let mut starts = [0_u8; LABELS_MAX];
        let mut count = 0;
        let mut at = 0;
        loop {
            let length = *wire.get(at)?;
            if length == 0 {
                break;
            }
            if length > LABEL_LENGTH_MAX || wire.get(at + 1) == Some(&b'*') {
                return None;
            }
            *starts.get_mut(count)? = u8::try_from(at).ok()?;
            count += 1;
            at += 1 + usize::from(length);
        }
        if at >= NAME_LENGTH_MAX {
            return None;
        }
        let mut filled = 0;
        let mut end = at;
        for start in starts.get(..count)?.iter().rev().map(|start| usize::from(*start)) {
            let label = wire.get(start..end)?;
            self.octets.get_mut(filled..filled + label.len())?.copy_from_slice(label);
            filled += label.len();
            end = start;
        }
        // The lengths between the labels are no letters.
        self.octets.get_mut(..at)?.make_ascii_lowercase();
        self.length = at;
        self.label_count = count;
        Some(at + 1)
    }
}

#[cfg(test)]
mod tests {
    use mesonet_dns_zone::Name;
    use proptest::prelude::*;

    use super::super::entry::wire_form;
    use super::*;

    proptest! {
        #[test]
        fn keys_are_the_octets_of_names(
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..64), 0..9),
        ) {
            let name = Name::from_labels(labels.iter().map(Vec::as_slice));
            let mut wire: Vec<u8> = labels.iter().flat_map(|label| [&[label.len() as u8][..], label].concat()).collect();
            wire.extend([0, 7]);
            let mut key = Key::new();
            let read = key.read(&wire);
            match name {
                Ok(name) if !labels.iter().any(|label| label.starts_with(b"*")) => {
                    prop_assert_eq!(read, Some(wire.len() - 1));
                    prop_assert_eq!(key.octets(), name.octets());
                    prop_assert_eq!(key.label_count(), labels.len());
                    prop_assert_eq!(wire_form(&name), wire[..wire.len() - 1].to_ascii_lowercase());
                }
                _ => prop_assert_eq!(read, None),
            }
        }

        #[test]
        fn any_octets_are_a_name_or_none(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut key = Key::new();
            if let Some(length) = key.read(&octets) {
                prop_assert!(length <= octets.len() && length <= NAME_LENGTH_MAX);
                prop_assert_eq!(octets[length - 1], 0);
            }
        }
    }
}
