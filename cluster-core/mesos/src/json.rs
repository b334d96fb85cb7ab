//! Reading JSON that others write: `null` is absence, unknown members are skipped, and one form stands for several.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Reads a member that may be `null`.
pub(crate) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a member that is of no use if it has another form.
pub(crate) fn if_readable<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either<T> {
        Readable(T),
        Other(IgnoredAny),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Readable(value) => Some(value),
        Either::Other(IgnoredAny) => None,
    })
}

/// An id: text in `/master/state`, `{"value": text}` in the v1 API. Empty if it is neither.
pub(crate) fn id(raw: Option<&RawValue>) -> String {
    #[derive(Deserialize)]
    struct Wrapped {
        value: String,
    }
    let Some(raw) = raw else { return String::new() };
    let plain = serde_json::from_str::<String>(raw.get());
    plain.or_else(|_| serde_json::from_str::<Wrapped>(raw.get()).map(|each| each.value)).unwrap_or_default()
}

/// A label (Mesos `Label`).
#[derive(Debug, Deserialize)]
pub(crate) struct Label {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) key: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) value: String,
}

/// Labels in order: a list in `/master/state`, `{"labels": list}` in discovery information and the v1 API. None if they
/// are neither.
pub(crate) fn labels(raw: Option<&RawValue>) -> Vec<Label> {
    #[derive(Deserialize)]
    struct Wrapped {
        #[serde(default, deserialize_with = "or_default")]
        labels: Vec<Label>,
    }
    let Some(raw) = raw else { return Vec::new() };
    let plain = serde_json::from_str::<Vec<Label>>(raw.get());
    plain.or_else(|_| serde_json::from_str::<Wrapped>(raw.get()).map(|each| each.labels)).unwrap_or_default()
}

/// Labels by key; of equal keys the last one counts.
pub(crate) fn label_map(labels: Vec<Label>) -> BTreeMap<String, String> {
    labels.into_iter().map(|label| (label.key, label.value)).collect()
}
