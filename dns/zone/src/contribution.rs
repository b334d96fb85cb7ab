//! What one thing of the view, such as a task or an agent, adds to the zone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use mesonet_model::Serving;

use crate::{Data, Name, NameError, reverse};

/// The records of one thing of the view, and how many records it has no valid name for.
#[derive(Debug, Default)]
pub(crate) struct Contribution {
    /// Owner, whether clients may be sent there, and value.
    pub(crate) records: BTreeSet<(Name, Serving, Data)>,
    /// Records left out, by what is wrong with their names.
    pub(crate) skipped: BTreeMap<NameError, usize>,
}

/// A name that may turn out not to be one.
pub(crate) type Candidate = Result<Name, NameError>;

impl Contribution {
    /// Adds an address record.
    pub(crate) fn address(&mut self, owner: &Candidate, serving: Serving, address: IpAddr) {
        self.record(owner, serving, Data::from(address));
    }

    /// Adds an SRV record.
    pub(crate) fn port(
        &mut self,
        owner: &Candidate,
        serving: Serving,
        (target, port): (&Candidate, u16),
        weight: u16,
    ) {
        match target {
            Ok(target) => {
                let priority = Data::SRV_PRIORITY;
                self.record(owner, serving, Data::Srv { priority, weight, port, target: target.clone() });
            }
            Err(error) => self.skip(*error),
        }
    }

    /// Adds the way from an address back to a name.
    pub(crate) fn reverse(&mut self, address: IpAddr, serving: Serving, name: &Candidate) {
        if let Ok(name) = name {
            self.record(&reverse::name_of(address), serving, Data::Ptr(name.clone()));
        }
    }

    /// Adds any record.
    pub(crate) fn record(&mut self, owner: &Candidate, serving: Serving, data: Data) {
        match owner {
            Ok(owner) => {
                self.records.insert((owner.clone(), serving, data));
            }
            Err(error) => self.skip(*error),
        }
    }

    fn skip(&mut self, error: NameError) {
        *self.skipped.entry(error).or_default() += 1;
    }
}
