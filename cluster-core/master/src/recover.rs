//! A master from what the store holds.

use std::sync::Arc;

use mesonet_model::{
    Agent, AgentId, ClusterId, Framework, JoinedContainer, NodeSubnets, Revision, Service, Table, Task,
    TaskKey, TaskSpec, Timestamp, TunnelEnd, VirtualNetwork, Write,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::drain_label::drain_grace;
use crate::machine::{Config, Master};
use crate::outbox::Dirty;
use crate::tasks::{TaskEntry, may_serve};
use crate::vips::Allocation;

/// Records from the store, to begin from.
pub type Recovered = Vec<(Table, String, Vec<u8>)>;

/// The key of the counters in [`Table::Cluster`].
const COUNTERS_KEY: &str = "master_counters";

/// The key of what the brake on mass removal knows, in the same table.
const BRAKE_KEY: &str = "removal_brake";

/// The store's records do not make a master.
#[derive(Debug, Error)]
pub enum RecoverError {
    /// A record is not in the form that this version writes.
    #[error("cannot read record '{key}' of table {table}")]
    Record {
        /// The record's table.
        table: Table,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A task's agent or framework is not in the store.
    #[error("record '{key}' of table {table} is of {owner}, which is not in the store")]
    Orphan {
        /// The record's table.
        table: Table,
        /// The record's key.
        key: String,
        /// The agent or framework.
        owner: String,
    },
}

/// The numbers of the next ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) agents: u64,
    pub(crate) frameworks: u64,
    /// Whether the cluster has had its first virtual networks.
    #[serde(default)]
    pub(crate) networks_made: bool,
}

#[derive(Serialize)]
struct TaskRecord<'a> {
    spec: &'a TaskSpec,
    task: &'a Task,
}

#[derive(Deserialize)]
struct OwnedTaskRecord {
    spec: TaskSpec,
    task: Task,
}

impl Master {
    /// A master that begins from the store's records; a new cluster if there are none. `revision` is the last one
    /// committed; the view's is greater, since agents may not be there until they register.
    ///
    /// Records of other parts of the control plane are not looked at.
    pub fn recover(
        config: Config,
        cluster: ClusterId,
        revision: Revision,
        records: &Recovered,
    ) -> Result<Self, RecoverError> {
        let mut master = Self::new(config, cluster, revision.next());
        master.is_restarted = revision > Revision::ZERO;
        for (_, key, value) in of_table(records, Table::Cluster).filter(|(_, key, _)| key == COUNTERS_KEY) {
            master.counters = read(Table::Cluster, key, value)?;
            master.networks.are_made = master.counters.networks_made;
        }
        let brake = of_table(records, Table::Cluster).find(|(_, key, _)| key == BRAKE_KEY);
        for (table, key, value) in of_table(records, Table::Frameworks) {
            master.restore_framework(read(*table, key, value)?);
        }
        for (table, key, value) in of_table(records, Table::Agents) {
            master.restore_agent(read(*table, key, value)?);
        }
        if let Some((table, key, value)) = brake {
            master.stored_brake = read(*table, key, value)?;
            master.liveness.restore_brake(master.stored_brake.clone());
        }
        for (table, key, value) in of_table(records, Table::Vips) {
            master.services.restore_vip(key.clone(), read::<Allocation>(*table, key, value)?);
        }
        for (table, key, value) in of_table(records, Table::Services) {
            let service: Service = read(*table, key, value)?;
            master.services.restore(&service);
            master.view.services.insert(service.key.clone(), Arc::new(service));
        }
        for (table, key, value) in of_table(records, Table::Networks) {
            let network: VirtualNetwork = read(*table, key, value)?;
            master.networks.restore(&network);
            master.view.networks.insert(network.name.clone(), Arc::new(network));
        }
        for (table, key, value) in of_table(records, Table::Subnets) {
            let subnets: NodeSubnets = read(*table, key, value)?;
            master.networks.restore_subnets(&subnets);
            master.view.subnets.insert(AgentId::new(key), Arc::new(subnets));
        }
        for (table, key, value) in of_table(records, Table::Tunnels) {
            let end: TunnelEnd = read(*table, key, value)?;
            master.view.tunnels.insert(AgentId::new(key), Arc::new(end));
        }
        for (table, key, value) in of_table(records, Table::Joined) {
            let container: JoinedContainer = read(*table, key, value)?;
            if let Some(address) = container.addresses.first() {
                master.view.joined.insert(*address, Arc::new(container));
            }
        }
        let mut tasks = Vec::new();
        for (table, key, value) in of_table(records, Table::Tasks) {
            tasks.push(master.restore_task(key, read(*table, key, value)?)?);
        }
        // All at once: that is not a search for each.
        master.tasks = tasks.into_iter().collect();
        Ok(master)
    }

    /// The writes that bring the store to the present state.
    pub(crate) fn writes(&self, dirty: Dirty) -> Vec<Write> {
        let mut writes = Vec::new();
        if dirty.counters {
            let counters = Counters { networks_made: self.networks.are_made, ..self.counters };
            writes.push(Write::put(Table::Cluster, COUNTERS_KEY, &counters));
        }
        if dirty.brake {
            writes.push(Write::put(Table::Cluster, BRAKE_KEY, self.liveness.brake()));
        }
        for key in dirty.frameworks {
            writes.push(write(Table::Frameworks, &key, self.view.frameworks.get(&key).map(Arc::as_ref)));
        }
        for key in dirty.agents {
            writes.push(write(Table::Agents, &key, self.view.agents.get(&key).map(Arc::as_ref)));
        }
        for key in dirty.tasks {
            let task = self.view.tasks.get(&key).zip(self.tasks.get(&key));
            let record = task.map(|(task, entry)| TaskRecord { spec: &entry.spec, task });
            writes.push(write(Table::Tasks, &key, record.as_ref()));
        }
        for key in dirty.vips {
            writes.push(write(Table::Vips, &key, self.services.vips().allocation(&key)));
        }
        for key in dirty.services {
            writes.push(write(Table::Services, &key, self.view.services.get(&key).map(Arc::as_ref)));
        }
        for key in dirty.networks {
            writes.push(write(Table::Networks, &key, self.view.networks.get(&key).map(Arc::as_ref)));
        }
        for key in dirty.subnets {
            writes.push(write(Table::Subnets, &key, self.view.subnets.get(&key).map(Arc::as_ref)));
        }
        for key in dirty.tunnels {
            writes.push(write(Table::Tunnels, &key, self.view.tunnels.get(&key).map(Arc::as_ref)));
        }
        for key in dirty.joined {
            writes.push(write(Table::Joined, &key, self.view.joined.get(&key).map(Arc::as_ref)));
        }
        writes
    }

    /// Starts again the drains that a crash has cut short: their deadlines begin anew.
    pub(crate) fn resume_drains(&mut self, now: Timestamp) {
        if std::mem::take(&mut self.is_restarted) {
            self.drains.restarted(now);
            self.tunnels.restarted(self.view.tunnels.iter(), self.view.revision, now);
        }
        for key in std::mem::take(&mut self.drains_to_resume) {
            let Some(task) = self.view.tasks.get(&key) else { continue };
            if may_serve(task) {
                let grace = drain_grace(task, self.config.drain_grace);
                self.drains.begin(key, self.view.revision, now, grace);
            } else {
                self.drains.kill_at_once(key);
            }
        }
    }

    fn restore_framework(&mut self, framework: Framework) {
        self.framework_names.insert(framework.name.clone(), framework.id.clone());
        self.view.frameworks.insert(framework.id.clone(), Arc::new(framework));
    }

    fn restore_agent(&mut self, agent: Agent) {
        let agent = Agent { state: self.liveness.restore(&agent.id, agent.state), ..agent };
        if agent.draining {
            self.draining.insert(agent.id.clone());
        }
        self.allocator.set_agent(&agent.id, &agent.info.resources, false);
        self.view.agents.insert(agent.id.clone(), Arc::new(agent));
    }

    fn restore_task(
        &mut self,
        record: &str,
        stored: OwnedTaskRecord,
    ) -> Result<(TaskKey, TaskEntry), RecoverError> {
        let OwnedTaskRecord { mut spec, mut task } = stored;
        let orphan = |owner: &dyn std::fmt::Display| RecoverError::Orphan {
            table: Table::Tasks,
            key: record.to_owned(),
            owner: owner.to_string(),
        };
        let Some((agent, _)) = self.view.agents.get_key_value(&task.agent) else {
            return Err(orphan(&task.agent));
        };
        let Some((framework, _)) = self.view.frameworks.get_key_value(&task.key.framework) else {
            return Err(orphan(&task.key.framework));
        };
        // One copy of each id for all tasks, which is less to keep and to compare.
        (task.agent, task.key.framework) = (agent.clone(), framework.clone());
        (spec.agent, spec.key) = (task.agent.clone(), task.key.clone());
        self.allocator.use_resources(&task.agent, &task.key.framework, &task.resources);
        self.agent_tasks.entry(task.agent.clone()).or_default().insert(task.key.clone());
        if task.draining {
            self.drains_to_resume.insert(task.key.clone());
        }
        self.networks.enter(&task.agent, &spec);
        let entry = TaskEntry { spec, reported_at: task.updated_at, last_uuid: None, is_acknowledged: false };
        self.services.restore_endpoints(&mut self.view, &task);
        let key = task.key.clone();
        self.view.tasks.insert(key.clone(), Arc::new(task));
        Ok((key, entry))
    }
}

fn of_table(records: &Recovered, table: Table) -> impl Iterator<Item = &(Table, String, Vec<u8>)> {
    records.iter().filter(move |(of, _, _)| *of == table)
}

fn read<T: DeserializeOwned>(table: Table, key: &str, value: &[u8]) -> Result<T, RecoverError> {
    let error = |source| RecoverError::Record { table, key: key.to_owned(), source };
    serde_json::from_slice(value).map_err(error)
}

fn write<T: Serialize>(table: Table, key: &impl std::fmt::Display, value: Option<&T>) -> Write {
    match value {
        Some(value) => Write::put(table, key, value),
        None => Write::delete(table, key),
    }
}
