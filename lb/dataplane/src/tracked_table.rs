//! The table of a data plane, counted as it changes.

use mesonet_lb_plan::{Op, RouteTable};

use crate::Metrics;

/// What is in effect, with the endpoint metrics kept equal to it.
#[derive(Debug)]
pub(crate) struct TrackedTable {
    table: RouteTable,
    metrics: Metrics,
}

impl TrackedTable {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self { table: RouteTable::default(), metrics: metrics.clone() }
    }

    pub(crate) fn read(&self) -> &RouteTable {
        &self.table
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        self.metrics.count_op(&self.table, op);
        self.table.apply(op);
    }
}
