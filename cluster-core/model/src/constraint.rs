//! Placement constraints of apps.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::TextKeyError;

/// Where an app's instances may be placed: a field of the agent (`@hostname`, `hostname` or an attribute), an operator
/// and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    /// `hostname`, `@hostname`, `@region`, `@zone` or an attribute's name.
    pub field: String,
    /// The operator.
    pub operator: ConstraintOperator,
    /// Its value, for operators that take one.
    pub value: Option<String>,
}

/// Marathon's constraint operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ConstraintOperator {
    /// No two instances with the same value.
    Unique,
    /// All instances with the same value, the given one if there is one.
    Cluster,
    /// Instances spread evenly over at least so many values.
    GroupBy,
    /// At most so many instances with the same value.
    MaxPer,
    /// Value matches a regular expression.
    Like,
    /// Value matches no regular expression.
    Unlike,
    /// Value equals.
    Is,
}

impl ConstraintOperator {
    /// The name in Marathon's API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unique => "UNIQUE",
            Self::Cluster => "CLUSTER",
            Self::GroupBy => "GROUP_BY",
            Self::MaxPer => "MAX_PER",
            Self::Like => "LIKE",
            Self::Unlike => "UNLIKE",
            Self::Is => "IS",
        }
    }
}

impl FromStr for ConstraintOperator {
    type Err = TextKeyError;

    fn from_str(text: &str) -> Result<Self, TextKeyError> {
        let all =
            [Self::Unique, Self::Cluster, Self::GroupBy, Self::MaxPer, Self::Like, Self::Unlike, Self::Is];
        all.into_iter().find(|operator| operator.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            TextKeyError {
                text: text.to_owned(),
                kind: "constraint operator",
                expected: "UNIQUE, CLUSTER, GROUP_BY, MAX_PER, LIKE, UNLIKE or IS",
            }
        })
    }
}
