//! Which upstream servers a name belongs to.

use hickory_proto::rr::LowerName;

use super::validation::Resolver;

/// Which upstream servers a name belongs to.
#[derive(Debug)]
pub(crate) struct Routes {
    /// With the most labels first, so that the first match is the longest.
    zones: Vec<(LowerName, Resolver)>,
    others: Option<Resolver>,
}

impl Routes {
    pub(crate) fn new(mut zones: Vec<(LowerName, Resolver)>, others: Option<Resolver>) -> Self {
        zones.sort_by_key(|(zone, _)| std::cmp::Reverse(zone.num_labels()));
        Self { zones, others }
    }

    /// The servers for a name; nothing if none is configured.
    pub(crate) fn of(&self, name: &LowerName) -> Option<&Resolver> {
        let zone = self.zones.iter().find(|(zone, _)| zone.zone_of(name));
        zone.map(|(_, resolver)| resolver).or(self.others.as_ref())
    }
}
