//! Anything that may come from the network.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| mesonet_overlay_wg::fuzzing::packet_entry(octets));
