//! New endpoints that do not listen yet.
//!
//! A task runs before it listens, and whoever is sent to it then is refused; a data plane that cannot try another endpoint
//! has to know better. So an endpoint that joins others gets connections when it is known to take them. While all that are
//! ready start, those go on that had the connections before.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_ebpf_abi::Place;

/// The share of new connections that each endpoint of a virtual address should get; none if it drains.
pub type Shares = BTreeMap<Place, Option<u32>>;

/// What is known of the endpoints of a virtual address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Starting {
    /// Those that do not listen yet, as far as is known.
    places: BTreeSet<Place>,
    /// Those that do since a moment ago, and have no connections yet.
    started: BTreeSet<Place>,
    /// Those that drain and had connections when they began to. Others may have ended already.
    stand_ins: BTreeSet<Place>,
}

impl Starting {
    /// Takes note of what an address is to lead to, where these endpoints have got connections so far. Returns the endpoints that
    /// are to be asked from now on whether they listen.
    pub fn follow(&mut self, wanted: &Shares, served: &BTreeSet<Place>) -> BTreeSet<Place> {
        let all = |is_ready: bool| {
            wanted.iter().filter(move |(_, share)| share.is_some() == is_ready).map(|(place, _)| *place)
        };
        let is_known = |place: &Place| {
            // Where nobody is, nobody can do their work meanwhile.
            served.is_empty() || served.contains(place) || self.started.contains(place)
        };
        let ready: BTreeSet<Place> = all(true).collect();
        let new: BTreeSet<Place> =
            ready.iter().filter(|place| !is_known(place) && !self.places.contains(place)).copied().collect();
        self.places = self.places.intersection(&ready).chain(&new).copied().collect();
        self.started.retain(|place| ready.contains(place) && !served.contains(place));
        self.stand_ins = all(false).filter(|place| served.contains(place)).collect();
        new
    }

    /// An endpoint listens. Returns whether that was not known.
    pub fn has_started(&mut self, place: Place) -> bool {
        let is_new = self.places.remove(&place);
        if is_new {
            self.started.insert(place);
        }
        is_new
    }

    /// Whether there is nothing that has to be known any more.
    pub fn is_over(&self) -> bool {
        self.places.is_empty() && self.started.is_empty()
    }

    /// Who gets connections for now: those that are ready and have started; if there are none, those that stand in for them; if
    /// there are none, those that start.
    pub fn effective(&self, wanted: &Shares) -> Shares {
        let is_served = self.is_served(wanted);
        if !is_served && (self.places.is_empty() || self.stand_ins.is_empty()) {
            return wanted.clone();
        }
        let share = |place: &Place, share: Option<u32>| match share {
            Some(_) if self.places.contains(place) => None,
            None if !is_served && self.stand_ins.contains(place) => Some(1),
            share => share,
        };
        wanted.iter().map(|(place, wanted)| (*place, share(place, *wanted))).collect()
    }

    fn is_served(&self, wanted: &Shares) -> bool {
        wanted.iter().any(|(place, share)| share.is_some() && !self.places.contains(place))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn place(number: u8) -> Place {
        Place::from(SocketAddr::from(([10, 0, 0, number], 80)))
    }

    fn shares(list: &[(u8, Option<u32>)]) -> Shares {
        list.iter().map(|(number, share)| (place(*number), *share)).collect()
    }

    fn ready(shares: &Shares) -> BTreeSet<Place> {
        shares.iter().filter(|(_, share)| share.is_some()).map(|(place, _)| *place).collect()
    }

    /// Puts one wish after the other into effect.
    #[derive(Default)]
    struct Address {
        starting: Starting,
        effective: Shares,
    }

    impl Address {
        #[track_caller]
        fn wants(&mut self, wanted: &[(u8, Option<u32>)], asked: &[u8], effective: &[(u8, Option<u32>)]) {
            let wanted = shares(wanted);
            let new = self.starting.follow(&wanted, &ready(&self.effective));
            assert_eq!(new, asked.iter().map(|number| place(*number)).collect());
            self.effective = self.starting.effective(&wanted);
            assert_eq!(self.effective, shares(effective));
        }
    }

    #[test]
    fn who_joins_others_waits_until_it_listens() {
        let mut address = Address::default();
        let first = [(1, Some(3))];
        address.wants(&first, &[], &first);
        let both = [(1, Some(3)), (2, Some(4))];
        address.wants(&both, &[2], &[(1, Some(3)), (2, None)]);
        address.wants(&both, &[], &[(1, Some(3)), (2, None)]);
        assert!(address.starting.has_started(place(2)));
        assert!(!address.starting.has_started(place(2)), "once");
        address.wants(&both, &[], &both);
        address.wants(&both, &[], &both);
        assert!(address.starting.is_over());
    }

    #[test]
    fn those_that_drain_stand_in_until_one_listens() {
        let mut address = Address::default();
        address.wants(&[(1, Some(3)), (2, Some(3))], &[], &[(1, Some(3)), (2, Some(3))]);
        let replaced = [(1, None), (2, None), (3, Some(5)), (4, Some(5))];
        let stood_in = [(1, Some(1)), (2, Some(1)), (3, None), (4, None)];
        address.wants(&replaced, &[3, 4], &stood_in);
        address.wants(&replaced, &[], &stood_in);
        // One of them has ended.
        address.wants(&replaced[1..], &[], &stood_in[1..]);
        assert!(address.starting.has_started(place(4)));
        address.wants(&replaced[1..], &[], &[(2, None), (3, None), (4, Some(5))]);
        // It drains, too; who has drained for longer may have ended, and nobody asks for it again.
        address.wants(&[(2, None), (3, Some(5)), (4, None)], &[], &[(2, None), (3, None), (4, Some(1))]);
        address.wants(&[(2, None), (3, Some(5))], &[], &[(2, None), (3, Some(5))]);
    }

    #[test]
    fn where_nobody_is_nobody_waits() {
        let mut address = Address::default();
        let all = [(1, Some(3)), (2, Some(4))];
        address.wants(&all, &[], &all);
        address.wants(&[(1, None)], &[], &[(1, None)]);
        address.wants(&all, &[], &all);
        assert!(address.starting.is_over());
    }
}
