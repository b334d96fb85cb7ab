//! Whether this master leads, as a pure state machine.
//!
//! ```text
//!               elected                ready
//!   ┌──────────┐       ┌─────────────┐      ┌─────────┐
//!   │ Standing ├──────►│ Taking over ├─────►│ Leading │
//!   └────▲─────┘       └──────┬──────┘      └────┬────┘
//!        └─── lost, failed ───┴─── deposed, lost ┴ abdicates
//! ```
//!
//! What happens is given with the term that it is about: news of an earlier term come late and mean nothing. What is to
//! be done is carried out in its order.

use std::time::Duration;

/// How long a master that has given leadership up of its own accord, or could not take it over, lets others go first.
pub const STAND_BACK: Duration = Duration::from_secs(3);

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// This master is elected.
    Elected(u64),
    /// It has recovered the cluster's state and has committed its first change.
    Ready(u64),
    /// It cannot take over, because of the records or of itself.
    Failed(u64),
    /// The lease is lost, or may be lost.
    Lost(u64),
    /// A commit was refused because there is another leader.
    Deposed(u64),
    /// An operator wants another master to lead.
    Abdicate,
    /// The process is to end.
    End,
}

/// Something to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Recover the cluster's state and begin to drive it.
    TakeOver,
    /// Serve agents and users as the leader.
    Lead,
    /// Send agents and users to the leader, and follow it.
    StandBy,
    /// End the control plane after what it is committing.
    Finish,
    /// End the control plane at once: what it is committing is either kept, and the next leader finds it, or not.
    Drop,
    /// Give leadership up, so that another master is elected at once.
    Resign,
    /// Stand for election, after a wait.
    Campaign(Duration),
    /// Withdraw from the election.
    Withdraw,
}

/// Why a term of leadership has ended, for metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The lease is lost, or may be lost.
    Lost,
    /// Another leader has been found by a commit.
    Deposed,
    /// It could not be taken over.
    Failed,
    /// An operator wanted it.
    Abdicated,
}

/// Where this master is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stage {
    /// It stands by, and for election.
    #[default]
    Standing,
    /// It is elected and not ready.
    TakingOver(u64),
    /// It leads.
    Leading(u64),
    /// It ends.
    Ended,
}

/// The state machine.
#[derive(Debug, Default)]
pub struct Leadership {
    stage: Stage,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 4] = [Self::Lost, Self::Deposed, Self::Failed, Self::Abdicated];

    /// The name, for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Deposed => "deposed",
            Self::Failed => "failed",
            Self::Abdicated => "abdicated",
        }
    }
}

impl Leadership {
    /// Where this master is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// What is to be done, and why leadership has ended, if it has.
    pub fn handle(&mut self, event: Event) -> (Vec<Order>, Option<Cause>) {
        match (self.stage, event) {
            (Stage::Standing, Event::Elected(term)) => {
                self.stage = Stage::TakingOver(term);
                (vec![Order::TakeOver], None)
            }
            (Stage::TakingOver(own), Event::Ready(term)) if own == term => {
                self.stage = Stage::Leading(term);
                (vec![Order::Lead], None)
            }
            (Stage::TakingOver(own), Event::Failed(term)) if own == term => {
                self.stop(vec![Order::Drop, Order::Resign, Order::Campaign(STAND_BACK)], Cause::Failed)
            }
            (Stage::TakingOver(own), Event::Lost(term)) if own == term => {
                self.stop(vec![Order::Drop, Order::Campaign(Duration::ZERO)], Cause::Lost)
            }
            (Stage::TakingOver(own), Event::Deposed(term)) if own == term => {
                self.stop(vec![Order::Drop, Order::Campaign(Duration::ZERO)], Cause::Deposed)
            }
            // Nobody may be served by what cannot be committed any more, so that comes first.
            (Stage::Leading(own), Event::Lost(term)) if own == term => {
                self.stop(vec![Order::Drop, Order::StandBy, Order::Campaign(Duration::ZERO)], Cause::Lost)
            }
            (Stage::Leading(own), Event::Deposed(term)) if own == term => {
                self.stop(vec![Order::Drop, Order::StandBy, Order::Campaign(Duration::ZERO)], Cause::Deposed)
            }
            // Who asks from now on waits for the next leader, rather than be refused by one that ends.
            (Stage::Leading(_), Event::Abdicate) => self.stop(
                vec![Order::StandBy, Order::Finish, Order::Resign, Order::Campaign(STAND_BACK)],
                Cause::Abdicated,
            ),
            (Stage::Standing, Event::End) => self.end(vec![Order::Withdraw]),
            (Stage::TakingOver(_), Event::End) => self.end(vec![Order::Drop, Order::Resign]),
            (Stage::Leading(_), Event::End) => self.end(vec![Order::StandBy, Order::Finish, Order::Resign]),
            (
                Stage::Standing | Stage::TakingOver(_) | Stage::Leading(_) | Stage::Ended,
                Event::Elected(_)
                | Event::Ready(_)
                | Event::Failed(_)
                | Event::Lost(_)
                | Event::Deposed(_)
                | Event::Abdicate
                | Event::End,
            ) => (Vec::new(), None),
        }
    }

    fn stop(&mut self, orders: Vec<Order>, cause: Cause) -> (Vec<Order>, Option<Cause>) {
        self.stage = Stage::Standing;
        (orders, Some(cause))
    }

    fn end(&mut self, orders: Vec<Order>) -> (Vec<Order>, Option<Cause>) {
        self.stage = Stage::Ended;
        (orders, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A master that leads in term 5.
    fn leader() -> Leadership {
        let mut leadership = Leadership::default();
        assert_eq!(leadership.handle(Event::Elected(5)), (vec![Order::TakeOver], None));
        assert_eq!(leadership.handle(Event::Ready(5)), (vec![Order::Lead], None));
        leadership
    }

    #[test]
    fn a_master_leads_only_when_it_is_elected_and_ready() {
        let mut leadership = Leadership::default();
        assert_eq!(leadership.handle(Event::Ready(5)), (vec![], None));
        assert_eq!(leadership.stage(), Stage::Standing);
        assert_eq!(leader().stage(), Stage::Leading(5));
    }

    #[test]
    fn whoever_loses_the_lease_stops_before_anything_else() {
        for (event, cause) in [(Event::Lost(5), Cause::Lost), (Event::Deposed(5), Cause::Deposed)] {
            let mut leadership = leader();
            let (orders, ended) = leadership.handle(event);
            assert_eq!(orders, [Order::Drop, Order::StandBy, Order::Campaign(Duration::ZERO)]);
            assert_eq!(ended, Some(cause));
            assert_eq!(leadership.handle(Event::Elected(9)), (vec![Order::TakeOver], None), "it may again");
        }
    }

    #[test]
    fn news_of_an_earlier_term_mean_nothing() {
        let mut leadership = leader();
        for event in [Event::Lost(4), Event::Deposed(4), Event::Ready(4), Event::Failed(4)] {
            assert_eq!(leadership.handle(event), (vec![], None), "{event:?}");
        }
        assert_eq!(leadership.stage(), Stage::Leading(5));
    }

    #[test]
    fn a_master_that_cannot_take_over_lets_others_go_first() {
        let mut leadership = Leadership::default();
        leadership.handle(Event::Elected(5));
        let (orders, cause) = leadership.handle(Event::Failed(5));
        assert_eq!(orders, [Order::Drop, Order::Resign, Order::Campaign(STAND_BACK)]);
        assert_eq!(cause, Some(Cause::Failed));
        // It never served anybody, so nobody has to be sent elsewhere.
        leadership.handle(Event::Elected(6));
        assert_eq!(leadership.handle(Event::Lost(6)).0, [Order::Drop, Order::Campaign(Duration::ZERO)]);
    }

    #[test]
    fn who_leaves_in_order_sends_users_away_and_finishes_before_it_resigns() {
        let (orders, cause) = leader().handle(Event::Abdicate);
        let campaign = Order::Campaign(STAND_BACK);
        assert_eq!(orders, [Order::StandBy, Order::Finish, Order::Resign, campaign]);
        assert_eq!(cause, Some(Cause::Abdicated));
        assert_eq!(leader().handle(Event::End).0, [Order::StandBy, Order::Finish, Order::Resign]);
        let mut standing = Leadership::default();
        assert_eq!(standing.handle(Event::Abdicate).0, [], "there is nothing to give up");
        assert_eq!(standing.handle(Event::End).0, [Order::Withdraw]);
        assert_eq!(standing.handle(Event::Elected(7)).0, [], "too late");
    }
}
