//! mesonet: service discovery and networking with its own compact cluster core.
//!
//! This crate is the composition root of the one binary: the only place that knows every capability.
//! [`run_dev`] tells the whole story; [`config`] says what it can be told.

#![forbid(unsafe_code)]

mod compose;
pub mod config;

pub use compose::run_dev;
