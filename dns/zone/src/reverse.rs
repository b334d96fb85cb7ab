//! Names of addresses (RFC 1035 §3.5, RFC 3596 §2.5).

use std::fmt::Write;
use std::net::IpAddr;

use crate::contribution::Candidate;
use crate::{Name, NameError};

/// The name that an address is asked for by.
pub(crate) fn name_of(address: IpAddr) -> Candidate {
    let mut text = String::new();
    let origin = match address {
        IpAddr::V4(address) => {
            for octet in address.octets().iter().rev() {
                write!(text, "{octet}.").map_err(|_| NameError::NameTooLong)?;
            }
            "in-addr.arpa"
        }
        IpAddr::V6(address) => {
            for octet in address.octets().iter().rev() {
                write!(text, "{:x}.{:x}.", octet & 0xf, octet >> 4).map_err(|_| NameError::NameTooLong)?;
            }
            "ip6.arpa"
        }
    };
    text.push_str(origin);
    Name::root().below(&text)
}

/// Whether a name may be that of an address.
pub(crate) fn is_reverse(name: &Name) -> bool {
    let mut labels = name.labels().rev();
    let (top, second) = (labels.next(), labels.next());
    top == Some(b"arpa") && (second == Some(b"in-addr") || second == Some(b"ip6"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_names() {
        for (address, expected) in [
            ("10.1.2.3", "3.2.1.10.in-addr.arpa."),
            (
                "fd01:b::2:8000:0:2",
                "2.0.0.0.0.0.0.0.0.0.0.8.2.0.0.0.0.0.0.0.0.0.0.0.b.0.0.0.1.0.d.f.ip6.arpa.",
            ),
        ] {
            let name = name_of(address.parse().expect(address)).expect(address);
            assert_eq!(name.to_string(), expected);
            assert!(is_reverse(&name));
        }
        assert!(!is_reverse(&Name::root()));
        assert!(!is_reverse(&Name::root().below("in-addr.mesos").expect("name")));
    }
}
