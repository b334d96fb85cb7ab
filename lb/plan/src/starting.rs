//! New endpoints that do not listen yet.
//!
//! A task runs before it listens, and whoever is sent to it then is refused; a data plane that cannot try another endpoint
//! has to know better. So an endpoint that joins others gets connections when it is known to take them. While all that are
//! ready start, those go on that had the connections before. Where there are none, all get connections until half of them
//! are known to take them: to be refused is no worse than to be at one of few that break under the load of all. One that is
//! alone gets them whatever it would answer, so it is not asked.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_ebpf_abi::Place;

/// The share of new connections that each endpoint of a virtual address should get; none if it drains.
pub type Shares = BTreeMap<Place, Option<u32>>;

/// Fewer of a new address than this are not left alone with its connections: the share below which failing checks are ignored
/// by default.
const FEW_PERCENT: usize = 50;

/// How an endpoint takes part in fact, where that is not what its weight says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deviation {
    /// It gets nothing, because it does not listen as far as is known.
    NotListening,
    /// It gets nothing, because packets have no way to it.
    NoWay,
    /// It drains, and gets connections nevertheless.
    StandsIn,
}

impl Deviation {
    /// The reason, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotListening => "does not listen yet",
            Self::NoWay => "no route leads there",
            Self::StandsIn => "stands in until another listens",
        }
    }
}

/// What is known of the endpoints of a virtual address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Starting {
    /// Those that do not listen yet, as far as is known.
    places: BTreeSet<Place>,
    /// Those that do since a moment ago, and have no connections yet.
    started: BTreeSet<Place>,
    /// Those that drain and had connections when they began to. Others may have ended already.
    stand_ins: BTreeSet<Place>,
    /// Nobody was there before them, and some have got connections without being asked.
    is_first: bool,
}

impl Starting {
    /// Takes note of what an address is to lead to, where these endpoints have got connections so far. Returns the endpoints that
    /// are to be asked from now on whether they listen.
    pub fn follow(&mut self, wanted: &Shares, served: &BTreeSet<Place>) -> BTreeSet<Place> {
        let all = |is_ready: bool| {
            wanted.iter().filter(move |(_, share)| share.is_some() == is_ready).map(|(place, _)| *place)
        };
        let is_alone = served.is_empty() && all(true).count() == 1;
        let is_known = |place: &Place| is_alone || served.contains(place) || self.started.contains(place);
        self.is_first =
            served.is_empty() || (self.is_first && served.iter().any(|place| self.places.contains(place)));
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

    /// Whether an endpoint does not listen yet, as far as is known.
    pub fn contains(&self, place: &Place) -> bool {
        self.places.contains(place)
    }

    /// The endpoints that take part otherwise than their weights say, where these take new connections.
    pub fn deviations(&self, takes: impl Fn(&Place) -> bool) -> BTreeMap<Place, Deviation> {
        let waiting = self.places.iter().filter(|place| !takes(place));
        let stand_ins = self.stand_ins.iter().filter(|place| takes(place));
        let waiting = waiting.map(|place| (*place, Deviation::NotListening));
        waiting.chain(stand_ins.map(|place| (*place, Deviation::StandsIn))).collect()
    }

    /// Whether there is nothing that has to be known any more.
    pub fn is_over(&self) -> bool {
        self.places.is_empty() && self.started.is_empty()
    }

    /// Who gets connections for now: those that are ready and have started; if there are none, those that stand in for them; if
    /// there are none, those that start. At a new address these get them, too, for as long as few have started. Those of weight 0
    /// serve only where no other is ready: others stand in for them, but those that start do not, as they would refuse.
    pub fn effective(&self, wanted: &Shares) -> Shares {
        let ready = || wanted.iter().filter_map(|(place, share)| Some((place, (*share)?)));
        let is_weighed = ready().any(|(_, share)| share > 0);
        let serving = || ready().filter(|(_, share)| *share > 0 || !is_weighed).map(|(place, _)| place);
        let has_started = |place: &&Place| !self.places.contains(place);
        let is_any_started = ready().any(|(place, _)| has_started(&place));
        let started = serving().filter(has_started).count();
        let is_few = started * 100 < serving().count() * FEW_PERCENT;
        let has_nobody = self.stand_ins.is_empty() && (!is_any_started || self.is_first && is_few);
        if self.places.is_empty() || has_nobody {
            return wanted.clone();
        }
        let share = |place: &Place, share: Option<u32>| match share {
            Some(_) if self.places.contains(place) => None,
            None if started == 0 && self.stand_ins.contains(place) => Some(1),
            share => share,
        };
        wanted.iter().map(|(place, wanted)| (*place, share(place, *wanted))).collect()
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
        /// One where these are known to take connections.
        fn serving(numbers: &[u8]) -> Self {
            let effective = numbers.iter().map(|number| (place(*number), Some(3))).collect();
            Self { effective, ..Self::default() }
        }

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
        let mut address = Address::serving(&[1]);
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
        let mut address = Address::serving(&[1, 2]);
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
    fn what_takes_part_otherwise_than_wanted_is_said() {
        let mut address = Address::serving(&[1]);
        let deviations = |address: &Address| {
            let effective = ready(&address.effective);
            let found = address.starting.deviations(|place| effective.contains(place));
            found.into_values().collect::<Vec<_>>()
        };
        let stood_in = [(1, Some(1)), (2, None), (3, None)];
        address.wants(&[(1, None), (2, Some(3)), (3, Some(3))], &[2, 3], &stood_in);
        let expected = [Deviation::StandsIn, Deviation::NotListening, Deviation::NotListening];
        assert_eq!(deviations(&address), expected);
        assert!(address.starting.has_started(place(2)));
        let replaced = [(1, None), (2, Some(3)), (3, None)];
        address.wants(&[(1, None), (2, Some(3)), (3, Some(3))], &[], &replaced);
        assert_eq!(deviations(&address), [Deviation::NotListening]);
        // Where nobody was, all get connections whether they listen or not.
        let mut address = Address::default();
        address.wants(&[(1, Some(3)), (2, Some(3))], &[1, 2], &[(1, Some(3)), (2, Some(3))]);
        assert_eq!(deviations(&address), []);
    }

    #[test]
    fn who_gets_nothing_serves_nobody() {
        let mut address = Address::serving(&[1, 2]);
        // One is not well, the other has done its work: it goes on until the next one listens.
        let wanted = [(1, Some(0)), (2, None), (3, Some(5))];
        address.wants(&wanted, &[3], &[(1, Some(0)), (2, Some(1)), (3, None)]);
        address.wants(&wanted[..1], &[], &wanted[..1]);
        // One that is not well is better than one that refuses for certain.
        address.wants(&[(1, Some(0)), (3, Some(5))], &[3], &[(1, Some(0)), (3, None)]);

        let mut address = Address::default();
        let wanted = [(1, Some(0)), (2, Some(0)), (3, Some(5)), (4, Some(5)), (5, Some(5))];
        address.wants(&wanted, &[1, 2, 3, 4, 5], &wanted);
        (1..=3).for_each(|number| assert!(address.starting.has_started(place(number))));
        address.wants(&wanted, &[], &wanted);
        assert!(address.starting.has_started(place(4)));
        address.wants(&wanted, &[], &[(1, Some(0)), (2, Some(0)), (3, Some(5)), (4, Some(5)), (5, None)]);
    }

    #[test]
    fn where_nobody_is_few_are_not_left_alone() {
        let mut address = Address::default();
        let all = [(1, Some(3)), (2, Some(4)), (3, Some(5))];
        address.wants(&all, &[1, 2, 3], &all);
        assert!(address.starting.has_started(place(2)));
        address.wants(&all, &[], &all);
        assert!(address.starting.has_started(place(3)));
        address.wants(&all, &[], &[(1, None), (2, Some(4)), (3, Some(5))]);
        // Others join, which are not the first any more.
        let more = [(1, Some(3)), (2, Some(4)), (3, Some(5)), (4, Some(6)), (5, Some(6)), (6, Some(6))];
        let two = [(1, None), (2, Some(4)), (3, Some(5)), (4, None), (5, None), (6, None)];
        address.wants(&more, &[4, 5, 6], &two);
        (1..=6).filter(|number| ![2, 3].contains(number)).for_each(|number| {
            assert!(address.starting.has_started(place(number)));
        });
        address.wants(&more, &[], &more);
        address.wants(&more, &[], &more);
        assert!(address.starting.is_over());
    }

    #[test]
    fn who_is_alone_is_not_asked() {
        let mut address = Address::default();
        address.wants(&[(1, Some(3))], &[], &[(1, Some(3))]);
        assert!(address.starting.is_over());
        address.wants(&[(1, Some(3)), (2, Some(4))], &[2], &[(1, Some(3)), (2, None)]);
    }

    #[test]
    fn where_all_have_left_those_that_come_are_the_first() {
        let mut address = Address::serving(&[1]);
        address.wants(&[(1, None)], &[], &[(1, None)]);
        let two = [(1, Some(3)), (2, Some(4))];
        address.wants(&two, &[1, 2], &two);
        assert!(address.starting.has_started(place(2)));
        address.wants(&two, &[], &[(1, None), (2, Some(4))]);
        // The only one that listens goes, and nobody stands in for the other.
        address.wants(&two[..1], &[], &two[..1]);
    }
}
