//! Values of the settings of packet balancing.

use std::str::FromStr;

use mesonet_lb_dataplane::PacketMode;

use super::ValueError;
use super::values::error;

/// Interfaces, by name, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interfaces(pub Vec<String>);

/// Where packets are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketPlace(pub PacketMode);

/// The kernel's limit (linux/if.h), without the zero at the end.
const NAME_LENGTH_MAX: usize = 15;

// === impl Interfaces ===

impl FromStr for Interfaces {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
        let is_name = |name: &String| {
            let is_plain = |each: char| !each.is_whitespace() && !matches!(each, '/' | ':');
            (1..=NAME_LENGTH_MAX).contains(&name.len()) && name.chars().all(is_plain)
        };
        if names.iter().all(is_name) {
            Ok(Self(names))
        } else {
            Err(error(text, "list of interfaces", "NAME,..., such as eth0"))
        }
    }
}

// === impl PacketPlace ===

impl FromStr for PacketPlace {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let found = PacketMode::ALL.into_iter().find(|mode| mode.as_str() == text);
        found.map(Self).ok_or_else(|| error(text, "place", "auto, xdp, xdp-generic or tc"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_names() {
        for (text, expected) in [("eth0", vec!["eth0"]), ("eth0.100, wg-mesh", vec!["eth0.100", "wg-mesh"])] {
            let Interfaces(names) = text.parse().expect(text);
            assert_eq!(names, expected);
        }
        for text in ["", "eth0,", "a b", "../x", "a-name-that-is-long"] {
            assert!(text.parse::<Interfaces>().is_err(), "{text}");
        }
    }

    #[test]
    fn places_have_names() {
        for mode in PacketMode::ALL {
            assert_eq!(mode.as_str().parse(), Ok(PacketPlace(mode)));
        }
        assert!("driver".parse::<PacketPlace>().is_err());
    }
}
