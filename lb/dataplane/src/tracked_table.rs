//! The table of a data plane, counted as it changes.

use mesonet_lb_plan::{Op, RouteTable, ServiceSpec};
use mesonet_model::ServiceKey;

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

    /// Operations for one service; `after` is told what it is then.
    pub(crate) fn apply_all(&mut self, service: &ServiceKey, ops: &[Op], after: impl FnOnce(&ServiceSpec)) {
        let count = |op: &Op, old| {
            if let Some(metrics) = &self.metrics {
                metrics.count_op(op, old);
            }
        };
        self.table.apply_all(service, ops, count, after);
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        let old = self.table.apply(op);
        if let Some(metrics) = &self.metrics {
            metrics.count_op(op, old);
        }
    }
}
