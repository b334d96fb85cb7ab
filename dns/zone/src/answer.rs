//! Answers questions from a snapshot of the zone.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesonet_model::Revision;

use crate::origins::{Origins, ServedZone};
use crate::table::{RecordSet, Table};
use crate::{Data, Name, Record, Soa, reverse};

/// How many aliases are followed one after the other: more than a sane configuration has, and an end to circles.
const ALIASES_MAX: usize = 8;

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
    /// The name that one is another for.
    Cname,
    /// The name of an address.
    Ptr,
    /// Text.
    Txt,
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
    /// The records asked for. They are owned by the question's name, but for those behind an alias.
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
        let mut answer = Answer::empty();
        let mut name = question.name.clone();
        for aliases in 0..=ALIASES_MAX {
            let Some(served) = self.served_zone(&name) else {
                // What an alias elsewhere leads to is for others to find.
                let is_first = aliases == 0;
                return if is_first { Answer::outside() } else { answer };
            };
            if served.needs_view && self.revision.is_none() {
                return Answer::failed(ResponseCode::ServerFailure, ExtendedError::NotReady);
            }
            let before = answer.answers.len();
            let mut lookup = Lookup {
                zone: self,
                kind: question.kind,
                name: &name,
                served: &served,
                rotation,
                records_max,
                answer,
            };
            let alias = match self.key(&name, &served) {
                Some(key) => lookup.run(&key),
                None => {
                    lookup.answer.code = ResponseCode::NameError;
                    None
                }
            };
            answer = lookup.answer;
            match alias {
                Some(target) => name = target,
                None => {
                    if question.kind == QuestionType::Soa && name == served.name {
                        answer.answers.push(self.soa(&served.name));
                    } else if answer.answers.len() == before {
                        answer.authority.push(self.soa(&served.name));
                    }
                    return answer;
                }
            }
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

    /// Every record that is served, as the table keeps it, sorted by name from the root on. Zones that show the names of
    /// another one have no records of their own and are left out, as are SOA and NS records. [`Zone::zone_file`] lists
    /// zones as they are.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let origins = &self.origins;
        self.table.records().map(|(name, data)| Record {
            owner: name.clone(),
            ttl: origins.ttl_of(name),
            data: data.clone(),
        })
    }

    /// The zone that a name is answered from. The name of an address that has records is a zone of its own, so that
    /// others' names of addresses are left to others.
    pub(crate) fn served_zone(&self, name: &Name) -> Option<ServedZone> {
        if let Some(zone) = self.origins.zone_of(name) {
            return Some(zone.clone());
        }
        let is_own =
            self.revision.is_some() && reverse::is_reverse(name) && !self.table.served(name).is_empty();
        is_own.then(|| ServedZone {
            name: name.clone(),
            stored: name.clone(),
            needs_view: true,
            renamed: None,
        })
    }

    /// The name that the table has the records under. In mesos-dns names, every `.*` is left out
    /// (spec/dcos-networking.md §1.5): a label that begins with an asterisk, but for the first one, goes on with what
    /// follows in the label before it.
    fn key(&self, name: &Name, served: &ServedZone) -> Option<Name> {
        let stored = served.stored(name)?;
        let has_asterisk = stored.labels().skip(1).any(|label| label.starts_with(b"*"));
        if served.stored != self.origins.domain || !has_asterisk {
            return Some(stored);
        }
        let mut labels: Vec<Vec<u8>> = Vec::new();
        for label in stored.labels() {
            match (labels.last_mut(), label) {
                (Some(before), [b'*', rest @ ..]) => before.extend_from_slice(rest),
                _ => labels.push(label.to_vec()),
            }
        }
        Name::from_labels(labels.iter().map(Vec::as_slice)).ok()
    }

    pub(crate) fn soa(&self, apex: &Name) -> Record {
        let origins = &*self.origins;
        let serial = self.revision.unwrap_or(Revision::ZERO).0 & u64::from(u32::MAX);
        let soa = Soa {
            primary: origins.nameserver.clone(),
            mailbox: origins.mailbox.clone(),
            serial: serial as u32,
            refresh: origins.soa.refresh,
            retry: origins.soa.retry,
            expire: origins.soa.expire,
            minimum: origins.soa.minimum.unwrap_or(origins.ttl),
        };
        Record { owner: apex.clone(), ttl: origins.ttl, data: Data::Soa(Arc::new(soa)) }
    }
}

/// One name on its way through the table.
struct Lookup<'zone> {
    zone: &'zone Zone,
    kind: QuestionType,
    name: &'zone Name,
    served: &'zone ServedZone,
    rotation: u16,
    records_max: usize,
    answer: Answer,
}

impl Lookup<'_> {
    /// Answers from what the table has under a name. Where that is an alias, the name that it leads to.
    fn run(&mut self, key: &Name) -> Option<Name> {
        let zone = self.zone;
        let set = zone.table.served(key);
        let is_apex = *self.name == self.served.name;
        if set.is_empty() && !is_apex && !zone.table.has_below(key) {
            self.answer.code = ResponseCode::NameError;
            return None;
        }
        let ttl = zone.origins.ttl_of(key);
        let before = self.answer.answers.len();
        match self.kind {
            QuestionType::A => self.take(set.ipv4(), ttl),
            QuestionType::Aaaa => self.take(set.ipv6(), ttl),
            QuestionType::Srv => {
                self.take(set.ports(), ttl);
                self.add_targets();
            }
            QuestionType::Cname => self.take(set.aliases(), ttl),
            // An address that several names lead to has none of its own.
            QuestionType::Ptr if set.pointers().len() == 1 => self.take(set.pointers(), ttl),
            QuestionType::Txt => self.take(set.texts(), ttl),
            QuestionType::Ns if is_apex => {
                let nameserver = zone.origins.nameserver.clone();
                self.answer.answers.push(self.record(Data::Ns(nameserver.clone()), zone.origins.ttl));
                self.add_addresses(&nameserver, &nameserver);
            }
            QuestionType::Any => self.answer.answers.push(self.record(Data::AnyRefused, zone.origins.ttl)),
            QuestionType::Ptr | QuestionType::Soa | QuestionType::Ns | QuestionType::Other => {}
        }
        match self.kind {
            QuestionType::Any | QuestionType::Cname => None,
            _ if self.answer.answers.len() > before => None,
            _ => self.follow(set.aliases(), ttl),
        }
    }

    /// Answers with an alias, if there is one, and says where it leads.
    fn follow(&mut self, aliases: RecordSet<'_>, ttl: u32) -> Option<Name> {
        let Some(Data::Cname(target)) = aliases.rotated(0).next() else { return None };
        let target = self.served.shown_alias(target)?;
        self.answer.answers.push(self.record(Data::Cname(target.clone()), ttl));
        Some(target)
    }

    /// Answers with a set, as much of it as may be.
    fn take(&mut self, set: RecordSet<'_>, ttl: u32) {
        self.answer.truncated |= set.len() > self.records_max;
        for data in set.rotated(self.rotation).take(self.records_max) {
            if let Some(data) = self.served.shown_data(data) {
                self.answer.answers.push(self.record(data, ttl));
            }
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
                if let Some(key) = self.zone.key(&target, self.served) {
                    self.add_addresses(&target, &key);
                }
            }
        }
    }

    fn add_addresses(&mut self, owner: &Name, key: &Name) {
        let set = self.zone.table.served(key);
        let ttl = self.zone.origins.ttl_of(key);
        for data in set.ipv4().rotated(self.rotation).chain(set.ipv6().rotated(self.rotation)) {
            if self.answer.additional.len() == self.records_max {
                self.answer.truncated = true;
                return;
            }
            self.answer.additional.push(Record { owner: owner.clone(), ttl, data: data.clone() });
        }
    }

    fn record(&self, data: Data, ttl: u32) -> Record {
        Record { owner: self.name.clone(), ttl, data }
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

    /// The answer to a question about a name in no zone that is served.
    pub fn outside() -> Self {
        Self::failed(ResponseCode::Refused, ExtendedError::NotAuthoritative)
    }

    fn failed(code: ResponseCode, reason: ExtendedError) -> Self {
        Self { code, authoritative: false, reason: Some(reason), ..Self::empty() }
    }
}
