//! The JSON of the v1 operator API's events.
//!
//! Source: Mesos' `v1/master/master.proto`, `Event` and `Response.GetState`.

use mesonet_model::{AgentId, FrameworkId};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::facts::{AgentFacts, FrameworkFacts};
use crate::hosts;
use crate::json::{id, if_readable, or_default};

/// An event: its type, and the member with what it says.
#[derive(Debug, Deserialize)]
pub(crate) struct EventJson<'a> {
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    pub(crate) kind: String,
    #[serde(borrow, default)]
    pub(crate) subscribed: Option<SubscribedJson<'a>>,
    #[serde(borrow, default)]
    pub(crate) task_added: Option<TaskAddedJson<'a>>,
    #[serde(borrow, default)]
    pub(crate) task_updated: Option<TaskUpdatedJson<'a>>,
    #[serde(borrow, default, alias = "agent_updated")]
    pub(crate) agent_added: Option<AgentAddedJson<'a>>,
    #[serde(borrow, default)]
    pub(crate) agent_removed: Option<AgentRemovedJson<'a>>,
    #[serde(borrow, default, alias = "framework_updated", alias = "framework_removed")]
    pub(crate) framework_added: Option<FrameworkEventJson<'a>>,
}

/// The first event of a stream: everything.
#[derive(Debug, Deserialize)]
pub(crate) struct SubscribedJson<'a> {
    #[serde(borrow, default)]
    pub(crate) get_state: Option<GetStateJson<'a>>,
    #[serde(default, deserialize_with = "if_readable")]
    pub(crate) heartbeat_interval_seconds: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct GetStateJson<'a> {
    #[serde(borrow, default)]
    pub(crate) get_agents: Option<GetAgentsJson<'a>>,
    #[serde(borrow, default)]
    pub(crate) get_frameworks: Option<GetFrameworksJson<'a>>,
    #[serde(borrow, default)]
    pub(crate) get_tasks: Option<GetTasksJson<'a>>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GetAgentsJson<'a> {
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) agents: Vec<&'a RawValue>,
    /// Agents of the master before this one that have not come back yet.
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) recovered_agents: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GetFrameworksJson<'a> {
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) frameworks: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GetTasksJson<'a> {
    #[serde(borrow, default, deserialize_with = "or_default")]
    pub(crate) tasks: Vec<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct TaskAddedJson<'a> {
    #[serde(borrow)]
    pub(crate) task: &'a RawValue,
}

#[derive(Debug, Deserialize)]
pub(crate) struct TaskUpdatedJson<'a> {
    #[serde(borrow, default)]
    pub(crate) framework_id: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) state: String,
    #[serde(borrow)]
    pub(crate) status: &'a RawValue,
}

#[derive(Debug, Deserialize)]
pub(crate) struct AgentAddedJson<'a> {
    #[serde(borrow)]
    pub(crate) agent: &'a RawValue,
}

#[derive(Debug, Deserialize)]
pub(crate) struct AgentRemovedJson<'a> {
    #[serde(borrow, default)]
    pub(crate) agent_id: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FrameworkEventJson<'a> {
    #[serde(borrow, default, alias = "framework_info")]
    pub(crate) framework: Option<&'a RawValue>,
}

/// Reads an agent of the v1 API.
pub(crate) fn agent(raw: &RawValue) -> Option<AgentFacts> {
    #[derive(Deserialize)]
    struct AgentJson<'a> {
        #[serde(borrow)]
        agent_info: InfoJson<'a>,
        #[serde(default, deserialize_with = "or_default")]
        pid: String,
        #[serde(default)]
        active: Option<bool>,
    }
    #[derive(Deserialize)]
    struct InfoJson<'a> {
        #[serde(borrow, default)]
        id: Option<&'a RawValue>,
        #[serde(default, deserialize_with = "or_default")]
        hostname: String,
    }
    let json: AgentJson<'_> = serde_json::from_str(raw.get()).ok()?;
    let id = id(json.agent_info.id);
    (!id.is_empty()).then(|| AgentFacts {
        id: AgentId::new(id),
        hostname: json.agent_info.hostname,
        endpoint: hosts::of_pid(&json.pid),
        active: json.active.unwrap_or(true),
    })
}

/// The id of a recovered agent, of which there is only its description.
pub(crate) fn agent_id(raw: &RawValue) -> Option<AgentId> {
    #[derive(Deserialize)]
    struct InfoJson<'a> {
        #[serde(borrow, default)]
        id: Option<&'a RawValue>,
    }
    let json: InfoJson<'_> = serde_json::from_str(raw.get()).ok()?;
    let id = id(json.id);
    (!id.is_empty()).then(|| AgentId::new(id))
}

/// Reads a framework of the v1 API, or its description alone.
pub(crate) fn framework(raw: &RawValue) -> Option<FrameworkFacts> {
    #[derive(Deserialize)]
    struct WholeJson<'a> {
        #[serde(borrow, default)]
        framework_info: Option<&'a RawValue>,
        #[serde(default)]
        active: Option<bool>,
    }
    #[derive(Deserialize)]
    struct InfoJson<'a> {
        #[serde(borrow, default)]
        id: Option<&'a RawValue>,
        #[serde(default, deserialize_with = "or_default")]
        name: String,
        #[serde(default, deserialize_with = "or_default")]
        user: String,
        #[serde(default, deserialize_with = "or_default")]
        role: String,
        #[serde(default, deserialize_with = "or_default")]
        hostname: String,
        #[serde(default)]
        webui_url: Option<String>,
    }
    let whole: WholeJson<'_> = serde_json::from_str(raw.get()).ok()?;
    let info: InfoJson<'_> = serde_json::from_str(whole.framework_info.unwrap_or(raw).get()).ok()?;
    let id = id(info.id);
    (!id.is_empty()).then(|| FrameworkFacts {
        id: FrameworkId::new(id),
        name: info.name,
        user: info.user,
        role: info.role,
        hostname: info.hostname,
        endpoint: None,
        webui_url: info.webui_url,
        active: whole.active.unwrap_or(true),
    })
}
