//! See `checks::check_parser`.

#![no_main]

#[path = "../../tests/packets/checks.rs"]
#[expect(dead_code, reason = "each target makes one of the checks")]
mod checks;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mesonet_dns_server::Probe;

static PROBE: LazyLock<Probe> = LazyLock::new(checks::probe);

fuzz_target!(|packet: &[u8]| checks::check_parser(&PROBE, packet));
