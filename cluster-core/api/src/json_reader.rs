//! Reads JSON from users by hand, so that every fault is found at once and named by its path, as Marathon does.
//!
//! A JSON `null` counts as not given everywhere: the Go command line sends nulls for what its user left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// Faults by the path of the value at fault.
pub(crate) type Details = BTreeMap<String, Vec<String>>;

/// Everything there is to say about an input.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    malformed: RefCell<Details>,
    invalid: RefCell<Details>,
    unknown: RefCell<BTreeSet<String>>,
}

/// A JSON object within an input.
#[derive(Debug)]
pub(crate) struct Object<'input> {
    map: &'input Map<String, Value>,
    path: String,
    findings: &'input Findings,
}

// === impl Findings ===

impl Findings {
    /// A value has the wrong type, range or pattern; `code` is one of Marathon's `error.…` codes.
    pub(crate) fn malformed(&self, path: impl Into<String>, code: &str) {
        self.malformed.borrow_mut().entry(path.into()).or_default().push(code.to_owned());
    }

    /// A value breaks a rule.
    pub(crate) fn invalid(&self, path: impl Into<String>, text: impl Into<String>) {
        self.invalid.borrow_mut().entry(path.into()).or_default().push(text.into());
    }

    /// Whether nothing is at fault.
    pub(crate) fn is_clean(&self) -> bool {
        self.malformed.borrow().is_empty() && self.invalid.borrow().is_empty()
    }

    /// Takes over the faults of another input.
    pub(crate) fn absorb(&self, other: Self) {
        for (path, codes) in other.malformed.into_inner() {
            self.malformed.borrow_mut().entry(path).or_default().extend(codes);
        }
        for (path, texts) in other.invalid.into_inner() {
            self.invalid.borrow_mut().entry(path).or_default().extend(texts);
        }
        self.unknown.borrow_mut().extend(other.unknown.into_inner());
    }

    /// Malformed values, then broken rules.
    pub(crate) fn into_faults(self) -> (Details, Details) {
        (self.malformed.into_inner(), self.invalid.into_inner())
    }

    /// Keys that have no meaning, as dotted paths.
    pub(crate) fn unknown_keys(&self) -> BTreeSet<String> {
        self.unknown.borrow().clone()
    }
}

// === impl Object ===

impl<'input> Object<'input> {
    /// The value as an object; keys that are not `known` are noted.
    pub(crate) fn open(
        value: &'input Value,
        path: &str,
        known: &[&str],
        findings: &'input Findings,
    ) -> Option<Self> {
        let Value::Object(map) = value else {
            findings.malformed(path, "error.expected.jsobject");
            return None;
        };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            let dotted = format!("{path}/{key}").trim_start_matches('/').replace('/', ".");
            findings.unknown.borrow_mut().insert(dotted);
        }
        Some(Self { map, path: path.to_owned(), findings })
    }

    /// Where faults go.
    pub(crate) fn findings(&self) -> &'input Findings {
        self.findings
    }

    /// The path of one of its values.
    pub(crate) fn at(&self, key: &str) -> String {
        format!("{}/{key}", self.path)
    }

    /// Its own path.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The value of a key, unless it is null.
    pub(crate) fn get(&self, key: &str) -> Option<&'input Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key has a value.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A fault if the key has no value.
    pub(crate) fn require(&self, key: &str) {
        if !self.has(key) {
            self.findings.malformed(self.at(key), "error.path.missing");
        }
    }

    /// Notes a broken rule about one of its values.
    pub(crate) fn invalid(&self, key: &str, text: impl Into<String>) {
        self.findings.invalid(self.at(key), text);
    }

    /// Notes a malformed value.
    pub(crate) fn malformed(&self, key: &str, code: &str) {
        self.findings.malformed(self.at(key), code);
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        let value = self.get(key)?;
        let text = text_of(value, &self.at(key), self.findings)?;
        Some(text.to_owned())
    }

    /// A text of at least one character.
    pub(crate) fn filled_text(&self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        if text.is_empty() {
            self.malformed(key, "error.minLength");
            return None;
        }
        Some(text)
    }

    /// A text that passes a test.
    pub(crate) fn text_like(&self, key: &str, test: impl Fn(&str) -> bool) -> Option<String> {
        let text = self.text(key)?;
        if !test(&text) {
            self.malformed(key, "error.pattern");
            return None;
        }
        Some(text)
    }

    /// One of several texts, each standing for a value.
    pub(crate) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        if found.is_none() {
            self.malformed(key, "error.unknown.enum.literal");
        }
        found
    }

    /// A truth value.
    pub(crate) fn flag(&self, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        let flag = value.as_bool();
        if flag.is_none() {
            self.malformed(key, "error.expected.jsboolean");
        }
        flag
    }

    /// A whole number from 0 to `max`.
    pub(crate) fn whole(&self, key: &str, max: u32) -> Option<u32> {
        whole_of(self.get(key)?, max, &self.at(key), self.findings)
    }

    /// A number of at least `min`.
    pub(crate) fn number(&self, key: &str, min: f64) -> Option<f64> {
        let number = self.any_number(key)?;
        if number < min {
            self.malformed(key, "error.min");
            return None;
        }
        Some(number)
    }

    /// Any number.
    pub(crate) fn any_number(&self, key: &str) -> Option<f64> {
        let number = self.get(key)?.as_f64();
        if number.is_none() {
            self.malformed(key, "error.expected.jsnumber");
        }
        number
    }

    /// An object.
    pub(crate) fn object(&self, key: &str, known: &[&str]) -> Option<Self> {
        Self::open(self.get(key)?, &self.at(key), known, self.findings)
    }

    /// The keys and values of an object whose keys are free, each with its path.
    pub(crate) fn entries(&self, key: &str) -> Option<Vec<(&'input String, &'input Value, String)>> {
        let Value::Object(map) = self.get(key)? else {
            self.malformed(key, "error.expected.jsobject");
            return None;
        };
        Some(map.iter().map(|(name, value)| (name, value, format!("{}/{name}", self.at(key)))).collect())
    }

    /// An object of texts.
    pub(crate) fn text_map(&self, key: &str) -> BTreeMap<String, String> {
        let entries = self.entries(key).unwrap_or_default();
        entries
            .into_iter()
            .filter_map(|(name, value, path)| {
                Some((name.clone(), text_of(value, &path, self.findings)?.to_owned()))
            })
            .collect()
    }

    /// The elements of a list, each with its path.
    pub(crate) fn list(&self, key: &str) -> Option<Vec<(&'input Value, String)>> {
        let Value::Array(elements) = self.get(key)? else {
            self.malformed(key, "error.expected.jsarray");
            return None;
        };
        let path = self.at(key);
        Some(elements.iter().enumerate().map(|(index, value)| (value, format!("{path}({index})"))).collect())
    }

    /// A list of objects; elements that are none are faults.
    pub(crate) fn objects(&self, key: &str, known: &[&str]) -> Option<Vec<Self>> {
        let elements = self.list(key)?;
        Some(
            elements
                .into_iter()
                .filter_map(|(value, path)| Self::open(value, &path, known, self.findings))
                .collect(),
        )
    }

    /// A list of texts.
    pub(crate) fn texts(&self, key: &str) -> Option<Vec<String>> {
        let elements = self.list(key)?;
        let read = |(value, path): (&Value, String)| text_of(value, &path, self.findings).map(str::to_owned);
        Some(elements.into_iter().filter_map(read).collect())
    }
}

/// The value as a text.
pub(crate) fn text_of<'value>(value: &'value Value, path: &str, findings: &Findings) -> Option<&'value str> {
    let text = value.as_str();
    if text.is_none() {
        findings.malformed(path, "error.expected.jsstring");
    }
    text
}

/// The value as a whole number from 0 to `max`; `3.0` is one, as in Marathon.
pub(crate) fn whole_of(value: &Value, max: u32, path: &str, findings: &Findings) -> Option<u32> {
    let Some(number) = value.as_f64() else {
        findings.malformed(path, "error.expected.jsnumber");
        return None;
    };
    let fault = if number.fract() != 0.0 {
        "error.expected.int"
    } else if number < 0.0 {
        "error.min"
    } else if number > f64::from(max) {
        "error.max"
    } else {
        return Some(number as u32);
    };
    findings.malformed(path, fault);
    None
}
