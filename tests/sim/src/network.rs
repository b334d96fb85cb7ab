//! Messages on their way: late, lost, twice, and in order only within a lane.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use mesonet_model::Timestamp;

/// How bad the network is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Of thousand messages so many are lost.
    pub(crate) lost: u32,
    /// Of thousand messages so many arrive twice.
    pub(crate) doubled: u32,
    /// A message takes at most so long, mostly much less.
    pub(crate) delay_max: Duration,
}

/// Messages of one lane keep their order; those of different lanes overtake each other.
#[derive(Debug, Default)]
pub(crate) struct Lanes(BTreeMap<(u64, String), Timestamp>);

impl Weather {
    pub(crate) const FAIR: Self = Self { lost: 0, doubled: 0, delay_max: Duration::from_millis(5) };

    /// Mostly short, sometimes as long as it can be.
    pub(crate) fn delay(&self, rng: &mut Rng) -> Duration {
        let longest = u64::try_from(self.delay_max.as_millis()).unwrap_or(u64::MAX);
        let longest = if rng.u32(..10) == 0 { longest } else { longest / 20 };
        Duration::from_millis(rng.u64(..=longest))
    }
}

impl Lanes {
    /// When a message that is sent now arrives: never, once or twice.
    pub(crate) fn arrivals(
        &mut self,
        (connection, lane): (u64, String),
        weather: &Weather,
        now: Timestamp,
        rng: &mut Rng,
    ) -> Vec<Timestamp> {
        if rng.u32(..1000) < weather.lost {
            return Vec::new();
        }
        let at = self.arrival((connection, lane.clone()), weather, now, rng);
        if rng.u32(..1000) < weather.doubled {
            return vec![at, self.arrival((connection, lane), weather, now, rng)];
        }
        vec![at]
    }

    /// When a message arrives that is not lost.
    pub(crate) fn arrival(
        &mut self,
        lane: (u64, String),
        weather: &Weather,
        now: Timestamp,
        rng: &mut Rng,
    ) -> Timestamp {
        let at = now.plus(weather.delay(rng));
        let last = self.0.entry(lane).or_insert(at);
        *last = at.max(*last);
        *last
    }
}
