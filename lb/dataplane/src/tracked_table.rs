//! The table of a data plane, counted as it changes.

use mesonet_lb_plan::{Op, RouteTable};

use crate::Metrics;

/// What is in effect, with the endpoint metrics kept equal to it.
#[derive(Debug)]
pub(crate) struct TrackedTable {
    table: RouteTable,
    /// `None` where another table is counted that has the same endpoints.
    metrics: Option<Metrics>,
}

impl TrackedTable {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self { table: RouteTable::default(), metrics: Some(metrics.clone()) }
    }

    /// A table that no metric shows.
    pub(crate) fn uncounted() -> Self {
        Self { table: RouteTable::default(), metrics: None }
    }

    pub(crate) fn read(&self) -> &RouteTable {
        &self.table
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        let old = self.table.apply(op);
        if let Some(metrics) = &self.metrics {
            metrics.count_op(op, old);
        }
    }
}
