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

/// What `revision` holds: the last commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) revision: Revision,
    /// Differs for each attempt to commit, so that a leader whose answer is lost can tell whose commit took effect.
    pub(super) commit: String,
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
