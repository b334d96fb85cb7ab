//! What happened, for whoever has to find out why a run failed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use mesonet_model::Timestamp;

/// Enough to see what led to a failure, and still readable.
const LATEST: usize = 120;

/// The events of a run. Clones write to the same journal, so that it survives a panic of the run.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    lines: Rc<RefCell<VecDeque<(Timestamp, String)>>>,
    most: usize,
}

impl Journal {
    /// One that keeps the latest events.
    pub(crate) fn latest() -> Self {
        Self { lines: Rc::default(), most: LATEST }
    }

    /// One that keeps all.
    pub(crate) fn everything() -> Self {
        Self { lines: Rc::default(), most: usize::MAX }
    }

    pub(crate) fn note(&self, at: Timestamp, what: impl fmt::Display) {
        let mut lines = self.lines.borrow_mut();
        if lines.len() == self.most {
            lines.pop_front();
        }
        lines.push_back((at, what.to_string()));
    }

    /// The events, the oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.lines.borrow();
        lines.iter().map(|(at, what)| format!("{:>9.3} s  {what}", at.as_seconds())).collect()
    }
}
