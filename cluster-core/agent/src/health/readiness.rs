//! When a task is asked whether it is ready, and what of the answers others are told.
//!
//! It is asked until it is ready once. Others are told that; and each answer that differs from the last one that they
//! know, if the app wants to have answers shown.

use std::time::Instant;

use mesonet_model::{ReadinessCheck, ReadinessResponse, ReadinessResult};

use super::check::{first_spread, later, shortened_to};

/// What is kept of an answer's body, in bytes: it is stored with the instance and shown to users.
pub(super) const BODY_BYTES_MAX: usize = 4 << 10;

/// What is kept of an answer's media type, in bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 128;

/// The status that is shown where there is no answer, as in Marathon.
const GATEWAY_TIMEOUT: u16 = 504;

/// The check whether a task is ready.
#[derive(Debug, Clone)]
pub(crate) struct Readiness {
    settings: ReadinessCheck,
    told: ReadinessResult,
    /// When the task is asked next; never once it is ready.
    due: Option<Instant>,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The task has answered.
    Response {
        /// The status.
        status: u16,
        /// The media type that it says it has.
        content_type: String,
        /// The beginning of the body.
        body: Vec<u8>,
    },
    /// It has not, and why.
    Failure(String),
}

impl Readiness {
    /// A check that goes on after what an earlier one has told. `place` is where the task is among those that begin at
    /// the same time, from 0 to 1.
    pub(crate) fn new(settings: ReadinessCheck, told: ReadinessResult, place: f64, now: Instant) -> Self {
        let due = (!told.ready).then(|| now + first_spread(settings.interval, place));
        Self { settings, told, due }
    }

    /// What is asked.
    pub(crate) fn settings(&self) -> &ReadinessCheck {
        &self.settings
    }

    /// When the task is to be asked; `None` if it is ready.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether an answer says that the task is ready.
    pub(crate) fn is_ready(&self, answer: &Answer) -> bool {
        match answer {
            Answer::Response { status, .. } => self.settings.ready_statuses.contains(status),
            Answer::Failure(_) => false,
        }
    }

    /// The task was asked. Returns what others are to know, if they do not.
    pub(crate) fn answered(&mut self, answer: Answer, now: Instant) -> Option<ReadinessResult> {
        let ready = self.is_ready(&answer);
        self.due = (!ready).then(|| later(now, self.settings.interval));
        let last_response = self.settings.keeps_response.then(|| shown(answer));
        let result = ReadinessResult { ready, last_response };
        if result == self.told {
            return None;
        }
        self.told = result;
        Some(self.told.clone())
    }
}

fn shown(answer: Answer) -> ReadinessResponse {
    match answer {
        Answer::Response { status, content_type, body } => ReadinessResponse {
            status,
            content_type: shortened_to(CONTENT_TYPE_BYTES_MAX, content_type),
            body: shortened_to(BODY_BYTES_MAX, String::from_utf8_lossy(&body).into_owned()),
        },
        Answer::Failure(cause) => ReadinessResponse {
            status: GATEWAY_TIMEOUT,
            content_type: "text/plain".to_owned(),
            body: shortened_to(BODY_BYTES_MAX, cause),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn settings(keeps_response: bool) -> ReadinessCheck {
        ReadinessCheck {
            port: 80,
            path: "/".to_owned(),
            tls: false,
            interval: 30 * SECOND,
            timeout: 10 * SECOND,
            ready_statuses: vec![200, 204],
            keeps_response,
        }
    }

    fn response(status: u16, body: &str) -> Answer {
        Answer::Response { status, content_type: "text/plain".to_owned(), body: body.into() }
    }

    fn result(ready: bool, response: Option<(u16, &str)>) -> ReadinessResult {
        let last_response = response.map(|(status, body)| ReadinessResponse {
            status,
            content_type: "text/plain".to_owned(),
            body: body.to_owned(),
        });
        ReadinessResult { ready, last_response }
    }

    #[test]
    fn a_task_is_asked_until_it_is_ready_once() {
        let start = Instant::now();
        let mut check = Readiness::new(settings(false), ReadinessResult::default(), 0.5, start);
        assert_eq!(check.due(), Some(start + SECOND / 2));
        for (second, answer) in [(1, response(503, "")), (40, Answer::Failure("no".to_owned()))] {
            let now = start + second * SECOND;
            assert_eq!(check.answered(answer, now), None, "it is what others take it for");
            assert_eq!(check.due(), Some(now + 30 * SECOND));
        }
        assert_eq!(check.answered(response(204, ""), start + 70 * SECOND), Some(result(true, None)));
        assert_eq!(check.due(), None);
        assert_eq!(Readiness::new(settings(false), result(true, None), 0.5, start).due(), None);
    }

    #[test]
    fn answers_are_told_if_they_are_to_be_shown() {
        let now = Instant::now();
        let mut check = Readiness::new(settings(true), ReadinessResult::default(), 0.0, now);
        for (answer, expected) in [
            (Answer::Failure("nobody".to_owned()), Some(result(false, Some((504, "nobody"))))),
            (Answer::Failure("nobody".to_owned()), None),
            (response(503, "10 %"), Some(result(false, Some((503, "10 %"))))),
            (response(503, "10 %"), None),
            (response(503, "90 %"), Some(result(false, Some((503, "90 %"))))),
            (response(200, "yes"), Some(result(true, Some((200, "yes"))))),
        ] {
            assert_eq!(check.answered(answer, now), expected);
        }
        // Another agent goes on with what this one has told.
        let told = result(false, Some((503, "90 %")));
        let mut check = Readiness::new(settings(true), told, 0.0, now);
        assert_eq!(check.answered(response(503, "90 %"), now), None);
    }

    proptest! {
        #[test]
        fn what_is_kept_of_an_answer_is_bounded(
            body in prop::collection::vec(any::<u8>(), 0..3 * BODY_BYTES_MAX),
            content_type in "\\PC{0,300}",
        ) {
            let mut check = Readiness::new(settings(true), ReadinessResult::default(), 0.0, Instant::now());
            let answer = Answer::Response { status: 503, content_type, body };
            let told = check.answered(answer, Instant::now()).and_then(|result| result.last_response);
            let response = told.expect("it is told");
            prop_assert!(response.body.len() <= BODY_BYTES_MAX);
            prop_assert!(response.content_type.len() <= CONTENT_TYPE_BYTES_MAX);
        }
    }
}
