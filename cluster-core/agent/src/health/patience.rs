//! How long an answer is waited for, by an agent that may itself have to wait for a processor.

use std::pin::pin;
use std::time::Duration;

/// Into so many parts a wait is divided. An answer takes a handful of steps of this thread, from the connection to the
/// end of the body.
const PARTS: u32 = 10;

/// What comes of something that may take so long; `None` if it takes longer.
///
/// Only time in which this thread could have noticed the end counts: each part of the wait counts for no more than its
/// length, however late its end is noticed, and in each the future can make a step. A machine without time for its agent
/// would otherwise make all of its tasks seem ill at once, and have them replaced, which takes more of its time.
pub(super) async fn within<T>(limit: Duration, act: impl Future<Output = T>) -> Option<T> {
    let mut act = pin!(act);
    for _ in 0..PARTS {
        if let Ok(done) = tokio::time::timeout(limit / PARTS, act.as_mut()).await {
            return Some(done);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::sync::{mpsc, oneshot};
    use tokio::time::{Instant, advance};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    /// Answers each question at once, as soon as it gets to run.
    fn answerer() -> mpsc::Sender<oneshot::Sender<()>> {
        let (questions, mut asked) = mpsc::channel::<oneshot::Sender<()>>(1);
        tokio::spawn(async move {
            while let Some(answer) = asked.recv().await {
                answer.send(()).expect("somebody waits");
            }
        });
        questions
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_could_be_done_does_not_count() {
        let questions = answerer();
        let steps = async {
            for _ in 0..6 {
                let (answer, answered) = oneshot::channel();
                questions.send(answer).await.expect("it listens");
                // The thread does not get to run for longer than all of it may take.
                advance(2 * LIMIT).await;
                answered.await.expect("it answers");
            }
        };
        assert_eq!(within(LIMIT, steps).await, Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn time_without_an_answer_counts() {
        let began = Instant::now();
        assert_eq!(within(LIMIT, std::future::pending::<()>()).await, None);
        // The clock of the runtime counts in milliseconds.
        assert_eq!(began.elapsed().as_millis() / 20, LIMIT.as_millis() / 20);
    }
}
