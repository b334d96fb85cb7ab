//! Placement constraints.

use mesonet_model::{Constraint, ConstraintOperator};
use regex_lite::Regex;
use serde_json::Value;

use crate::json_reader::{Findings, Object, text_of};

pub(super) fn read_constraints(object: &Object<'_>) -> Vec<Constraint> {
    let elements = object.list("constraints").unwrap_or_default();
    elements
        .into_iter()
        .filter_map(|(value, path)| read_constraint(value, &path, object.findings()))
        .collect()
}

fn read_constraint(value: &Value, path: &str, findings: &Findings) -> Option<Constraint> {
    let Value::Array(parts) = value else {
        findings.malformed(path, "error.expected.jsarray");
        return None;
    };
    let texts: Vec<&str> = parts
        .iter()
        .enumerate()
        .filter_map(|(index, part)| text_of(part, &format!("{path}({index})"), findings))
        .collect();
    let (field, operator, operand) = match (texts.len() == parts.len(), texts.as_slice()) {
        (false, _) => return None,
        (true, [field, operator]) => (*field, *operator, None),
        (true, [field, operator, operand]) => (*field, *operator, Some(*operand)),
        (true, _) => {
            findings
                .invalid(path, "Constraint definition must comprise 2 or 3 strings: field, operator, value");
            return None;
        }
    };
    if field.is_empty() {
        findings.invalid(path, "Missing field");
    }
    let Ok(operator) = operator.parse::<ConstraintOperator>() else {
        findings.invalid(
            path,
            "operator must be one of the following UNIQUE, CLUSTER, GROUP_BY, LIKE, UNLIKE, MAX_PER or IS",
        );
        return None;
    };
    if let Some(fault) = operand_fault(operator, operand) {
        findings.invalid(path, fault);
        return None;
    }
    Some(Constraint { field: field.to_owned(), operator, value: operand.map(str::to_owned) })
}

/// What is wrong with an operator's operand.
fn operand_fault(operator: ConstraintOperator, operand: Option<&str>) -> Option<String> {
    let is_count = |text: &str| text.parse::<u32>().is_ok();
    match (operator, operand) {
        (ConstraintOperator::Unique, Some(_)) => Some("Value specified but not used".to_owned()),
        (ConstraintOperator::Unique | ConstraintOperator::Cluster, _)
        | (ConstraintOperator::GroupBy, None) => None,
        (ConstraintOperator::GroupBy, Some(count)) => {
            (!is_count(count)).then(|| "Value was specified but is not a number".to_owned())
        }
        (ConstraintOperator::MaxPer, Some(count)) if is_count(count) => None,
        (ConstraintOperator::MaxPer, _) => Some("MAX_PER needs a value that is a number".to_owned()),
        (ConstraintOperator::Like | ConstraintOperator::Unlike, None) => {
            Some("A regular expression value must be provided".to_owned())
        }
        (ConstraintOperator::Like | ConstraintOperator::Unlike, Some(pattern)) => Regex::new(pattern)
            .err()
            .map(|error| format!("'{pattern}' is not a valid regular expression: {error}")),
        (ConstraintOperator::Is, None) => Some("IS needs a value".to_owned()),
        (ConstraintOperator::Is, Some(text)) => {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_/.-".contains(&byte);
            (!text.bytes().all(is_plain))
                .then(|| "IS only supports values that match the pattern ^[a-zA-Z0-9_/.-]*$".to_owned())
        }
    }
}
