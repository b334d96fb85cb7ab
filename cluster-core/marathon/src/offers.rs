//! Launches what waits on offers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesonet_model::{
    AppDefinition, AppId, FrameworkId, NetworkRoom, Offer, Resources, SchedulerCall, TaskId, TaskNetworking,
    TaskSpec,
};

use crate::NoMatchReason;
use crate::machine::{Marathon, REFUSE_IDLE, REFUSE_UNFIT, Turn};
use crate::matching::fit;

/// Instances launched in one turn. It bounds the turn for apps that need next to nothing; the rest of the offers comes
/// back for the next turn.
const LAUNCHES_PER_TURN_MAX: usize = 5_000;

/// An offer and what is left of it.
struct Open<'a> {
    offer: &'a Offer,
    left: Resources,
    rooms: NetworkRoom,
    tasks: Vec<TaskSpec>,
}

impl<'a> Open<'a> {
    fn new(offer: &'a Offer) -> Self {
        Self { offer, left: offer.resources.clone(), rooms: offer.networks.clone(), tasks: Vec::new() }
    }
}

/// An app and what is still to be launched of it.
struct Wanted {
    definition: Arc<AppDefinition>,
    count: u32,
    /// Whether a deployment waits until its instances are ready.
    is_deploying: bool,
}

/// What became of an app on an offer.
enum Outcome {
    Used,
    Unused(Vec<NoMatchReason>),
}

impl Marathon {
    /// Launches what fits and answers every offer. One instance per app and offer in each round, so that apps are spread
    /// over agents and none waits behind another's many instances.
    pub(crate) fn launch_on(&mut self, offers: &[Offer], turn: &mut Turn) {
        let Some(framework) = self.framework.clone() else { return };
        let mut wanted = self.wanted();
        let mut open: Vec<Open<'_>> = offers.iter().map(Open::new).collect();
        let mut outcomes: BTreeMap<(AppId, usize), Outcome> = BTreeMap::new();
        let mut closed: BTreeSet<(AppId, usize)> = BTreeSet::new();
        let mut launches = 0;
        let mut is_moving = true;
        while is_moving && launches < LAUNCHES_PER_TURN_MAX {
            is_moving = false;
            for (index, open) in open.iter_mut().enumerate() {
                for (id, wanted) in wanted.iter_mut().filter(|(_, wanted)| wanted.count > 0) {
                    let key = (id.clone(), index);
                    if launches >= LAUNCHES_PER_TURN_MAX || closed.contains(&key) {
                        continue;
                    }
                    match self.launch_one(&framework, wanted, open, turn) {
                        Ok(()) => {
                            outcomes.insert(key, Outcome::Used);
                            launches += 1;
                            is_moving = true;
                        }
                        Err(reasons) => {
                            // Another instance elsewhere may lift a constraint; resources do not come back.
                            if reasons != [NoMatchReason::UnfulfilledConstraint] {
                                closed.insert(key.clone());
                            }
                            outcomes.entry(key).or_insert(Outcome::Unused(reasons));
                        }
                    }
                }
            }
        }
        self.note(&outcomes, offers, turn);
        self.answer(open, launches, turn);
    }

    /// What waits for offers.
    fn wanted(&self) -> BTreeMap<AppId, Wanted> {
        let apps = self.ready.iter().filter_map(|id| self.apps.get_key_value(id));
        let wanted = apps.filter_map(|(id, app)| {
            let definition = Arc::clone(app.definition());
            let count = app.queue.as_ref()?.count();
            let is_deploying = self.is_deploying(id, app);
            Some((id.clone(), Wanted { definition, count, is_deploying }))
        });
        wanted.collect()
    }

    fn launch_one(
        &mut self,
        framework: &FrameworkId,
        wanted: &mut Wanted,
        open: &mut Open<'_>,
        turn: &mut Turn,
    ) -> Result<(), Vec<NoMatchReason>> {
        let Wanted { definition, count, is_deploying } = wanted;
        let placement = self.apps[&definition.id].placement();
        let agent = (&open.offer.agent, &open.offer.agent_info);
        let fit = fit(definition, placement, agent, (&open.left, &open.rooms), &mut self.host_ports)?;
        let prefix = definition.id.task_id_prefix();
        let task = TaskId::new(format!("{prefix}.instance-{}._app.1", self.uuids.next_uuid()));
        let mut spec = crate::launch::task_spec(definition, framework, &task, open.offer, &fit);
        let mut instance = crate::launch::instance(definition, task, open.offer, &fit, turn.now);
        if *is_deploying {
            spec.readiness_check = crate::health_checks::readiness_check(definition, &fit.host_ports);
            instance.wait_for_readiness(&spec);
        }
        self.put_instance(instance, turn);
        open.left.subtract(&fit.resources);
        for network in spec.networking.iter().flat_map(TaskNetworking::networks) {
            if let Some(room) = open.rooms.get_mut(network) {
                *room = room.saturating_sub(1);
            }
        }
        open.tasks.push(spec);
        *count -= 1;
        Ok(())
    }

    /// Tells the queues what became of the offers.
    fn note(&mut self, outcomes: &BTreeMap<(AppId, usize), Outcome>, offers: &[Offer], turn: &Turn) {
        for ((id, index), outcome) in outcomes {
            let queue = self.apps.get_mut(id).and_then(|app| app.queue.as_mut());
            let (Some(queue), Some(offer)) = (queue, offers.get(*index)) else { continue };
            match outcome {
                Outcome::Used => queue.offer_used(offer, turn.now),
                Outcome::Unused(reasons) => queue.offer_unused(offer, reasons.clone(), turn.now),
            }
            self.changed.insert(id.clone());
        }
    }

    fn answer(&mut self, open: Vec<Open<'_>>, launches: usize, turn: &mut Turn) {
        // Settles first: what waits afterwards decides how soon the rest of the offers is wanted again.
        self.settle_all(turn);
        let refuse = match self.ready.is_empty() {
            true => REFUSE_IDLE,
            false if launches >= LAUNCHES_PER_TURN_MAX => std::time::Duration::ZERO,
            false => REFUSE_UNFIT,
        };
        for Open { offer, tasks, .. } in open {
            let offer = offer.id.clone();
            turn.call(if tasks.is_empty() {
                SchedulerCall::Decline { offer, refuse }
            } else {
                SchedulerCall::Accept { offer, tasks, refuse }
            });
        }
    }
}
