//! The data plane that only keeps the table.

use std::collections::{BTreeMap, BTreeSet};

use mesonet_lb_plan::{Op, RouteTable};
use mesonet_model::{ServiceKey, TaskKey};
use tokio::sync::watch;

use crate::tracked_table::TrackedTable;
use crate::{Dataplane, Metrics};

/// Keeps the table and carries no traffic: the twin of the others for tests, and for nodes without a data plane.
#[derive(Debug)]
pub struct Memory {
    table: TrackedTable,
    busy: watch::Sender<BTreeSet<TaskKey>>,
}

impl Memory {
    /// An empty table.
    pub fn new(metrics: &Metrics) -> Self {
        Self { table: TrackedTable::new(metrics), busy: watch::Sender::new(BTreeSet::new()) }
    }
}

impl Dataplane for Memory {
    fn read(&self) -> &RouteTable {
        self.table.read()
    }

    async fn apply(&mut self, ops: &[Op]) -> BTreeMap<ServiceKey, String> {
        for op in ops {
            self.table.apply(op);
        }
        BTreeMap::new()
    }

    fn busy(&self) -> watch::Receiver<BTreeSet<TaskKey>> {
        self.busy.subscribe()
    }
}
