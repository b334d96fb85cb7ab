//! The `mesonet` program.

#![forbid(unsafe_code)]

fn main() {}
