//! The store that all masters share, linearizable as etcd is: records, the key of who leads, and fenced commits.

use std::collections::BTreeMap;
use std::time::Duration;

use mesonet::control_plane::{Commit, State};
use mesonet_model::{Revision, Table, Timestamp};

/// How long a lease holds that is not renewed.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// The same when all faults have ended, so that renewals need few events.
pub(crate) const CALM_LEASE: Duration = Duration::from_secs(3600);

/// The records and who may change them.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) revision: Revision,
    records: BTreeMap<(Table, String), Vec<u8>>,
    leader: Option<Leadership>,
    /// The last term that began.
    pub(crate) term: u64,
    /// The term of the last commit.
    committer: u64,
    /// What the last committer had in mind.
    pub(crate) committed: Option<State>,
}

/// Who leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) master: usize,
    /// Which life of that master.
    pub(crate) life: u64,
    pub(crate) term: u64,
    until: Timestamp,
}

/// What becomes of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Committed,
    /// It was committed before; the answer was lost.
    Known,
    Deposed,
}

impl Store {
    /// Who leads, if the lease has not ended.
    pub(crate) fn leader(&self, now: Timestamp) -> Option<Leadership> {
        self.leader.filter(|leader| now < leader.until)
    }

    /// When the lease ends.
    pub(crate) fn lease_ends(&self) -> Option<Timestamp> {
        self.leader.map(|leader| leader.until)
    }

    /// A master wants to lead: it does if nobody else does.
    pub(crate) fn campaign(
        &mut self,
        master: usize,
        life: u64,
        now: Timestamp,
        lease: Duration,
    ) -> Option<u64> {
        if self.leader(now).is_some() {
            return None;
        }
        self.term += 1;
        self.leader = Some(Leadership { master, life, term: self.term, until: now.plus(lease) });
        Some(self.term)
    }

    /// Whether the term goes on.
    pub(crate) fn renew(&mut self, term: u64, now: Timestamp, lease: Duration) -> bool {
        let goes_on = self.leader(now).is_some_and(|leader| leader.term == term);
        if let Some(leader) = self.leader.as_mut().filter(|_| goes_on) {
            leader.until = leader.until.max(now.plus(lease));
        }
        goes_on
    }

    pub(crate) fn resign(&mut self, term: u64) {
        self.leader = self.leader.filter(|leader| leader.term != term);
    }

    /// Commits what a leader has decided from `before` on, if it still leads.
    pub(crate) fn commit(
        &mut self,
        term: u64,
        before: Revision,
        commit: &Commit,
        state: &State,
        now: Timestamp,
    ) -> Verdict {
        if self.revision >= commit.revision && self.committer == term {
            return Verdict::Known;
        }
        if self.leader(now).is_none_or(|leader| leader.term != term) {
            return Verdict::Deposed;
        }
        assert_eq!(self.revision, before, "somebody else has committed in term {term}");
        assert!(term >= self.committer, "term {term} commits after term {}", self.committer);
        assert!(commit.revision > self.revision, "{} is committed after {}", commit.revision, self.revision);
        self.revision = commit.revision;
        self.committer = term;
        self.committed = Some(state.clone());
        for write in &commit.writes {
            let key = (write.table, write.key.clone());
            match &write.value {
                Some(value) => self.records.insert(key, value.clone()),
                None => self.records.remove(&key),
            };
        }
        Verdict::Committed
    }

    pub(crate) fn records(&self) -> Vec<(Table, String, Vec<u8>)> {
        self.records.iter().map(|((table, key), value)| (*table, key.clone(), value.clone())).collect()
    }
}
