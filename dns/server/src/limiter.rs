//! Limits answers over UDP, so that the server is no use for flooding somebody whose address is forged.
//!
//! Each network of clients has a bucket of tokens per kind of answer that fills at the allowed rate. Without a token an
//! answer is dropped, but every other time a cut one is sent: a client that is really there asks again over TCP. Time
//! is given. Buckets are in two generations like the cache's entries, so that their number is bounded and those that
//! are used stay.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::metrics::CodeLabel;

/// Buckets of a generation: some MiB.
const BUCKETS_MAX: usize = 65_536;

/// Bits of an address that stand for a network: what sites commonly have at least.
const PREFIX_V4: u32 = 24;
const PREFIX_V6: u32 = 56;

/// Of the answers that are over the limit, every so many-th is sent cut.
const SLIP: u32 = 2;

/// What to do with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowance {
    /// Send it.
    Send,
    /// Send it cut.
    Cut,
    /// Send nothing.
    Drop,
}

/// What counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    network: u128,
    answer: AnswerKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AnswerKind {
    Success,
    NoName,
    Error,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    filled: Instant,
    over: u32,
}

#[derive(Debug, Default)]
struct Generations {
    younger: HashMap<Kind, Bucket>,
    older: HashMap<Kind, Bucket>,
}

/// Limits answers.
#[derive(Debug)]
pub(crate) struct Limiter {
    buckets: Mutex<Generations>,
    /// Answers per second, and as many at once.
    rate: f64,
}

impl Limiter {
    /// Allows so many answers per second.
    pub(crate) fn new(rate: u32) -> Self {
        Self { buckets: Mutex::default(), rate: f64::from(rate.max(1)) }
    }

    /// What to do with an answer to a client.
    pub(crate) fn allow(&self, client: IpAddr, code: CodeLabel, now: Instant) -> Allowance {
        let answer = match code {
            CodeLabel::NoError => AnswerKind::Success,
            CodeLabel::NxDomain => AnswerKind::NoName,
            _ => AnswerKind::Error,
        };
        let kind = Kind { network: network_of(client), answer };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let known = buckets.younger.get(&kind).copied().or_else(|| buckets.older.remove(&kind));
        let mut bucket = known.unwrap_or(Bucket { tokens: self.rate, filled: now, over: 0 });
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * self.rate).min(self.rate);
        // Threads come here in another order than their queries came.
        bucket.filled = bucket.filled.max(now);
        let allowance = if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            bucket.over = 0;
            Allowance::Send
        } else {
            bucket.over = bucket.over.wrapping_add(1);
            if bucket.over % SLIP == 0 { Allowance::Cut } else { Allowance::Drop }
        };
        if buckets.younger.len() >= BUCKETS_MAX {
            buckets.older = std::mem::take(&mut buckets.younger);
        }
        buckets.younger.insert(kind, bucket);
        allowance
    }
}

fn network_of(client: IpAddr) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(client) => u128::from(u32::from(client) >> (32 - PREFIX_V4)),
        // Networks of IPv6 are beyond those numbers, but for ::/56, which nobody has.
        IpAddr::V6(client) => (u128::from(client) >> (128 - PREFIX_V6)) << 64,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn a_network_gets_so_many_answers_of_a_kind_each_second() {
        let limiter = Limiter::new(2);
        let start = Instant::now();
        let allow = |client: &str, code, now| limiter.allow(address(client), code, now);
        let found: Vec<_> = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.1", "192.0.2.1"]
            .map(|client| allow(client, CodeLabel::NoError, start))
            .into();
        assert_eq!(
            found,
            [Allowance::Send, Allowance::Send, Allowance::Drop, Allowance::Cut, Allowance::Drop]
        );
        // Other networks and other kinds of answers count apart.
        assert_eq!(allow("192.0.3.1", CodeLabel::NoError, start), Allowance::Send);
        assert_eq!(allow("192.0.2.1", CodeLabel::NxDomain, start), Allowance::Send);
        assert_eq!(allow("::ffff:192.0.2.1", CodeLabel::NxDomain, start), Allowance::Send);
        assert_eq!(allow("192.0.2.1", CodeLabel::NxDomain, start), Allowance::Drop);
        // Half a second is worth one answer.
        let later = start + Duration::from_millis(500);
        assert_eq!(allow("192.0.2.1", CodeLabel::NoError, later), Allowance::Send);
        assert_eq!(allow("192.0.2.1", CodeLabel::NoError, later), Allowance::Drop);
        for (client, expected) in [
            ("2001:db8:0:1::1", Allowance::Send),
            ("2001:db8:0:2::1", Allowance::Send),
            ("2001:db8:0:ff::1", Allowance::Drop),
        ] {
            assert_eq!(allow(client, CodeLabel::Refused, start), expected, "{client}");
        }
    }

    #[test]
    fn a_query_that_came_earlier_gives_no_time_back() {
        let limiter = Limiter::new(2);
        let earlier = Instant::now();
        let later = earlier + Duration::from_secs(1);
        let found = [later, later, earlier, later]
            .map(|now| limiter.allow(address("192.0.2.1"), CodeLabel::NoError, now));
        assert_eq!(found, [Allowance::Send, Allowance::Send, Allowance::Drop, Allowance::Cut]);
    }

    #[test]
    fn buckets_are_bounded() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        for client in 0..200_000_u32 {
            limiter.allow(IpAddr::V4((client << 8).into()), CodeLabel::NoError, now);
        }
        let buckets = limiter.buckets.lock().expect("not poisoned");
        assert!(buckets.younger.len() + buckets.older.len() <= 2 * BUCKETS_MAX);
    }
}
