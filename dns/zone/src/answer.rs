//! Answers questions from a snapshot of the zone.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesonet_model::Revision;

use crate::config::Origins;
use crate::table::{RecordSet, Table};
use crate::{Data, Name, Record, Soa};

/// SOA refresh of mesos-dns in seconds.
const SOA_REFRESH: u32 = 60;

/// SOA retry of mesos-dns in seconds.
const SOA_RETRY: u32 = 600;

/// SOA expire of mesos-dns in seconds.
const SOA_EXPIRE: u32 = 86_400;

/// All records at one revision. Immutable; a clone costs a few pointer copies.
#[derive(Debug, Clone)]
pub struct Zone {
    pub(crate) origins: Arc<Origins>,
    pub(crate) table: Table,
    /// The view that it follows from; `None` before the first one.
    pub(crate) revision: Option<Revision>,
}

/// What is asked, in class IN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name.
    pub name: Name,
    /// The type of records.
    pub kind: QuestionType,
}

/// The types that can have an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum QuestionType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Ports.
    Srv,
    /// The zone's start.
    Soa,
    /// The zone's name servers.
    Ns,
    /// Every type: the answer is a small one that says no (RFC 8482).
    Any,
    /// A type of which no name has records.
    Other,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Success or what went wrong.
    pub code: ResponseCode,
    /// Whether it comes from a zone that is served here.
    pub authoritative: bool,
    /// Whether records were left out because there are too many.
    pub truncated: bool,
    /// Why there is no answer, for clients that understand it (RFC 8914).
    pub reason: Option<ExtendedError>,
    /// The records asked for, owned by the question's name.
    pub answers: Vec<Record>,
    /// The zone's SOA if the answer is negative.
    pub authority: Vec<Record>,
    /// Addresses of the hosts in `answers`.
    pub additional: Vec<Record>,
}

/// Success or what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResponseCode {
    /// The name exists, whether or not it has such records.
    NoError,
    /// No view was applied yet.
    ServerFailure,
    /// Neither the name nor one below it exists.
    NameError,
    /// The name is in no zone that is served here.
    Refused,
}

/// Extended errors (RFC 8914 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExtendedError {
    /// No view was applied yet.
    NotReady,
    /// The name is in no zone that is served here.
    NotAuthoritative,
}

impl ExtendedError {
    /// The registered number.
    pub fn code(self) -> u16 {
        match self {
            Self::NotReady => 14,
            Self::NotAuthoritative => 20,
        }
    }
}

impl Zone {
    /// Answers a question.
    ///
    /// `rotation` chooses the record that comes first, so that equal numbers give equal answers. At most `records_max`
    /// records are in each section; that bounds the work for one question.
    pub fn answer(&self, question: &Question, rotation: u16, records_max: usize) -> Answer {
        let Some(apex) = self.apex_of(&question.name) else {
            return Answer::failed(ResponseCode::Refused, ExtendedError::NotAuthoritative);
        };
        let Some(revision) = self.revision else {
            return Answer::failed(ResponseCode::ServerFailure, ExtendedError::NotReady);
        };
        let mut lookup =
            Lookup { zone: self, question, apex, rotation, records_max, answer: Answer::empty() };
        match self.key(&question.name, apex) {
            Some(key) => lookup.run(&key),
            None => lookup.answer.code = ResponseCode::NameError,
        }
        let mut answer = lookup.answer;
        if question.kind == QuestionType::Soa && question.name == *apex {
            answer.answers = vec![self.soa(apex, revision)];
        } else if answer.answers.is_empty() {
            answer.authority.push(self.soa(apex, revision));
        }
        answer
    }

    /// The revision of the view that it follows from; `None` before the first one.
    pub fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// How many records are served.
    pub fn record_count(&self) -> usize {
        self.table.record_count()
    }

    /// Every record that follows from the view, sorted by name from the root on. The mirror of the mesos-dns zone has
    /// no records of its own and is left out, as are SOA and NS records.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let ttl = self.origins.ttl;
        self.table.records().map(move |(name, data)| Record { owner: name.clone(), ttl, data: data.clone() })
    }

    fn apex_of(&self, name: &Name) -> Option<&Name> {
        let within = self.origins.apexes().into_iter().filter(|apex| name.is_within(apex));
        within.max_by_key(|apex| apex.octet_count())
    }

    /// The name that the table has the records under. In mesos-dns names, labels that are an asterisk do not count
    /// unless they come first (spec/dcos-networking.md §1.5), and the mirror has the names of the original.
    fn key(&self, name: &Name, apex: &Name) -> Option<Name> {
        let origins = &*self.origins;
        let is_mirror = *apex == origins.mirror;
        if !is_mirror && *apex != origins.domain {
            return Some(name.clone());
        }
        let moved = if is_mirror { name.moved(&origins.mirror, &origins.domain)? } else { name.clone() };
        let asterisk: &[u8] = b"*";
        if !moved.labels().skip(1).any(|label| label == asterisk) {
            return Some(moved);
        }
        let labels: Vec<&[u8]> = moved.labels().collect();
        let counted = labels.iter().enumerate().filter(|(at, label)| *at == 0 || **label != asterisk);
        Name::from_labels(counted.map(|(_, label)| *label)).ok()
    }

    /// The name under which a name of the table is shown in a zone.
    fn shown(&self, name: &Name, apex: &Name) -> Option<Name> {
        if *apex == self.origins.mirror && name.is_within(&self.origins.domain) {
            name.moved(&self.origins.domain, &self.origins.mirror)
        } else {
            Some(name.clone())
        }
    }

    pub(crate) fn soa(&self, apex: &Name, revision: Revision) -> Record {
        let origins = &*self.origins;
        let soa = Soa {
            primary: origins.nameserver.clone(),
            mailbox: origins.mailbox.clone(),
            serial: (revision.0 & u64::from(u32::MAX)) as u32,
            refresh: SOA_REFRESH,
            retry: SOA_RETRY,
            expire: SOA_EXPIRE,
            minimum: origins.ttl,
        };
        Record { owner: apex.clone(), ttl: origins.ttl, data: Data::Soa(Arc::new(soa)) }
    }
}

/// One question on its way through the table.
struct Lookup<'zone> {
    zone: &'zone Zone,
    question: &'zone Question,
    apex: &'zone Name,
    rotation: u16,
    records_max: usize,
    answer: Answer,
}

impl Lookup<'_> {
    fn run(&mut self, key: &Name) {
        let zone = self.zone;
        let set = zone.table.served(key);
        let is_apex = self.question.name == *self.apex;
        if set.is_empty() && !is_apex && !zone.table.has_below(key) {
            self.answer.code = ResponseCode::NameError;
            return;
        }
        match self.question.kind {
            QuestionType::A => self.take(set.ipv4()),
            QuestionType::Aaaa => self.take(set.ipv6()),
            QuestionType::Srv => {
                self.take(set.ports());
                self.add_targets();
            }
            QuestionType::Ns if is_apex => {
                let nameserver = zone.origins.nameserver.clone();
                self.answer.answers.push(self.record(Data::Ns(nameserver.clone())));
                self.add_addresses(&nameserver, &nameserver);
            }
            QuestionType::Any => self.answer.answers.push(self.record(Data::AnyRefused)),
            QuestionType::Soa | QuestionType::Ns | QuestionType::Other => {}
        }
    }

    /// Answers with a set, as much of it as may be.
    fn take(&mut self, set: RecordSet<'_>) {
        self.answer.truncated = set.len() > self.records_max;
        for data in set.rotated(self.rotation).take(self.records_max) {
            let shown = match data {
                Data::Srv { priority, weight, port, target } => match self.zone.shown(target, self.apex) {
                    Some(target) => Data::Srv { priority: *priority, weight: *weight, port: *port, target },
                    None => continue,
                },
                other => other.clone(),
            };
            self.answer.answers.push(self.record(shown));
        }
    }

    /// Adds the addresses of the answer's hosts, unless it is not complete anyway.
    fn add_targets(&mut self) {
        if self.answer.truncated {
            return;
        }
        let mut targets: BTreeSet<Name> = BTreeSet::new();
        for at in 0..self.answer.answers.len() {
            if let Data::Srv { target, .. } = &self.answer.answers[at].data
                && targets.insert(target.clone())
            {
                let target = target.clone();
                if let Some(key) = self.zone.key(&target, self.apex) {
                    self.add_addresses(&target, &key);
                }
            }
        }
    }

    fn add_addresses(&mut self, owner: &Name, key: &Name) {
        let set = self.zone.table.served(key);
        for data in set.ipv4().rotated(self.rotation).chain(set.ipv6().rotated(self.rotation)) {
            if self.answer.additional.len() == self.records_max {
                self.answer.truncated = true;
                return;
            }
            let record = Record { owner: owner.clone(), ttl: self.zone.origins.ttl, data: data.clone() };
            self.answer.additional.push(record);
        }
    }

    fn record(&self, data: Data) -> Record {
        Record { owner: self.question.name.clone(), ttl: self.zone.origins.ttl, data }
    }
}

impl Answer {
    /// Success without any record.
    fn empty() -> Self {
        Self {
            code: ResponseCode::NoError,
            authoritative: true,
            truncated: false,
            reason: None,
            answers: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        }
    }

    fn failed(code: ResponseCode, reason: ExtendedError) -> Self {
        Self { code, authoritative: false, reason: Some(reason), ..Self::empty() }
    }
}
