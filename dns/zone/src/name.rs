//! Domain names in the form that the table is sorted by.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// The longest label in octets (RFC 1035 §2.3.4).
const LABEL_LENGTH_MAX: usize = 63;

/// The longest name in octets, with every label's length octet and the root's (RFC 1035 §2.3.4).
const NAME_LENGTH_MAX: usize = 255;

/// An absolute domain name in lower case.
///
/// It is held as its labels from the root on, each behind its length. So the names below a name are those that start
/// with its octets, and they are neighbours in a sorted table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

/// Why a text or a list of labels is no domain name that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum NameError {
    /// There is nothing before, between or after dots.
    #[error("a label is empty")]
    EmptyLabel,
    /// A label has more than 63 octets.
    #[error("a label is longer than 63 octets")]
    LabelTooLong,
    /// The name has more than 255 octets.
    #[error("the name is longer than 255 octets")]
    NameTooLong,
    /// A character is no letter, digit, hyphen or underscore of ASCII.
    #[error("a character is no ASCII letter, digit, hyphen or underscore")]
    Character,
}

impl Name {
    /// The root.
    pub fn root() -> Self {
        Self(Arc::from([].as_slice()))
    }

    /// The name of labels in reading order, as they are in a message: any octets, upper case becomes lower case.
    pub fn from_labels<'label>(
        labels: impl DoubleEndedIterator<Item = &'label [u8]>,
    ) -> Result<Self, NameError> {
        Self::root().extended(labels)
    }

    /// The name of dot-separated labels below this one. Host name characters and underscores only; upper case becomes
    /// lower case.
    pub fn below(&self, relative: &str) -> Result<Self, NameError> {
        let is_allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' || byte == b'.';
        if !relative.bytes().all(is_allowed) {
            return Err(NameError::Character);
        }
        self.below_text(relative)
    }

    /// The name of dot-separated labels of any characters below this one; upper case becomes lower case.
    pub(crate) fn below_text(&self, relative: &str) -> Result<Self, NameError> {
        self.extended(relative.split('.').map(str::as_bytes))
    }

    fn extended<'label>(
        &self,
        labels: impl DoubleEndedIterator<Item = &'label [u8]>,
    ) -> Result<Self, NameError> {
        let mut octets = self.0.to_vec();
        for label in labels.rev() {
            let length = match u8::try_from(label.len()) {
                Ok(0) => return Err(NameError::EmptyLabel),
                Ok(length) if label.len() <= LABEL_LENGTH_MAX => length,
                _ => return Err(NameError::LabelTooLong),
            };
            octets.push(length);
            octets.extend(label.iter().map(u8::to_ascii_lowercase));
            if octets.len() >= NAME_LENGTH_MAX {
                return Err(NameError::NameTooLong);
            }
        }
        Ok(Self(Arc::from(octets)))
    }

    /// The labels in reading order.
    pub fn labels(&self) -> impl DoubleEndedIterator<Item = &[u8]> + ExactSizeIterator {
        let mut labels = Vec::new();
        let mut rest = &*self.0;
        while let Some((length, tail)) = rest.split_first() {
            let (label, tail) = tail.split_at(usize::from(*length));
            labels.push(label);
            rest = tail;
        }
        labels.into_iter().rev()
    }

    /// Whether this is the other name or one below it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// The same name below another origin: nothing if it is not below the first one or the result is too long.
    pub(crate) fn moved(&self, from: &Self, to: &Self) -> Option<Self> {
        let relative = self.0.strip_prefix(&*from.0)?;
        let octets = [&*to.0, relative].concat();
        (octets.len() < NAME_LENGTH_MAX).then(|| Self(Arc::from(octets)))
    }

    /// The octets it is held in: its labels from the root on, each behind its length, without the root's.
    pub fn octets(&self) -> &[u8] {
        &self.0
    }

    /// The name one label up; nothing for the root.
    pub fn parent(&self) -> Option<Self> {
        let last = self.labels().next()?;
        Some(Self(Arc::from(&self.0[..self.0.len() - last.len() - 1])))
    }
}

/// Zone-file form with the final dot; octets with a meaning of their own there are escaped (RFC 1035 §5.1).
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str(".");
        }
        for label in self.labels() {
            for &byte in label {
                match byte {
                    b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => {
                        write!(f, "\\{}", char::from(byte))?;
                    }
                    b'!'..=b'~' => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::root().below(text).expect(text)
    }

    #[test]
    fn names_print_in_lower_case_with_a_final_dot() {
        assert_eq!(name("_Http._TCP.web").to_string(), "_http._tcp.web.");
        assert_eq!(name("mesos").below("a.b").expect("valid").to_string(), "a.b.mesos.");
        assert_eq!(Name::root().to_string(), ".");
        let odd = Name::from_labels([b"a b.".as_slice(), b"\xff"].into_iter()).expect("valid");
        assert_eq!(odd.to_string(), "a\\032b\\..\\255.");
    }

    #[test]
    fn names_that_cannot_be_served_are_refused() {
        let label = "a".repeat(63);
        for (text, expected) in [
            (String::new(), NameError::EmptyLabel),
            ("a..b".to_owned(), NameError::EmptyLabel),
            (".a".to_owned(), NameError::EmptyLabel),
            ("a.".to_owned(), NameError::EmptyLabel),
            ("a".repeat(64), NameError::LabelTooLong),
            ("a".repeat(300), NameError::LabelTooLong),
            ([label.as_str(); 4].join("."), NameError::NameTooLong),
            ("a b".to_owned(), NameError::Character),
            ("é".to_owned(), NameError::Character),
        ] {
            assert_eq!(Name::root().below(&text), Err(expected), "{text}");
        }
        let longest = [&label[..], &label, &label, &label[..61]].join(".");
        assert_eq!(name(&longest).to_string().len() + 1, NAME_LENGTH_MAX);
    }

    #[test]
    fn names_below_a_name_follow_it_directly() {
        let mut names = ["ba.mesos", "a.mesos", "mesos", "mesosx", "x.a.mesos", "b", "a-.mesos"].map(name);
        names.sort();
        let within: Vec<bool> = names.iter().map(|each| each.is_within(&name("mesos"))).collect();
        let first = within.iter().position(|inside| *inside).expect("some");
        assert_eq!(names[first], name("mesos"));
        assert_eq!(within[first..].iter().take_while(|inside| **inside).count(), 5);
    }

    #[test]
    fn parents_lack_the_first_label() {
        assert_eq!(name("a.b.mesos").parent(), Some(name("b.mesos")));
        assert_eq!(name("mesos").parent(), Some(Name::root()));
        assert_eq!(Name::root().parent(), None);
    }

    #[test]
    fn names_move_between_origins() {
        let moved = name("web.mesos").moved(&name("mesos"), &name("mesos.thisdcos.directory"));
        assert_eq!(moved, Some(name("web.mesos.thisdcos.directory")));
        assert_eq!(name("web.mesos").moved(&name("other"), &name("mesos")), None);
    }
}
