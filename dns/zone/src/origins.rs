//! The zones that are served, and the fixed names that follow from the settings.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::config::{IpSource, SoaConfig};
use crate::static_record::StaticRecords;
use crate::{Config, ConfigError, Data, LabelRule, Name, NameError, TaskChoice};

/// The names that everything else is built from.
#[derive(Debug)]
pub(crate) struct Origins {
    /// The mesos-dns zone.
    pub(crate) domain: Name,
    /// `slave.<domain>`.
    pub(crate) slave: Name,
    /// `dcos.thisdcos.directory`.
    pub(crate) dcos: Name,
    /// `l4lb.thisdcos.directory`.
    pub(crate) l4lb: Name,
    /// `zk`.
    pub(crate) zk: Name,
    /// The name of the server itself, in every zone's SOA and NS.
    pub(crate) nameserver: Name,
    /// The mailbox in every zone's SOA.
    pub(crate) mailbox: Name,
    /// Time to live of records in seconds.
    pub(crate) ttl: u32,
    /// Times to live of names whose static records have their own.
    pub(crate) own_ttls: BTreeMap<Name, u32>,
    pub(crate) soa: SoaConfig,
    /// The addresses of the server itself.
    pub(crate) nameserver_addresses: Vec<IpAddr>,
    pub(crate) ip_sources: Vec<IpSource>,
    pub(crate) label_rule: LabelRule,
    pub(crate) task_choice: TaskChoice,
    pub(crate) srv_weight: u16,
    /// Whether addresses lead back to names.
    pub(crate) reverse_names: bool,
    /// What is served whatever the view.
    pub(crate) fixed: StaticRecords,
    /// The zones, those with longer names first.
    zones: Vec<ServedZone>,
}

/// A zone: where it is served, and where its records are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServedZone {
    /// The zone's name.
    pub(crate) name: Name,
    /// Its names are kept below this one.
    pub(crate) stored: Name,
    /// Whether nothing can be said of it before the first view.
    pub(crate) needs_view: bool,
    /// If the zone is one of several that are served under another name together: the names below the first one are
    /// shown below the second one.
    pub(crate) renamed: Option<(Name, Name)>,
}

impl Origins {
    pub(crate) fn new(config: &Config, nameserver_addresses: &[IpAddr]) -> Result<Self, ConfigError> {
        let below = |origin: &Name, relative: &str| {
            origin
                .below(relative)
                .map_err(|source| ConfigError::Domain { domain: config.domain.clone(), source })
        };
        let root = Name::root();
        let domain = below(&root, &config.domain)?;
        let nameserver = match &config.soa.primary {
            Some(name) => soa_name(name)?,
            None => below(&domain, "ns1")?,
        };
        let mailbox = match &config.soa.mailbox {
            Some(name) => soa_name(&name.replacen('@', ".", 1))?,
            None => below(&nameserver, "root")?,
        };
        let directory = below(&root, "thisdcos.directory")?;
        let mut zones = Zones::new(&domain, &directory)?;
        zones.rename(&directory, &below(&root, "thisdcos.global")?);
        if let Some(key) = &config.cluster_key {
            let error = |source| ConfigError::ClusterKey { key: key.clone(), source };
            let dcos = below(&root, "dcos.directory")?;
            let label = if key.contains('.') { Err(NameError::Character) } else { dcos.below(key) };
            zones.rename(&directory, &label.map_err(error)?);
        }
        let fixed = StaticRecords::new(config)?;
        zones.add_static(&fixed);
        Ok(Self {
            slave: below(&domain, "slave")?,
            dcos: below(&directory, "dcos")?,
            l4lb: below(&directory, "l4lb")?,
            zk: below(&root, "zk")?,
            nameserver,
            mailbox,
            domain,
            ttl: config.ttl,
            own_ttls: fixed.own_ttls(),
            soa: config.soa.clone(),
            nameserver_addresses: nameserver_addresses.to_vec(),
            ip_sources: config.ip_sources.clone(),
            label_rule: config.label_rule,
            task_choice: config.task_choice,
            srv_weight: config.srv_weight,
            reverse_names: config.reverse_names,
            fixed,
            zones: zones.sorted(),
        })
    }

    /// The zones, those with longer names first.
    pub(crate) fn zones(&self) -> &[ServedZone] {
        &self.zones
    }

    /// The zone that a name belongs to: of those that it is within, the one with the longest name.
    pub(crate) fn zone_of(&self, name: &Name) -> Option<&ServedZone> {
        self.zones.iter().find(|zone| name.is_within(&zone.name))
    }

    /// The time to live of a name's records, as it is kept, in seconds.
    pub(crate) fn ttl_of(&self, name: &Name) -> u32 {
        self.own_ttls.get(name).copied().unwrap_or(self.ttl)
    }
}

impl ServedZone {
    /// The name under which a name is kept; nothing if it would be too long.
    pub(crate) fn stored(&self, name: &Name) -> Option<Name> {
        if self.name == self.stored { Some(name.clone()) } else { name.moved(&self.name, &self.stored) }
    }

    /// The name under which a name that is kept is shown in this zone; nothing if it would be too long.
    pub(crate) fn shown(&self, name: &Name) -> Option<Name> {
        if self.name != self.stored && name.is_within(&self.stored) {
            name.moved(&self.stored, &self.name)
        } else {
            Some(name.clone())
        }
    }

    /// The name that an alias in this zone is shown to lead to: one of the zones that are served under another name
    /// together stays among them.
    pub(crate) fn shown_alias(&self, name: &Name) -> Option<Name> {
        match &self.renamed {
            Some((from, to)) if !name.is_within(&self.stored) && name.is_within(from) => name.moved(from, to),
            _ => self.shown(name),
        }
    }
}

impl ServedZone {
    /// A value with its names as they are shown in this zone; nothing if one would be too long.
    pub(crate) fn shown_data(&self, data: &Data) -> Option<Data> {
        match data {
            Data::Srv { priority, weight, port, target } => {
                let (priority, weight, port) = (*priority, *weight, *port);
                Some(Data::Srv { priority, weight, port, target: self.shown(target)? })
            }
            Data::Cname(target) => Some(Data::Cname(self.shown_alias(target)?)),
            other => Some(other.clone()),
        }
    }
}

/// A list of zones in the making.
struct Zones(Vec<ServedZone>);

impl Zones {
    /// The zones of mesos-dns and dcos-dns (spec/dcos-networking.md §2.1.2 and §2.1.4).
    fn new(domain: &Name, directory: &Name) -> Result<Self, ConfigError> {
        let at = |origin: &Name, relative: &str| {
            let domain = relative.to_owned();
            origin.below(relative).map_err(|source| ConfigError::Domain { domain, source })
        };
        let root = Name::root();
        let mut zones = Self(Vec::new());
        zones.add(domain.clone(), domain.clone(), true);
        for (origin, relative, needs_view) in [
            (&root, "zk", true),
            (&root, "spartan", false),
            (&root, "localhost", false),
            (directory, "dcos", true),
            (directory, "l4lb", true),
            (directory, "thisnode", false),
            (directory, "component", false),
        ] {
            let name = at(origin, relative)?;
            zones.add(name.clone(), name, needs_view);
        }
        zones.add(directory.clone(), directory.clone(), true);
        zones.add(at(directory, "mesos")?, domain.clone(), true);
        zones.add(at(directory, "dclb")?, at(directory, "l4lb")?, true);
        Ok(zones)
    }

    /// A zone of a name that has one stays as it is.
    fn add(&mut self, name: Name, stored: Name, needs_view: bool) {
        if self.0.iter().all(|zone| zone.name != name) {
            self.0.push(ServedZone { name, stored, needs_view, renamed: None });
        }
    }

    /// Serves every zone within a name within another one, too.
    fn rename(&mut self, from: &Name, to: &Name) {
        let within: Vec<ServedZone> =
            self.0.iter().filter(|zone| zone.name.is_within(from)).cloned().collect();
        for zone in within {
            if let Some(name) = zone.name.moved(from, to) {
                let renamed = Some((from.clone(), to.clone()));
                self.0.push(ServedZone { name, renamed, ..zone });
            }
        }
    }

    /// Names of static records that are in no zone are zones of their own.
    fn add_static(&mut self, records: &StaticRecords) {
        let mut names: BTreeSet<&Name> = records.names().collect();
        while let Some(name) = names.pop_first() {
            if self.0.iter().all(|zone| !name.is_within(&zone.name)) {
                self.add(name.clone(), name.clone(), false);
            }
        }
    }

    fn sorted(mut self) -> Vec<ServedZone> {
        self.0.sort_by_key(|zone| std::cmp::Reverse(zone.name.octets().len()));
        self.0
    }
}

fn soa_name(name: &str) -> Result<Name, ConfigError> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    Name::root().below(bare).map_err(|source| ConfigError::Soa { name: name.to_owned(), source })
}
