//! The `mesonet` program.

fn main() {}
