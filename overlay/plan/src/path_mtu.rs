//! The largest packet that reaches a peer, found by probing (RFC 8899).
//!
//! ```text
//!            start                    answer at the ceiling
//!   Unknown ───────► Searching ──────────────────────────────► Found
//!                     │   ▲ │                                   │ │
//!     nothing answers │   │ └── bounds meet ──────────────────► │ │ a check goes unanswered,
//!                     ▼   └─────────────────────────────────────┘ │ but smaller ones are answered;
//!                   Mute (the peer does not speak this)           ▼ or it is time to try larger ones
//!                                                             Searching
//! ```
//!
//! Lengths are those of packets inside the tunnel. No message by a router is needed, so it does not matter if they are
//! dropped on the way. While nothing is known, packets are as short as the floor.

use std::time::{Duration, Instant};

/// Lengths that are probed at the same time.
const PARALLEL: usize = 4;

/// How often a length is probed before it counts as too long.
const TRIES: u8 = 3;

/// And before a peer that never answered counts as one that does not know probes.
const TRIES_FIRST: u8 = 6;

/// Lengths that are not told apart: what a search stops at.
const STEP: u16 = 8;

/// Shortest time for an answer.
const ANSWER_TIME_MIN: Duration = Duration::from_millis(100);

/// How often a length that was found is checked while packets are sent.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long after a search a longer length is tried again (PMTU_RAISE_TIMER of the standard).
const RAISE_INTERVAL: Duration = Duration::from_secs(600);

/// Which lengths there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeSizes {
    /// What every path is expected to carry.
    pub floor: u16,
    /// What the tunnel's device takes.
    pub ceiling: u16,
}

/// A question whether a packet of this length arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Names it in the answer.
    pub number: u32,
    /// Octets of the packet.
    pub length: u16,
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Nothing yet.
    Unknown,
    /// It is being probed.
    Searching,
    /// What the path carries is known.
    Found,
    /// The peer answers no probes, so it does not know them. Packets are as long as the device takes, as it is usual
    /// with other implementations.
    Mute,
}

/// Probes one path.
#[derive(Debug, Clone)]
pub struct PathMtu {
    sizes: ProbeSizes,
    reach: Reach,
    /// The longest length that was answered.
    confirmed: Option<u16>,
    /// The shortest length that is too long.
    too_long: u16,
    /// Whether the peer answered any probe, ever.
    has_answered: bool,
    open: Vec<Open>,
    next_number: u32,
    answer_time: Duration,
    check_at: Option<Instant>,
    raise_at: Option<Instant>,
}

/// A length that is being probed.
#[derive(Debug, Clone, Copy)]
struct Open {
    length: u16,
    number: u32,
    tries: u8,
    /// When it is tried again, or given up.
    until: Option<Instant>,
}

impl PathMtu {
    /// A path of which nothing is known.
    pub fn new(sizes: ProbeSizes) -> Self {
        let sizes = ProbeSizes { floor: sizes.floor.min(sizes.ceiling), ..sizes };
        Self {
            sizes,
            reach: Reach::Unknown,
            confirmed: None,
            too_long: sizes.ceiling.saturating_add(1),
            has_answered: false,
            open: Vec::new(),
            next_number: 0,
            answer_time: ANSWER_TIME_MIN,
            check_at: None,
            raise_at: None,
        }
    }

    /// Octets of the longest packet to send.
    pub fn length(&self) -> u16 {
        match (self.reach, self.confirmed) {
            (Reach::Mute, _) => self.sizes.ceiling.min(self.too_long - 1),
            (_, Some(length)) => length,
            (_, None) => self.sizes.floor.min(self.too_long - 1),
        }
    }

    /// What is known.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// There is a session, and it took so long to agree on it. What was found before is checked, not forgotten.
    pub fn start(&mut self, round_trip: Duration, now: Instant) {
        self.answer_time = ANSWER_TIME_MIN.max(round_trip * 2);
        match self.reach {
            Reach::Found => self.check_at = Some(now),
            Reach::Searching => {}
            Reach::Unknown | Reach::Mute => self.search(),
        }
    }

    /// A packet of this length did not even fit through this node's own link.
    pub fn too_big(&mut self, length: u16) {
        let length = length.max(self.sizes.floor.min(576));
        if length < self.too_long {
            self.too_long = length;
            self.confirmed = self.confirmed.filter(|confirmed| *confirmed < length);
            self.search();
        }
    }

    /// An answer came. Whether the length to send changed.
    pub fn answered(&mut self, probe: Probe, now: Instant) -> bool {
        let before = self.length();
        let Some(place) = self.open.iter().position(|open| open.length == probe.length) else {
            return false;
        };
        if self.open[place].number < probe.number {
            return false;
        }
        self.has_answered = true;
        if self.reach == Reach::Mute {
            self.reach = Reach::Searching;
        }
        self.confirmed = self.confirmed.max(Some(probe.length));
        self.open.retain(|open| Some(open.length) > self.confirmed);
        self.check_at = None;
        if self.too_long <= probe.length {
            self.too_long = probe.length + 1;
        }
        self.settle(now);
        self.length() != before
    }

    /// Does what is due. Whether the length to send changed. `is_active` says whether packets are being sent: a path
    /// that nobody uses need not be checked.
    pub fn handle_time(&mut self, is_active: bool, now: Instant) -> bool {
        let before = self.length();
        if is_active && self.open.is_empty() {
            self.resume(now);
        }
        let tries = self.tries();
        let is_given_up = |open: &Open| open.tries >= tries && open.until.is_some_and(|until| until <= now);
        let lost: Vec<u16> =
            self.open.iter().filter(|open| is_given_up(open)).map(|open| open.length).collect();
        self.open.retain(|open| !is_given_up(open));
        for length in lost {
            self.unanswered(length);
        }
        if self.reach == Reach::Searching {
            self.settle(now);
        }
        self.length() != before
    }

    /// The next question to send, if one is due.
    pub fn poll_probe(&mut self, now: Instant) -> Option<Probe> {
        let (answer_time, tries) = (self.answer_time, self.tries());
        let open = self
            .open
            .iter_mut()
            .find(|open| open.tries < tries && open.until.is_none_or(|until| until <= now))?;
        open.tries += 1;
        open.until = Some(now + answer_time);
        Some(Probe { number: open.number, length: open.length })
    }

    /// When to come back.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let open = self.open.iter().filter_map(|open| open.until);
        let idle = [self.check_at, self.raise_at].into_iter().flatten();
        open.chain(idle.filter(|_| self.open.is_empty())).min()
    }

    fn tries(&self) -> u8 {
        if self.has_answered { TRIES } else { TRIES_FIRST }
    }

    /// Begins what is due while nothing is asked.
    fn resume(&mut self, now: Instant) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.raise_at) {
            self.too_long = self.sizes.ceiling + 1;
            self.search();
        } else if is_due(self.check_at) {
            self.check_at = None;
            match self.confirmed {
                Some(confirmed) => self.ask(confirmed),
                None => self.search(),
            }
        }
    }

    fn search(&mut self) {
        self.reach = Reach::Searching;
        self.check_at = None;
        self.raise_at = None;
        self.open.clear();
        self.ask_more();
    }

    /// A length got no answer, several times.
    fn unanswered(&mut self, length: u16) {
        if self.reach == Reach::Found {
            // What used to pass does not pass any more, or nothing does: the floor tells.
            self.confirmed = None;
            self.too_long = self.sizes.ceiling + 1;
            self.search();
        } else if self.confirmed.is_some_and(|confirmed| confirmed < length) {
            self.too_long = self.too_long.min(length);
        }
    }

    /// Ends the search if there is nothing left to find out, else goes on with it.
    fn settle(&mut self, now: Instant) {
        match self.confirmed {
            Some(confirmed)
                if self.too_long.saturating_sub(confirmed) <= STEP || confirmed >= self.sizes.ceiling =>
            {
                self.reach = Reach::Found;
                self.open.clear();
                self.check_at = Some(now + CHECK_INTERVAL);
                let is_below = confirmed < self.sizes.ceiling;
                self.raise_at = self.raise_at.or(Some(now + RAISE_INTERVAL)).filter(|_| is_below);
            }
            Some(_) => self.ask_more(),
            None if !self.open.is_empty() => {}
            None if !self.has_answered => self.reach = Reach::Mute,
            // The peer is away, which says nothing about the path.
            None => self.check_at = self.check_at.or(Some(now + CHECK_INTERVAL)),
        }
    }

    /// Asks about the floor and the ceiling first, then about lengths between what is known.
    fn ask_more(&mut self) {
        let Some(confirmed) = self.confirmed else {
            self.ask(self.sizes.floor.min(self.too_long - 1));
            self.ask(self.too_long - 1);
            return;
        };
        if !self.open.is_empty() {
            return;
        }
        let gap = self.too_long - confirmed;
        if self.too_long > self.sizes.ceiling {
            self.ask(self.sizes.ceiling);
        }
        for part in 1..=PARALLEL as u16 {
            let length = confirmed + gap / (PARALLEL as u16 + 1) * part;
            if length > confirmed && length < self.too_long {
                self.ask(length);
            }
        }
        if self.open.is_empty() {
            self.ask(confirmed + gap / 2);
        }
    }

    fn ask(&mut self, length: u16) {
        if self.open.iter().all(|open| open.length != length) {
            self.next_number = self.next_number.wrapping_add(1);
            self.open.push(Open { length, number: self.next_number, tries: 0, until: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZES: ProbeSizes = ProbeSizes { floor: 1200, ceiling: 1420 };

    /// A path that carries so much, and takes so long for it, while some probes get lost.
    struct Path {
        carries: u16,
        round_trip: Duration,
        now: Instant,
        begin: Instant,
        losses: Vec<bool>,
        answers: Vec<(Instant, Probe)>,
        sent: usize,
    }

    impl Path {
        fn new(carries: u16, round_trip: u64) -> Self {
            let now = Instant::now();
            Self {
                carries,
                round_trip: Duration::from_millis(round_trip),
                now,
                begin: now,
                losses: Vec::new(),
                answers: Vec::new(),
                sent: 0,
            }
        }

        /// Lets time pass until the machine is content or the time is over.
        fn run(&mut self, mtu: &mut PathMtu, most: Duration, until: impl Fn(&PathMtu) -> bool) {
            let end = self.now + most;
            while !until(mtu) && self.now < end {
                mtu.handle_time(true, self.now);
                while let Some(probe) = mtu.poll_probe(self.now) {
                    self.sent += 1;
                    let is_lost = self.losses.pop().unwrap_or(false);
                    if probe.length <= self.carries && !is_lost {
                        self.answers.push((self.now + self.round_trip, probe));
                    }
                }
                let answer = self.answers.iter().map(|(at, _)| *at).min();
                let next = answer.into_iter().chain(mtu.poll_timeout()).min().unwrap_or(end);
                self.now = next.max(self.now).min(end);
                let due = std::mem::take(&mut self.answers).into_iter();
                let (due, later): (Vec<_>, Vec<_>) = due.partition(|(at, _)| *at <= self.now);
                self.answers = later;
                for (_, probe) in due {
                    mtu.answered(probe, self.now);
                }
            }
        }

        fn elapsed(&self) -> Duration {
            self.now - self.begin
        }
    }

    fn found(mtu: &PathMtu) -> bool {
        mtu.reach() == Reach::Found
    }

    #[test]
    fn a_full_path_is_found_in_one_round_trip() {
        let (mut mtu, mut path) = (PathMtu::new(SIZES), Path::new(1420, 30));
        mtu.start(path.round_trip, path.now);
        assert_eq!(mtu.length(), 1200);
        path.run(&mut mtu, Duration::from_secs(1), found);
        assert_eq!((mtu.length(), path.elapsed()), (1420, path.round_trip));
    }

    #[test]
    fn a_narrow_path_carries_the_floor_at_once_and_is_measured_soon() {
        let (mut mtu, mut path) = (PathMtu::new(SIZES), Path::new(1236, 1));
        mtu.start(path.round_trip, path.now);
        assert!(mtu.length() <= path.carries);
        path.run(&mut mtu, Duration::from_secs(3), found);
        assert!((1236 - STEP..=1236).contains(&mtu.length()), "{}", mtu.length());
        assert!(path.elapsed() < Duration::from_secs(2), "{:?}", path.elapsed());
    }

    #[test]
    fn a_peer_that_does_not_answer_gets_what_the_device_takes() {
        let (mut mtu, mut path) = (PathMtu::new(SIZES), Path::new(0, 1));
        mtu.start(path.round_trip, path.now);
        path.run(&mut mtu, Duration::from_secs(2), |mtu| mtu.reach() == Reach::Mute);
        assert_eq!((mtu.reach(), mtu.length()), (Reach::Mute, 1420));
        assert!(path.sent <= 2 * usize::from(TRIES_FIRST));
    }

    #[test]
    fn a_path_that_narrows_is_noticed_and_one_that_widens_too() {
        let (mut mtu, mut path) = (PathMtu::new(SIZES), Path::new(1420, 1));
        mtu.start(path.round_trip, path.now);
        path.run(&mut mtu, Duration::from_secs(1), found);
        path.carries = 1300;
        path.run(&mut mtu, CHECK_INTERVAL + Duration::from_secs(1), |mtu| mtu.length() <= 1300);
        assert!(mtu.length() <= 1300);
        path.run(&mut mtu, Duration::from_secs(3), found);
        assert!((1300 - STEP..=1300).contains(&mtu.length()), "{}", mtu.length());
        path.carries = 1420;
        path.run(&mut mtu, RAISE_INTERVAL + Duration::from_secs(1), |mtu| mtu.length() == 1420);
        assert_eq!(mtu.length(), 1420);
    }

    #[test]
    fn a_peer_that_is_away_for_a_while_keeps_the_floor() {
        let (mut mtu, mut path) = (PathMtu::new(SIZES), Path::new(1420, 1));
        mtu.start(path.round_trip, path.now);
        path.run(&mut mtu, Duration::from_secs(1), found);
        path.carries = 0;
        path.run(&mut mtu, Duration::from_secs(60), |_| false);
        assert_eq!(mtu.length(), 1200);
        path.carries = 1420;
        path.run(&mut mtu, CHECK_INTERVAL + Duration::from_secs(2), |mtu| mtu.length() == 1420);
        assert_eq!(mtu.length(), 1420);
    }

    #[test]
    fn the_own_link_counts() {
        let mut mtu = PathMtu::new(SIZES);
        mtu.start(Duration::ZERO, Instant::now());
        mtu.too_big(1400);
        let mut path = Path::new(1399, 1);
        path.run(&mut mtu, Duration::from_secs(3), found);
        assert_eq!(mtu.length(), 1399);
    }

    proptest! {
        #[test]
        fn what_is_found_passes(
            carries in 1200_u16..1500,
            round_trip in 0_u64..80,
            losses in proptest::collection::vec(any::<bool>(), 0..6)
        ) {
            let (mut mtu, mut path) = (PathMtu::new(SIZES), Path::new(carries, round_trip));
            path.losses = losses;
            mtu.start(path.round_trip, path.now);
            path.run(&mut mtu, Duration::from_secs(30), found);
            prop_assert!(mtu.length() <= carries.max(SIZES.floor));
            prop_assert!(mtu.poll_timeout().is_some_and(|at| at >= path.now) || !found(&mtu));
        }
    }
}
