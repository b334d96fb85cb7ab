//! Benchmarks of mesonet beside real peers.
