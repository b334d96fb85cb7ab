//! What is kept under which key.
//!
//! ```text
//! /mesonet/CLUSTER/format              the format of all this, a number
//! /mesonet/CLUSTER/leader              who leads (JSON), as long as its lease lives
//! /mesonet/CLUSTER/term                the number of the last term
//! /mesonet/CLUSTER/revision            the last commit (JSON)
//! /mesonet/CLUSTER/records/TABLE/KEY   a record; what is too long for one value goes on under KEY NUL 000001 …
//! /mesonet/CLUSTER/pending/COMMIT/PART operations of a commit that was too large for one transaction
//! /mesonet/CLUSTER/authority/…         nodes, tokens and revocations of the cluster's authority
//! ```
//!
//! A commit that fits into one transaction sets its records and `revision` at once. A larger one is first written as
//! pending parts, becomes the truth when `revision` names it, and is then carried out part by part; each part
//! disappears in the transaction that carries it out. Whoever reads therefore adds the parts of the commit that
//! `revision` names to the records. Parts of any other commit are left-overs of a leader that has died.

use bytes::Bytes;
use mesonet_model::{ClusterId, Revision, Table};
use serde::{Deserialize, Serialize};

use super::messages::RangeRequest;

/// The newest format that this program reads, and the one that it writes.
pub(super) const FORMAT: u64 = 1;

pub(super) const FORMAT_KEY: &str = "format";
pub(super) const LEADER: &str = "leader";
pub(super) const TERM: &str = "term";
pub(super) const REVISION: &str = "revision";
pub(super) const RECORDS: &str = "records/";
pub(super) const PENDING: &str = "pending/";
pub(super) const AUTHORITY: &str = "authority/";

/// Where a cluster's keys are.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

/// How many terms that are over a marker remembers. A leader whose answer is lost asks within seconds; so many terms
/// do not begin meanwhile, and a marker with all of them is still short.
const EARLIER_MAX: usize = 32;

/// What `revision` holds: the last commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) revision: Revision,
    /// `TERM-NUMBER`. Differs for each attempt to commit, so that a leader whose answer is lost can tell whose commit
    /// took effect.
    pub(super) commit: String,
    /// With which commits the terms before have ended, oldest first. So a leader can tell that also when others have
    /// committed since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) earlier: Vec<String>,
}

/// What became of an attempt to commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It took effect.
    Made,
    /// It did not, and never will.
    NotMade,
    /// Too many leaders have come and gone to tell.
    Forgotten,
}

impl Marker {
    /// What the markers of a term remember that begins after this one's.
    pub(super) fn handed_on(self) -> Vec<String> {
        let mut earlier = self.earlier;
        if !self.commit.is_empty() {
            earlier.push(self.commit);
        }
        earlier.split_off(earlier.len().saturating_sub(EARLIER_MAX))
    }

    /// What became of a term's last attempt, if the term is over.
    pub(super) fn fate(&self, term: u64, commit: &str) -> Fate {
        let term_of = |commit: &String| commit.split('-').next().and_then(|term| term.parse::<u64>().ok());
        let known = || self.earlier.iter().chain([&self.commit]);
        if known().any(|known| known == commit) {
            Fate::Made
        } else if self.earlier.len() < EARLIER_MAX || known().any(|known| term_of(known) <= Some(term)) {
            Fate::NotMade
        } else {
            Fate::Forgotten
        }
    }
}

impl Keys {
    pub(super) fn new(cluster: &ClusterId) -> Self {
        Self { prefix: format!("/mesonet/{cluster}/") }
    }

    /// The key with this name.
    pub(super) fn key(&self, name: &str) -> Bytes {
        Bytes::from(format!("{}{name}", self.prefix))
    }

    /// The name of a key.
    pub(super) fn name<'a>(&self, key: &'a [u8]) -> Option<&'a [u8]> {
        key.strip_prefix(self.prefix.as_bytes())
    }

    /// The place of a record in a table.
    pub(super) fn record(&self, table: Table, key: &str) -> Bytes {
        self.key(&format!("{RECORDS}{table}/{key}"))
    }

    /// Everything whose name starts so.
    pub(super) fn below(&self, name: &str) -> RangeRequest {
        let key = self.key(name);
        let range_end = after_all(&key);
        RangeRequest { key, range_end, ..RangeRequest::default() }
    }

    /// The place of a commit's parts.
    pub(super) fn pending(&self, commit: &str) -> String {
        format!("{PENDING}{commit}/")
    }
}

/// The first key after all that start so.
fn after_all(prefix: &[u8]) -> Bytes {
    let mut end = prefix.to_vec();
    let last = end.last_mut().expect("BUG: the prefix of all keys is empty");
    // Names end with a slash or a letter, never with 255.
    *last += 1;
    end.into()
}

/// Where a long value goes on.
pub(super) fn continued(key: &[u8], part: usize) -> Bytes {
    let mut key = key.to_vec();
    key.extend_from_slice(format!("\0{part:06}").as_bytes());
    key.into()
}

/// The first key after a record and all that it goes on with.
pub(super) fn after_record(key: &[u8]) -> Bytes {
    let mut end = key.to_vec();
    end.push(1);
    end.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the leaders of terms from 1 on leave that each begin with two commits and try a third.
    fn after(terms: u64) -> Marker {
        (1..=terms).fold(Marker::default(), |before, term| Marker {
            revision: Revision(2 * term),
            commit: format!("{term}-2"),
            earlier: before.handed_on(),
        })
    }

    #[test]
    fn a_leader_learns_what_became_of_its_last_attempt() {
        let attempts = [("7-2", Fate::Made), ("7-3", Fate::NotMade)];
        for terms in [7, 8, 20, 7 + EARLIER_MAX as u64] {
            assert_eq!(attempts.map(|(commit, _)| after(terms).fate(7, commit)), attempts.map(|it| it.1));
        }
        let late = after(8 + EARLIER_MAX as u64);
        assert_eq!(attempts.map(|(commit, _)| late.fate(7, commit)), [Fate::Forgotten; 2]);
    }

    #[test]
    fn an_attempt_of_a_term_without_a_commit_was_not_made() {
        assert_eq!(Marker::default().fate(7, "7-1"), Fate::NotMade);
        let long = after(2 * EARLIER_MAX as u64);
        let successor = Marker { commit: "900-1".to_owned(), earlier: long.handed_on(), ..Marker::default() };
        assert_eq!(successor.fate(800, "800-1"), Fate::NotMade);
    }

    #[test]
    fn a_marker_stays_short_and_one_without_memory_is_read() {
        assert!(serde_json::to_vec(&after(1000)).expect("json").len() < 1024);
        let old: Marker = serde_json::from_str(r#"{"revision":4,"commit":"5-2"}"#).expect("readable");
        assert_eq!((old.revision, old.commit.as_str()), (Revision(4), "5-2"));
    }
}
