//! Answers to the questions that nearly all queries ask, without allocation and without a lock.
//!
//! [`FastZone`] is the zone in another form: for each name its records as they go over the wire. There are two of them
//! ([`FastZones`]): one is served while the other takes the next change. [`query`] reads a packet, [`answer`](answer::answer) puts the answer
//! together in a buffer: header and question are the query's, records are copied, beginning at the one that the
//! message id chooses. [`worker`] does that in batches, one thread for each socket.
//!
//! What is not known here is handed over to the full path: other opcodes and classes, EDNS options, zone transfers,
//! labels that begin with an asterisk, records of other types, names outside the zones. Nothing here decides what a name means;
//! both paths must give the same answers, which `equality.rs` checks on random zones and queries.

mod answer;
mod apex;
mod batch;
mod counters;
mod entry;
#[cfg(test)]
mod equality;

mod key;
mod query;
mod table;
mod worker;
mod zone;

pub(crate) use answer::{Circumstances, answer};
pub(crate) use counters::ThreadCounters;
pub(crate) use query::FastQuery;
pub(crate) use worker::spawn;
pub(crate) use zone::{FastZone, FastZones};
