//! Names made from what users write: the label sanitiser of dcos-net.
//!
//! Source: dcos-net's `mesos_state`, as described in spec/dcos-networking.md §2.1.6. mesos-dns has a sanitiser of its
//! own that differs in how it cuts long labels; it lives in the DNS zone.

/// The longest label of a domain name, in bytes (RFC 1035 §2.3.4).
pub const LABEL_LENGTH_MAX: usize = 63;

/// Makes one DNS label of any text: lower case; `-`, `_` and `.` become hyphens; other characters vanish; no hyphen at
/// either end; at most 63 characters. May be empty.
pub fn label(text: &str) -> String {
    let mapped: Vec<u8> = text.bytes().filter_map(label_byte).skip_while(|byte| *byte == b'-').collect();
    let mut label = mapped;
    let rest = if label.len() > LABEL_LENGTH_MAX { label.split_off(LABEL_LENGTH_MAX) } else { Vec::new() };
    while label.last() == Some(&b'-') {
        label.pop();
    }
    let room = LABEL_LENGTH_MAX - label.len();
    label.extend(rest.into_iter().filter(|byte| *byte != b'-').take(room));
    String::from_utf8(label).unwrap_or_default()
}

/// Makes a domain name fragment: every dot-separated part becomes a label, empty parts vanish.
pub fn domain_fragment(text: &str) -> String {
    text.split('.').map(label).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
}

fn label_byte(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte.to_ascii_lowercase()),
        b'a'..=b'z' | b'0'..=b'9' => Some(byte),
        b'-' | b'_' | b'.' => Some(b'-'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_clean_and_short() {
        for (text, expected) in [
            ("", ""),
            ("---a---", "a"),
            ("a.c.d_de.", "a-c-d-de"),
            ("/mygroup/myapp", "mygroupmyapp"),
            ("MiXeD Case", "mixedcase"),
        ] {
            assert_eq!(label(text), expected, "{text}");
        }
        let long = format!("{}{}x-y", "a".repeat(60), "---");
        assert_eq!(label(&long), format!("{}xy", "a".repeat(60)));
        assert_eq!(label(&"b".repeat(80)).len(), LABEL_LENGTH_MAX);
    }

    #[test]
    fn fragments_keep_their_dots() {
        for (text, expected) in [
            ("...", ""),
            ("/api.hello-world", "api.hello-world"),
            ("(@ host . com", "host.com"),
            ("a..c", "a.c"),
        ] {
            assert_eq!(domain_fragment(text), expected, "{text}");
        }
    }
}
