//! Identifiers for pure code, from a seed that the caller supplies.

use uuid::Uuid;

/// Makes version 4 UUIDs from a seeded generator, so that a run can be repeated from its seed.
#[derive(Debug, Clone)]
pub struct UuidSource(fastrand::Rng);

impl UuidSource {
    /// A source whose UUIDs all follow from the seed; two sources with one seed collide.
    pub fn from_seed(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// The next UUID.
    pub fn next_uuid(&mut self) -> Uuid {
        uuid::Builder::from_random_bytes(self.0.u128(..).to_be_bytes()).into_uuid()
    }
}
