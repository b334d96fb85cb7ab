//! Questions that exist because of a client's search list only.
//!
//! A stub resolver that looks for `www.example.com` with the search list `marathon.mesos mesos` and a high `ndots` asks
//! for `www.example.com.marathon.mesos` and `www.example.com.mesos` before `www.example.com`. Where the first two do not
//! exist, the answer to the third can be given to the first question at once.

use mesonet_dns_zone::{Name, Question, QuestionType, ResponseCode, Zone};

/// Labels of a name that could be one of another domain.
const LABELS_MIN: usize = 2;

/// The search list of the clients.
#[derive(Debug)]
pub(crate) struct SearchList(Vec<Name>);

impl SearchList {
    pub(crate) fn new(suffixes: Vec<Name>) -> Self {
        Self(suffixes)
    }

    /// Whether nothing is done about search lists.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name that a client looks for that asks this question, which has no answer. Nothing unless it has to be that
    /// one: with none of the list's domains it is a name of the zones, and without them it is none of theirs.
    pub(crate) fn sought(&self, zone: &Zone, question: &Question) -> Option<Name> {
        if !matches!(question.kind, QuestionType::A | QuestionType::Aaaa) {
            return None;
        }
        let within = self.0.iter().filter(|suffix| question.name.is_within(suffix));
        let suffix = within.max_by_key(|suffix| suffix.labels().len())?;
        let labels: Vec<&[u8]> = question.name.labels().collect();
        let own = labels.len().checked_sub(suffix.labels().len()).filter(|own| *own >= LABELS_MIN)?;
        let labels = &labels[..own];
        let code_of = |name: Name| zone.answer(&Question { name, kind: question.kind }, 0, 1).code;
        let is_nowhere = self.0.iter().all(|suffix| {
            let name = Name::from_labels(labels.iter().copied().chain(suffix.labels()));
            // A name that would be too long is not asked for by anybody.
            name.is_err() || name.is_ok_and(|name| code_of(name) == ResponseCode::NameError)
        });
        let sought = Name::from_labels(labels.iter().copied()).ok()?;
        (is_nowhere && code_of(sought.clone()) == ResponseCode::Refused).then_some(sought)
    }
}
