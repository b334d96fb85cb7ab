//! Placement constraints against agents and the instances that are placed already.
//!
//! Source of the operators' meaning: Marathon's constraints documentation and `Constraints.scala`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use mesonet_model::{AppDefinition, Constraint, ConstraintOperator};
use regex_lite::Regex;

use crate::instance::Place;

/// An app's constraints and how its instances are spread over the values of their fields.
#[derive(Debug)]
pub(crate) struct Placement {
    rules: Vec<Rule>,
    placed: usize,
}

#[derive(Debug)]
struct Rule {
    constraint: Constraint,
    /// The pattern of LIKE and UNLIKE; absent if it is none.
    pattern: Option<Regex>,
    /// Instances by the field's value; those whose agent lacks the field are under `None`.
    counts: BTreeMap<Option<String>, usize>,
}

impl Placement {
    /// The constraints of an app without instances.
    pub(crate) fn new(definition: &AppDefinition) -> Self {
        Self { rules: definition.constraints.iter().map(Rule::new).collect(), placed: 0 }
    }

    /// Whether every place is allowed, wherever instances are.
    pub(crate) fn is_free(&self) -> bool {
        self.rules.is_empty()
    }

    /// Counts one more instance.
    pub(crate) fn add(&mut self, place: Place<'_>) {
        self.placed += 1;
        for rule in &mut self.rules {
            let value = place.value(&rule.constraint.field).map(str::to_owned);
            *rule.counts.entry(value).or_default() += 1;
        }
    }

    /// Counts one instance less; it must be at the place at which it was counted.
    pub(crate) fn remove(&mut self, place: Place<'_>) {
        self.placed -= 1;
        for rule in &mut self.rules {
            let value = place.value(&rule.constraint.field).map(str::to_owned);
            if let Entry::Occupied(mut count) = rule.counts.entry(value) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    /// Whether one more instance may be placed there.
    pub(crate) fn allows(&self, place: Place<'_>) -> bool {
        self.rules.iter().all(|rule| match place.value(&rule.constraint.field) {
            Some(value) => rule.allows(value, self.placed),
            None => rule.constraint.operator == ConstraintOperator::Unlike,
        })
    }
}

impl Rule {
    fn new(constraint: &Constraint) -> Self {
        let pattern = match constraint.operator {
            ConstraintOperator::Like | ConstraintOperator::Unlike => {
                let text = constraint.value.as_deref().filter(|text| !text.is_empty());
                text.and_then(|text| Regex::new(&format!("^(?:{text})$")).ok())
            }
            ConstraintOperator::Unique
            | ConstraintOperator::Cluster
            | ConstraintOperator::GroupBy
            | ConstraintOperator::MaxPer
            | ConstraintOperator::Is => None,
        };
        Self { constraint: constraint.clone(), pattern, counts: BTreeMap::new() }
    }

    fn allows(&self, value: &str, placed: usize) -> bool {
        let wanted = self.constraint.value.as_deref();
        let count = self.counts.get(&Some(value.to_owned())).copied().unwrap_or(0);
        match self.constraint.operator {
            ConstraintOperator::Unique => count == 0,
            ConstraintOperator::Cluster => {
                wanted.is_none_or(|wanted| wanted.is_empty() || wanted == value) && count == placed
            }
            ConstraintOperator::GroupBy => {
                let groups_min = wanted.and_then(|text| text.parse().ok()).unwrap_or(0);
                let smallest = self.counts.values().copied().min().unwrap_or(0);
                count == 0 || (self.counts.len() >= groups_min && count == smallest)
            }
            ConstraintOperator::MaxPer => {
                wanted.and_then(|text| text.parse().ok()).is_some_and(|max: usize| count < max)
            }
            ConstraintOperator::Like => self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(value)),
            ConstraintOperator::Unlike => {
                self.pattern.as_ref().is_some_and(|pattern| !pattern.is_match(value))
            }
            ConstraintOperator::Is => wanted == Some(value),
        }
    }
}
