//! Label selectors of `GET /v2/apps`: `a`, `a==b`, `a!=b`, `a in (x,y)`, `a notin (x)`, joined by commas for "and".

use std::collections::BTreeMap;

use thiserror::Error;

/// A condition on labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<Term>);

/// The text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "Label selector '{0}' is not valid: expected a, a==b, a!=b, a in (x,y) or a notin (x,y), joined by commas"
)]
pub(crate) struct LabelSelectorError(String);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    label: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Exists,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl LabelSelector {
    /// Reads a selector; the empty one matches everything.
    pub(crate) fn parse(text: &str) -> Result<Self, LabelSelectorError> {
        let terms: Option<Vec<Term>> = split(text).into_iter().map(parse_term).collect();
        terms.map(Self).ok_or_else(|| LabelSelectorError(text.to_owned()))
    }

    /// Whether labels meet the condition.
    pub(crate) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| {
            let value = labels.get(&term.label);
            match &term.test {
                Test::Exists => value.is_some(),
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_some_and(|value| !values.contains(value)),
            }
        })
    }
}

/// Splits at commas that are not in parentheses.
fn split(text: &str) -> Vec<&str> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let mut depth = 0_u32;
    let is_border = move |character: char| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    };
    text.split(is_border).collect()
}

fn parse_term(text: &str) -> Option<Term> {
    let text = text.trim();
    let term = |label: &str, test| {
        let label = label.trim();
        let is_clean = !label.is_empty() && !label.contains([' ', '=', '!', '(', ')', ',']);
        is_clean.then(|| Term { label: label.to_owned(), test })
    };
    if let Some((label, value)) = text.split_once("!=") {
        return term(label, Test::NotIn(vec![single(value)?]));
    }
    if let Some((label, value)) = text.split_once("==") {
        return term(label, Test::In(vec![single(value)?]));
    }
    let Some((label, rest)) = text.split_once(char::is_whitespace) else {
        return term(text, Test::Exists);
    };
    let rest = rest.trim();
    if let Some(set) = rest.strip_prefix("notin") {
        return term(label, Test::NotIn(parse_set(set)?));
    }
    term(label, Test::In(parse_set(rest.strip_prefix("in")?)?))
}

fn parse_set(text: &str) -> Option<Vec<String>> {
    let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    inner.split(',').map(single).collect()
}

fn single(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && !text.contains(['=', '(', ')', ','])).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_choose_by_label() {
        let labels =
            BTreeMap::from([("env".to_owned(), "test".to_owned()), ("a.b/c".to_owned(), "1".to_owned())]);
        for (selector, expected) in [
            ("", true),
            ("env", true),
            ("other", false),
            ("env==test", true),
            ("env == test", true),
            ("env==prod", false),
            ("env!=prod", true),
            ("env!=test", false),
            ("other!=test", false),
            ("env in (test,prod)", true),
            ("env in (prod)", false),
            ("env notin (prod, stage)", true),
            ("env notin (test)", false),
            ("env, a.b/c==1", true),
            ("env in (test, prod), a.b/c!=1", false),
        ] {
            let parsed = LabelSelector::parse(selector).expect(selector);
            assert_eq!(parsed.matches(&labels), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["==b", "a==", "a b", "a in b", "a in (", "a,,b", "a=b", "a in ()", "(a)"] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }
}
