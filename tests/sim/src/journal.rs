//! What happened last, for whoever has to find out why a run failed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use mesonet_model::Timestamp;

/// Enough to see what led to a failure, and still readable.
const LINES_MAX: usize = 120;

/// The latest events of a run. Clones write to the same journal, so that it survives a panic of the run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal(Rc<RefCell<VecDeque<(Timestamp, String)>>>);

impl Journal {
    pub(crate) fn note(&self, at: Timestamp, what: impl fmt::Display) {
        let mut lines = self.0.borrow_mut();
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back((at, what.to_string()));
    }

    /// The events, the oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.0.borrow();
        lines.iter().map(|(at, what)| format!("{:>9.3} s  {what}", at.as_seconds())).collect()
    }
}
