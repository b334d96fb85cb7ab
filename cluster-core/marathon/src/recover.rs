//! Beginning from the store's records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use mesonet_model::{AppDefinition, AppId, AppIdError, Revision, Table, TaskId, Timestamp, UuidSource};
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::app::{App, AppRecord};
use crate::host_ports::HostPorts;
use crate::instance::Instance;
use crate::machine::{OfferFlow, Turn};
use crate::progress::Plan;
use crate::service_ports::ServicePorts;
use crate::timers::{Timer, Timers};
use crate::{Config, Deployment, Marathon, MarathonView};

/// Records from the store, to begin from.
pub type Recovered = Vec<(Table, String, Vec<u8>)>;

/// Why Marathon cannot begin from the store's records. The records are left as they are.
#[derive(Debug, Error)]
pub enum RecoverError {
    /// A record is not what this version of mesonet writes.
    #[error("record '{key}' of table '{table}' cannot be read")]
    Record {
        /// The table.
        table: Table,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A record's key is no app id.
    #[error("record '{key}' of table '{table}' has a key that is no app id")]
    Key {
        /// The table.
        table: Table,
        /// The record's key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: AppIdError,
    },
    /// A record names another one that is not there.
    #[error("record '{key}' of table '{table}' refers to '{missing}', which is missing")]
    Dangling {
        /// The table.
        table: Table,
        /// The record's key.
        key: String,
        /// What it names.
        missing: String,
    },
}

/// The key of a version's record.
pub(crate) fn version_key(app: &AppId, version: Timestamp) -> String {
    format!("{app}@{version}")
}

impl Marathon {
    /// A Marathon that begins from the store's records; empty for a new one. Running instances are adopted and
    /// deployments go on with the first input.
    pub fn recover(config: Config, records: &Recovered) -> Result<Self, RecoverError> {
        let mut marathon = Self::empty(config);
        let versions: BTreeMap<&str, Arc<AppDefinition>> = of(records, Table::AppVersions)
            .map(|(key, value)| Ok((key, read(Table::AppVersions, key, value)?)))
            .collect::<Result<_, RecoverError>>()?;
        for (key, value) in of(records, Table::Apps) {
            marathon.recover_app(key, read(Table::Apps, key, value)?, &versions)?;
        }
        for (key, value) in of(records, Table::Instances) {
            marathon.recover_instance(key, read(Table::Instances, key, value)?)?;
        }
        for (key, value) in of(records, Table::Deployments) {
            marathon.recover_deployment(read(Table::Deployments, key, value)?);
        }
        // Nothing is to be written: every record is as it was read.
        marathon.refresh(&mut Turn { now: Timestamp::default(), effects: Vec::new() });
        Ok(marathon)
    }

    fn empty(config: Config) -> Self {
        Self {
            uuids: UuidSource::from_seed(config.seed),
            framework: None,
            apps: BTreeMap::new(),
            owners: BTreeMap::new(),
            plans: BTreeMap::new(),
            service_ports: ServicePorts::new(config.service_ports),
            host_ports: HostPorts::new(config.seed),
            timers: Timers::default(),
            version_last: Timestamp::default(),
            ready: BTreeSet::new(),
            offers: OfferFlow::Flowing,
            is_revival_due: false,
            is_constraint_lifted: false,
            revived_at: Timestamp::default(),
            unsettled: BTreeSet::new(),
            changed: BTreeSet::new(),
            view: MarathonView {
                revision: Revision::ZERO,
                framework: None,
                apps: OrdMap::new(),
                deployments: OrdMap::new(),
            },
            config,
        }
    }

    fn recover_app(
        &mut self,
        key: &str,
        record: AppRecord,
        all: &BTreeMap<&str, Arc<AppDefinition>>,
    ) -> Result<(), RecoverError> {
        let table = Table::Apps;
        let id =
            AppId::parse(key).map_err(|source| RecoverError::Key { table, key: key.to_owned(), source })?;
        let dangling = |missing| RecoverError::Dangling { table, key: key.to_owned(), missing };
        let version = |version: &Timestamp| {
            let key = version_key(&id, *version);
            all.get(key.as_str()).cloned().ok_or_else(|| dangling(key))
        };
        let versions = record.versions.iter().map(version).collect::<Result<Vec<_>, _>>()?;
        let newest = versions.first().ok_or_else(|| dangling("a version".to_owned()))?;
        self.version_last = self.version_last.max(newest.version);
        self.service_ports.claim(newest);
        self.apps.insert(id.clone(), App::from_record(record, versions));
        self.touch(&id);
        Ok(())
    }

    fn recover_instance(&mut self, key: &str, instance: Instance) -> Result<(), RecoverError> {
        let id = instance.view.app.clone();
        let app = self.apps.get_mut(&id).ok_or_else(|| RecoverError::Dangling {
            table: Table::Instances,
            key: key.to_owned(),
            missing: id.to_string(),
        })?;
        let task = TaskId::new(key);
        self.timers.set(Timer::Instance(task.clone()), instance.due(app.definition()));
        app.put_instance(instance);
        self.owners.insert(task, id);
        Ok(())
    }

    fn recover_deployment(&mut self, deployment: Deployment) {
        let deployment = Arc::new(deployment);
        let id = deployment.id.clone();
        self.version_last = self.version_last.max(deployment.version);
        for app in &deployment.affected_apps {
            if let Some(app) = self.apps.get_mut(app) {
                app.deployments.push(id.clone());
            }
            // Also one that is stopped and forgotten: the step may have waited for others only.
            self.touch(app);
        }
        self.view.deployments.insert(id.clone(), Arc::clone(&deployment));
        self.plans.insert(id, Plan::new(deployment));
    }
}

fn of(records: &Recovered, table: Table) -> impl Iterator<Item = (&str, &[u8])> {
    let records = records.iter().filter(move |(of, ..)| *of == table);
    records.map(|(_, key, value)| (key.as_str(), value.as_slice()))
}

fn read<T: DeserializeOwned>(table: Table, key: &str, value: &[u8]) -> Result<T, RecoverError> {
    serde_json::from_slice(value).map_err(|source| RecoverError::Record {
        table,
        key: key.to_owned(),
        source,
    })
}
