//! Names as mesos-dns makes them (spec/dcos-networking.md §1.2 and §1.3).
//!
//! Its sanitiser differs from the one of dcos-net in how it cuts long labels.

use sha1::{Digest, Sha1};

use crate::LabelRule;

/// The longest label of a domain name, in octets (RFC 1035 §2.3.4).
pub(crate) const LABEL_LENGTH_MAX: usize = 63;

/// How many characters of a task id's hash are in a canonical name.
const HASH_LENGTH: usize = 5;

/// The z-base-32 alphabet.
const ZBASE32: &[u8; 32] = b"ybndrfg8ejkmcpqxot1uwisza345h769";

/// The longest label in RFC 952 mode.
const RFC952_LENGTH_MAX: usize = 24;

impl LabelRule {
    /// Makes one DNS label of any text: lower case; `-`, `_` and `.` become hyphens; other characters vanish; no hyphen
    /// at either end, nor a digit at the beginning in RFC 952 mode; at most 63 or 24 characters. May be empty.
    ///
    /// When the cut leaves hyphens at the end, as much of the remainder as they took up is appended. mesos-dns can
    /// leave a hyphen at the end in that case, which makes no valid host name; it is dropped here.
    pub(crate) fn label(self, text: &str) -> String {
        let length_max = match self {
            Self::Rfc1123 => LABEL_LENGTH_MAX,
            Self::Rfc952 => RFC952_LENGTH_MAX,
        };
        let is_cut =
            |character: char| character == '-' || (self == Self::Rfc952 && character.is_ascii_digit());
        let mapped: String = text.chars().filter_map(label_character).collect();
        let trimmed = mapped.trim_start_matches(is_cut).trim_end_matches('-');
        if trimmed.len() <= length_max {
            return trimmed.to_owned();
        }
        let (head, rest) = trimmed.split_at(length_max);
        let head = head.trim_end_matches('-');
        let freed = length_max - head.len();
        let joined: String = head.chars().chain(rest.trim_start_matches('-').chars().take(freed)).collect();
        joined.trim_end_matches('-').to_owned()
    }

    /// Makes a domain name fragment: every dot-separated part becomes a label, empty parts vanish.
    pub(crate) fn domain_fragment(self, text: &str) -> String {
        let labels = text.split('.').map(|part| self.label(part));
        labels.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".")
    }
}

/// The part of a canonical name that tells tasks of one name apart: `-<hash of the task id>-<end of the agent id>`.
pub(crate) fn canonical_suffix(task_id: &str, agent_id: &str) -> String {
    let tail = agent_id.rsplit('-').next().unwrap_or(agent_id);
    format!("-{}-{}", task_hash(task_id), tail.to_ascii_lowercase())
}

/// A task's name with the suffix appended to its last label, which is cut where both together would be no label.
pub(crate) fn canonical(task: &str, suffix: &str) -> String {
    let (front, last) = match task.rfind('.') {
        Some(dot) => task.split_at(dot + 1),
        None => ("", task),
    };
    let room = LABEL_LENGTH_MAX.saturating_sub(suffix.len());
    let end = last.char_indices().map(|(at, _)| at).chain([last.len()]).take_while(|at| *at <= room).last();
    let kept = &last[..end.unwrap_or(0)];
    let kept = if kept.len() < last.len() { kept.trim_end_matches('-') } else { kept };
    format!("{front}{kept}{suffix}")
}

/// The first characters of the z-base-32 form of a task id's SHA-1.
fn task_hash(task_id: &str) -> String {
    let digest = Sha1::digest(task_id.as_bytes());
    let bits = digest.iter().take(5).fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    (0..HASH_LENGTH)
        .map(|index| {
            let five_bits = (bits >> (40 - 5 * (index + 1))) & 0x1f;
            char::from(ZBASE32[five_bits as usize])
        })
        .collect()
}

fn label_character(character: char) -> Option<char> {
    match character {
        'A'..='Z' => Some(character.to_ascii_lowercase()),
        'a'..='z' | '0'..='9' => Some(character),
        '-' | '_' | '.' => Some('-'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_mesos_dns() {
        let hello = |hyphens: usize| format!("hello{}f", "-".repeat(hyphens));
        for (text, expected) in [
            ("", ""),
            ("a", "a"),
            ("-", ""),
            ("a---", "a"),
            ("---a---", "a"),
            ("---a---b", "a---b"),
            ("a.b.c.d.e", "a-b-c-d-e"),
            ("a.c.d_de.", "a-c-d-de"),
            ("abc123", "abc123"),
            ("-abc123", "abc123"),
            ("abc123-", "abc123"),
            ("abc--123", "abc--123"),
            ("r29f.dev.angrypigs", "r29f-dev-angrypigs"),
            (&hello(58), "hellof"),
            (&hello(56), &hello(56)),
            ("4abc123", "4abc123"),
            ("-4abc123", "4abc123"),
            ("89fdgsf---gs7-fgs--d7fddg-123", "89fdgsf---gs7-fgs--d7fddg-123"),
            ("89fdgsf---gs7-fgs--d7fddg-", "89fdgsf---gs7-fgs--d7fddg"),
            (
                "fd%gsf---gs7-f$gs--d7fddg123456789012345678901234567890123456789-123",
                "fdgsf---gs7-fgs--d7fddg1234567890123456789012345678901234567891",
            ),
            (
                "##fdgsf---gs7-fgs--d7fddg123456789012345678901234567890123456789-",
                "fdgsf---gs7-fgs--d7fddg123456789012345678901234567890123456789",
            ),
            ("日本", ""),
        ] {
            assert_eq!(LabelRule::Rfc1123.label(text), expected, "{text}");
        }
    }

    #[test]
    fn labels_never_end_in_a_hyphen_after_the_cut() {
        let text = format!("{}--b-c", "a".repeat(61));
        assert_eq!(LabelRule::Rfc1123.label(&text), format!("{}b", "a".repeat(61)));
    }

    #[test]
    fn fragments_are_those_of_mesos_dns() {
        for (text, expected) in [
            ("", ""),
            (".", ""),
            ("...", ""),
            ("abc.", "abc"),
            (".a.c", "a.c"),
            ("a.c..e", "a.c.e"),
            ("space space.com", "spacespace.com"),
            ("not$1234.com", "not1234.com"),
            ("(@ host . com", "host.com"),
            ("MiXeDcase.CoM", "mixedcase.com"),
            ("pod_123$abc.marathon-0.6.0-dev.mesos", "pod-123abc.marathon-0.6.0-dev.mesos"),
        ] {
            assert_eq!(LabelRule::Rfc1123.domain_fragment(text), expected, "{text}");
        }
    }

    #[test]
    fn labels_of_rfc_952_are_those_of_mesos_dns() {
        let hello = |hyphens: usize| format!("hello{}f", "-".repeat(hyphens));
        for (text, expected) in [
            ("", ""),
            ("4abc123", "abc123"),
            ("-4abc123", "abc123"),
            ("fd%gsf---gs7-f$gs--d7fddg-123", "fdgsf---gs7-fgs--d7fddg1"),
            ("89fdgsf---gs7-fgs--d7fddg---123", "fdgsf---gs7-fgs--d7fddg1"),
            ("89fdgsf---gs7-fgs--d7fddg-", "fdgsf---gs7-fgs--d7fddg"),
            ("chronos with a space AND MIXED CASE-2.0.1", "chronoswithaspaceandmixe"),
            ("chronos with a space AND----------MIXED--", "chronoswithaspaceandmixe"),
            (&hello(56), "hellof"),
        ] {
            assert_eq!(LabelRule::Rfc952.label(text), expected, "{text}");
        }
        let fragment = LabelRule::Rfc952.domain_fragment("pod_123$abc.marathon-0.6.0-dev.mesos");
        assert_eq!(fragment, "pod-123abc.marathon-0.dev.mesos");
    }

    #[test]
    fn hashes_are_those_of_mesos_dns() {
        for (task, expected) in [
            ("test", "iffe9"),
            ("liquor-store.b8db9f73-562f-11e4-a088-c20493233aa5", "4dfjd"),
            ("liquor-store.b71166c1-562f-11e4-a088-c20493233aa5", "zasmd"),
            ("car-store.43758382-562f-11e4-a088-c20493233aa5", "zinaz"),
        ] {
            assert_eq!(task_hash(task), expected, "{task}");
        }
    }

    #[test]
    fn canonical_names_fit_into_a_label() {
        let suffix = canonical_suffix("test", "20140827-000744-3041283216-5050-2116-S1");
        assert_eq!(suffix, "-iffe9-s1");
        assert_eq!(canonical_suffix("test", "20140803-194712-3041283216-5050-2410-0"), "-iffe9-0");
        for (task, expected) in [
            ("web", "web-iffe9-s1".to_owned()),
            ("nginx.web", "nginx.web-iffe9-s1".to_owned()),
            (&"a".repeat(63), format!("{}-iffe9-s1", "a".repeat(54))),
            (&format!("{}---{}", "a".repeat(52), "b".repeat(8)), format!("{}-iffe9-s1", "a".repeat(52))),
        ] {
            assert_eq!(canonical(task, &suffix), expected);
        }
    }
}
