//! The vocabulary of a cluster.
//!
//! Everything that master, planes and APIs say to each other is a value of a type defined here: ids, resources,
//! tasks with the Mesos states, agents, services and their endpoints, and the immutable [`ClusterView`] that holds
//! them at one [`Revision`]. A [`Delta`] is the change between two views.
//!
//! The crate is pure: no clock, no randomness, no environment, no I/O. Time is the [`Timestamp`] that callers pass in.
//!
//! Main types: [`ClusterView`], [`Delta`], [`Task`], [`Agent`], [`Service`], [`Endpoint`], [`AppDefinition`].

#![forbid(unsafe_code)]

mod agent;
mod agent_protocol;
mod app;
mod constraint;
mod delta;
mod discovery;
mod framework;
mod health;
mod id;
mod joined;
mod launch;
pub mod name;
mod plane;
mod policy;
mod port_policy;
mod port_ranges;
mod readiness;
mod record;
mod resources;
mod revision;
mod scalar;
mod scheduler;
mod service;
mod subnet;
mod task;
mod task_network;
mod task_status;
mod text_key;
mod time;
mod tunnel;
mod uuid_source;
mod view;
mod vip;
mod virtual_network;

pub use agent::{Agent, AgentInfo, AgentState, Attribute, NODE_ATTRIBUTE, ZONE_ATTRIBUTE};
pub use agent_protocol::{AgentCommand, AgentReport, RunningTask};
pub use app::{
    AppDefinition, AppPort, Backoff, Container, ContainerKind, EnvironmentValue, KillSelection, Network,
    NetworkMode, PortDefinition, PortMapping, UnreachableStrategy, UpgradeStrategy, VersionInfo,
};
pub use constraint::{Constraint, ConstraintOperator};
pub use delta::{Changes, Delta, DeltaMismatch};
pub use discovery::{Discovery, DiscoveryPort, ServicePort, Visibility};
pub use framework::{Framework, Master};
pub use health::{HealthCheck, HealthProbe, HealthResult, IpProtocol};
pub use id::{
    APP_ID_LENGTH_MAX, AgentId, AppId, AppIdError, ClusterId, DeploymentId, FrameworkId, MasterId, OfferId,
    TaskId,
};
pub use joined::{AddressHolder, JOINED_MAX, JoinedContainer, PartUse};
pub use launch::{Command, PORT_LABELS_MAX, TASK_ID_LENGTH_MAX, TASK_PORTS_MAX, TaskSpec};
pub use plane::{Outage, Plane, PlaneReport};
pub use policy::{Algorithm, Locality, ServicePolicy, SlowStart, Weighing};
pub use port_policy::{DEFAULT_SHARE, PolicyLabelError, PortPolicy, ServiceWish};
pub use port_ranges::{PortRanges, PortRangesError};
pub use readiness::{ReadinessCheck, ReadinessResponse, ReadinessResult};
pub use record::{Table, Write};
pub use resources::Resources;
pub use revision::Revision;
pub use scalar::Scalar;
pub use scheduler::{Offer, SchedulerCall, SchedulerEvent};
pub use service::{Endpoint, EndpointKey, EndpointState, Service};
pub use subnet::{Subnet, SubnetError};
pub use task::{Serving, Task, TaskKey, TaskState};
pub use task_network::{NetworkPort, TaskNetwork};
pub use task_status::{StatusReason, StatusSource, TaskStatus};
pub use text_key::TextKeyError;
pub use time::{Timestamp, TimestampError};
pub use tunnel::{TunnelEnd, TunnelReport};
pub use uuid_source::UuidSource;
pub use view::ClusterView;
pub use vip::{Protocol, ServiceKey, Vip, VipLabel, VipLabelError};
pub use virtual_network::{
    Attachment, AttachmentRefusal, NETWORK_NAME_LENGTH_MAX, NetworkName, NetworkNameError, NetworkRange,
    NetworkRefusal, NetworkRoom, NodeSubnets, PortForward, TaskNetworking, VirtualNetwork, gateway_of,
    room_of,
};
