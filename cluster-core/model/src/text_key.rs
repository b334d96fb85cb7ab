//! Map keys that read and write as one string, so that views are valid JSON objects and store keys sort.

use thiserror::Error;

/// A key's text does not have the form that its type prints.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{text}' is no {kind}: expected {expected}")]
pub struct TextKeyError {
    /// The text that was given.
    pub text: String,
    /// What it should have been.
    pub kind: &'static str,
    /// The form of such a key.
    pub expected: &'static str,
}

/// Implements serde for a type by its `Display` and `FromStr`.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use serde_as_text;
