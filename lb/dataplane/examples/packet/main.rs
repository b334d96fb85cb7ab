//! `./x bench packet`: what packet balancing costs. Needs root.
//!
//! The programs are the kernel's; how this program is compiled does not matter.

#![forbid(unsafe_code)]

mod cost;
mod rate;

#[path = "../../tests/packet/packets.rs"]
#[expect(dead_code, reason = "the tests make more kinds of packets")]
mod packets;
#[path = "../../tests/packet/site.rs"]
#[expect(dead_code, reason = "the tests do more with a node")]
mod site;

fn main() {
    cost::run();
    rate::run();
}

/// Prints one bar and whether it is reached.
fn bar(name: &str, value: f64, is_reached: bool, limit: &str) {
    println!("BAR {name} {value:.2} {limit} {}", if is_reached { "ok" } else { "MISS" });
}
