//! Sets of port numbers.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A set of port numbers, kept as sorted, disjoint, inclusive ranges. Its text is that of Mesos:
/// `[31000-31009, 31020-31020]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct PortRanges(Vec<(u16, u16)>);

/// The text is no list of port ranges.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no list of port ranges, such as [31000-32000]")]
pub struct PortRangesError(pub String);

impl PortRanges {
    /// The empty set.
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    /// All ports from `first` to `last`, both included; empty if `last` is smaller.
    pub fn span(first: u16, last: u16) -> Self {
        if first <= last { Self(vec![(first, last)]) } else { Self::empty() }
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ports are in the set.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(first, last)| usize::from(last - first) + 1).sum()
    }

    /// Whether the port is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.contains_span(port, port)
    }

    /// Whether every port of the other set is in this one.
    pub fn contains_all(&self, other: &Self) -> bool {
        other.0.iter().all(|(first, last)| self.contains_span(*first, *last))
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// The ranges in ascending order, first and last port of each.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }

    /// Adds every port of another set.
    pub fn insert_all(&mut self, other: &Self) {
        if other.is_empty() {
            return;
        }
        let mut ranges = std::mem::take(&mut self.0);
        ranges.extend_from_slice(&other.0);
        *self = Self::from_ranges(ranges);
    }

    /// Removes every port of another set. Costs as much as both have ranges.
    pub fn remove_all(&mut self, other: &Self) {
        let mut holes = other.0.iter().peekable();
        let mut kept = Vec::with_capacity(self.0.len());
        for &(first, last) in &self.0 {
            // The first port of the range that no hole has reached; beyond 65535 if the last hole ends there.
            let mut from = u32::from(first);
            while let Some(&&(hole_first, hole_last)) = holes.peek() {
                if hole_first > last {
                    break;
                }
                if u32::from(hole_first) > from {
                    kept.push((from as u16, hole_first - 1));
                }
                from = from.max(u32::from(hole_last) + 1);
                if hole_last >= last {
                    break;
                }
                holes.next();
            }
            if from <= u32::from(last) {
                kept.push((from as u16, last));
            }
        }
        self.0 = kept;
    }

    /// The set of all ports of the ranges, which may touch, overlap and be in any order.
    pub fn from_ranges(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.retain(|(first, last)| first <= last);
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = (*end).max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn contains_span(&self, first: u16, last: u16) -> bool {
        let candidate = self.0.partition_point(|(_, to)| *to < last);
        self.0.get(candidate).is_some_and(|(from, _)| *from <= first)
    }
}

impl FromIterator<u16> for PortRanges {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        Self::from_ranges(ports.into_iter().map(|port| (port, port)).collect())
    }
}

impl fmt::Display for PortRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (index, (first, last)) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{first}-{last}")?;
        }
        f.write_str("]")
    }
}

impl FromStr for PortRanges {
    type Err = PortRangesError;

    fn from_str(text: &str) -> Result<Self, PortRangesError> {
        let error = || PortRangesError(text.to_owned());
        let inner = text.trim();
        let inner = inner.strip_prefix('[').unwrap_or(inner);
        let inner = inner.strip_suffix(']').unwrap_or(inner);
        let mut ranges = Vec::new();
        for part in inner.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u16 = first.trim().parse().map_err(|_| error())?;
            let last: u16 = last.trim().parse().map_err(|_| error())?;
            if first > last {
                return Err(error());
            }
            ranges.push((first, last));
        }
        Ok(Self::from_ranges(ranges))
    }
}

crate::text_key::serde_as_text!(PortRanges);
