//! mesonet: service discovery and networking with its own compact cluster core.
//!
//! This crate is the composition root of the one binary: the only place that knows every capability.
