//! One message in, one message out.

mod extended_error;
mod forwarded;
mod header;
mod zone_answer;

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode as WireCode};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::{DNSClass, Name as WireName, RData, Record, RecordType};
use mesonet_dns_zone::{Answer, Name, Question, QuestionType, ResponseCode, Zone};

use self::extended_error::{NOT_AUTHORITATIVE, PROHIBITED, explain};
use self::forwarded::Collapsed;
pub(crate) use self::forwarded::Forwarded;
use self::header::Header;
use self::zone_answer::{fill, question};
use crate::cookies::Cookie;
use crate::edns::{self, UDP_PAYLOAD_MAX};
use crate::forward::{Forwarder, Key};
use crate::guard::Guard;
use crate::metrics::{CodeLabel, KindLabel, Transport};
use crate::policy::Rights;
use crate::transfer::Transfer;
use crate::wire;

/// The size that every client can receive (RFC 1035 §4.2.1).
const UDP_PAYLOAD_MIN: u16 = 512;

/// Octets of the smallest record: a compressed name, type, class, time to live, length and an IPv4 address.
const RECORD_LENGTH_MIN: usize = 16;

/// The names that a server's own name is asked for by, in class CHAOS (RFC 4892 §2).
const IDENTITY_NAMES: [&str; 2] = ["id.server.", "hostname.bind."];

/// How old what is served is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// As new as the cluster has it.
    Current,
    /// It may be out of date.
    Stale,
}

/// What to do about a message.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Answer it.
    Answer {
        /// The answer as it goes over the wire.
        message: Vec<u8>,
        /// For the metrics.
        kind: KindLabel,
        /// For the metrics.
        code: CodeLabel,
        /// Whether the client has shown that it has the address that it says.
        is_proven: bool,
    },
    /// It cannot be read. If at least its header can, this says so.
    Malformed(Option<Vec<u8>>),
    /// It is no query: an answer to it could go back and forth for ever.
    Ignore,
}

/// What answers are made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'server> {
    pub(crate) zone: &'server Zone,
    pub(crate) freshness: Freshness,
    /// Resolves names outside the zone, if upstream servers are configured.
    pub(crate) forwarder: Option<&'server Arc<Forwarder>>,
    pub(crate) guard: &'server Guard,
    /// Who asks.
    pub(crate) client: IpAddr,
}

/// What becomes of a message.
#[derive(Debug)]
pub(crate) enum Step {
    /// It is dealt with.
    Done(Outcome),
    /// Its answer has to be waited for.
    Wait(Box<Forwarded>),
    /// Its answer is many messages. Only over TCP, TLS and QUIC.
    Transfer(Box<Transfer>),
}

/// Answers a message, if that needs no waiting.
pub(crate) fn respond(sources: &Sources<'_>, packet: &[u8], transport: Transport) -> Step {
    let Some(header) = Header::read(packet) else {
        return Step::Done(Outcome::Malformed(None));
    };
    if header.is_response() {
        return Step::Done(Outcome::Ignore);
    }
    if header.opcode() != u8::from(OpCode::Query) {
        let is_update = header.opcode() == u8::from(OpCode::Update);
        let (code, label) = if is_update {
            (WireCode::Refused, CodeLabel::Refused)
        } else {
            (WireCode::NotImp, CodeLabel::NotImp)
        };
        let (message, kind) = (header.reply(code), KindLabel::Other);
        return Step::Done(Outcome::Answer { message, kind, code: label, is_proven: false });
    }
    let malformed = || Step::Done(Outcome::Malformed(Some(header.reply(WireCode::FormErr))));
    let Ok(mut request) = Message::from_vec(packet) else {
        return malformed();
    };
    let Some(query) = request.queries.pop().filter(|_| request.queries.is_empty()) else {
        return malformed();
    };
    let Ok(cookie) = sources.guard.cookie(request.edns.as_ref(), sources.client) else {
        return malformed();
    };
    let limit = size_limit(&request, transport);
    Request { header, message: request, query, transport, limit, cookie }.answered(sources)
}

/// A query that was read.
#[derive(Debug)]
pub(crate) struct Request {
    header: Header,
    /// All but its question.
    message: Message,
    query: Query,
    transport: Transport,
    /// How many octets an answer may have.
    limit: u16,
    cookie: Option<Cookie>,
}

impl Request {
    fn answered(self, sources: &Sources<'_>) -> Step {
        let rights = sources.guard.policy.rights(sources.client);
        let forwarder = sources.forwarder.filter(|_| rights.recursion);
        let mut response = self.response(sources, forwarder.is_some());
        if self.message.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            response.metadata.response_code = WireCode::BADVERS;
            return Step::Done(self.encoded(response, CodeLabel::BadVers));
        }
        if !rights.is_served {
            return self.refused(response, Some(PROHIBITED));
        }
        if self.query.query_class == DNSClass::CH {
            return self.told_of_the_server(response, sources.guard);
        }
        if Transfer::is_asked_by(&self.query) {
            return self.transferred(response, sources, rights);
        }
        let Some(question) = question(&self.query) else {
            return self.refused(response, None);
        };
        let records_max = usize::from(self.limit) / RECORD_LENGTH_MIN;
        let answer = if sources.guard.policy.shows(rights, &question.name) {
            sources.zone.answer(&question, self.message.metadata.id, records_max)
        } else {
            Answer::outside()
        };
        let is_outside = answer.code == ResponseCode::Refused;
        if is_outside && self.message.metadata.recursion_desired {
            match forwarder.filter(|forwarder| forwarder.serves(&self.query.name)) {
                Some(forwarder) => return self.forwarded(response, forwarder),
                None if sources.forwarder.is_some() && !rights.recursion => {
                    return self.refused(response, Some(PROHIBITED));
                }
                None => {}
            }
        }
        if answer.code == ResponseCode::NameError
            && let Some(forwarder) = forwarder
            && let Some(sought) = self.sought(sources, forwarder, &question)
        {
            return self.collapsed(response, forwarder, sought, answer);
        }
        if answer.authoritative {
            response.metadata.recursion_available = sources.guard.policy.says_recursion(forwarder.is_some());
        }
        match fill(&mut response, &self.query, sources.freshness, answer) {
            Some(code) => Step::Done(self.encoded(response, code)),
            None => Step::Done(self.header.failed(kind_label(self.query.query_type))),
        }
    }

    /// The name that the client looks for if it asks because of its search list only.
    fn sought(&self, sources: &Sources<'_>, forwarder: &Forwarder, question: &Question) -> Option<WireName> {
        let is_plain = self.message.metadata.recursion_desired
            && !self.message.metadata.checking_disabled
            && !self.message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        // What may be out of date proves nothing.
        if !is_plain || sources.freshness == Freshness::Stale || forwarder.search().is_empty() {
            return None;
        }
        let sought = wire::name(&forwarder.search().sought(sources.zone, question)?)?;
        forwarder.serves(&sought).then_some(sought)
    }

    /// Answers with what the client looks for, or as ever if that does not exist either.
    fn collapsed(
        self,
        response: Message,
        forwarder: &Arc<Forwarder>,
        sought: WireName,
        absent: Answer,
    ) -> Step {
        let key = Key {
            name: (&sought).into(),
            kind: self.query.query_type,
            dnssec_ok: false,
            checking_disabled: false,
        };
        self.waiting(response, forwarder, key, Some(Collapsed { sought, absent }))
    }

    /// A response without anything but what every one has.
    fn response(&self, sources: &Sources<'_>, recursion_available: bool) -> Message {
        let asked = &self.message;
        let mut response = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        response.metadata.recursion_desired = asked.metadata.recursion_desired;
        response.metadata.recursion_available = recursion_available;
        response.metadata.checking_disabled = asked.metadata.checking_disabled;
        response.add_query(self.query.clone());
        response.edns = asked.edns.as_ref().map(|asked| {
            let mut edns = edns::answering(asked, self.transport);
            sources.guard.identify(asked, &mut edns, self.cookie, sources.client);
            edns
        });
        response
    }

    fn refused(self, mut response: Message, reason: Option<u16>) -> Step {
        response.metadata.response_code = WireCode::Refused;
        if let Some(reason) = reason {
            explain(&mut response, reason);
        }
        Step::Done(self.encoded(response, CodeLabel::Refused))
    }

    /// Answers a question of class CHAOS: which server this is, if that is configured, and nothing else.
    fn told_of_the_server(self, mut response: Message, guard: &Guard) -> Step {
        let is_identity =
            IDENTITY_NAMES.iter().any(|name| self.query.name.to_ascii().eq_ignore_ascii_case(name));
        let asks_text = matches!(self.query.query_type, RecordType::TXT | RecordType::ANY);
        let Some(identity) = guard.identity().filter(|_| is_identity && asks_text) else {
            return self.refused(response, None);
        };
        let text = RData::TXT(TXT::new(vec![identity.to_owned()]));
        let mut record = Record::from_rdata(self.query.name.clone(), 0, text);
        record.dns_class = DNSClass::CH;
        response.answers.push(record);
        response.metadata.authoritative = true;
        Step::Done(self.encoded(response, CodeLabel::NoError))
    }

    /// Begins a zone transfer, if the client may have it.
    fn transferred(self, mut response: Message, sources: &Sources<'_>, rights: Rights) -> Step {
        let Ok(apex) = Name::from_labels(self.query.name.iter()) else {
            return self.refused(response, None);
        };
        let is_allowed = rights.transfer
            && self.query.query_class == DNSClass::IN
            && sources.guard.policy.shows(rights, &apex);
        if !is_allowed {
            return self.refused(response, Some(PROHIBITED));
        }
        match self.transport {
            Transport::Tcp | Transport::Tls | Transport::Quic => {}
            // The start alone says that the rest does not fit (RFC 1995 §4).
            Transport::Udp if self.query.query_type == RecordType::IXFR => {
                let question = Question { name: apex, kind: QuestionType::Soa };
                let answer = sources.zone.answer(&question, 0, 1);
                return match fill(&mut response, &self.query, sources.freshness, answer) {
                    Some(code) => Step::Done(self.encoded(response, code)),
                    None => self.refused(response, None),
                };
            }
            Transport::Udp | Transport::Https => return self.refused(response, None),
        }
        match Transfer::new(Arc::new(sources.zone.clone()), apex, response.clone()) {
            Some(transfer) => Step::Transfer(Box::new(transfer)),
            None => self.refused(response, Some(NOT_AUTHORITATIVE)),
        }
    }

    fn forwarded(self, response: Message, forwarder: &Arc<Forwarder>) -> Step {
        let key = Key {
            name: (&self.query.name).into(),
            kind: self.query.query_type,
            dnssec_ok: self.message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok),
            checking_disabled: self.message.metadata.checking_disabled,
        };
        self.waiting(response, forwarder, key, None)
    }

    fn waiting(
        self,
        response: Message,
        forwarder: &Arc<Forwarder>,
        key: Key,
        collapsed: Option<Collapsed>,
    ) -> Step {
        let kept = forwarder.kept(&key);
        let forwarder = forwarder.clone();
        let mut forwarded = Forwarded { request: self, response, key, forwarder, place: None, collapsed };
        if let Some(reply) = kept {
            return Step::Done(forwarded.replied(Ok(reply)));
        }
        forwarded.place = forwarded.forwarder.place();
        match forwarded.place {
            Some(_) => Step::Wait(Box::new(forwarded)),
            None => Step::Done(forwarded.overloaded()),
        }
    }

    fn encoded(&self, mut response: Message, code: CodeLabel) -> Outcome {
        let kind = kind_label(self.query.query_type);
        let mut encoded = wire::encode_within(&mut response, self.limit);
        if let (Some(message), Some(edns)) = (&encoded, &mut response.edns)
            && edns::wants_padding(self.message.edns.as_ref(), self.transport)
        {
            edns::pad(edns, message.len(), usize::from(self.limit));
            encoded = response.to_vec().ok();
        }
        let is_proven = self.cookie.is_some_and(|cookie| cookie.is_good);
        match encoded {
            Some(message) => Outcome::Answer { message, kind, code, is_proven },
            None => self.header.failed(kind),
        }
    }
}

/// How many octets an answer may have.
fn size_limit(request: &Message, transport: Transport) -> u16 {
    match (transport, &request.edns) {
        (Transport::Tcp | Transport::Tls | Transport::Https | Transport::Quic, _) => u16::MAX,
        (Transport::Udp, Some(edns)) => edns.max_payload().clamp(UDP_PAYLOAD_MIN, UDP_PAYLOAD_MAX),
        (Transport::Udp, None) => UDP_PAYLOAD_MIN,
    }
}

fn kind_label(kind: RecordType) -> KindLabel {
    match kind {
        RecordType::A => KindLabel::A,
        RecordType::AAAA => KindLabel::Aaaa,
        RecordType::SRV => KindLabel::Srv,
        RecordType::SOA => KindLabel::Soa,
        RecordType::NS => KindLabel::Ns,
        RecordType::PTR => KindLabel::Ptr,
        RecordType::ANY => KindLabel::Any,
        RecordType::AXFR | RecordType::IXFR => KindLabel::Axfr,
        _ => KindLabel::Other,
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Edns;
    use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
    use mesonet_dns_zone::{Config, ZoneFollower};
    use mesonet_model::{ClusterId, ClusterView, Delta, Master, MasterId, Revision};
    use proptest::prelude::*;

    use super::*;
    use crate::PolicyConfig;
    use crate::wire::HEADER_LENGTH;

    /// A zone with so many masters.
    fn zone(masters: u8) -> Zone {
        let empty = ClusterView::empty(ClusterId::new("c"));
        let mut view = empty.clone();
        for at in 0..masters {
            let id = MasterId::new(format!("m{at:03}"));
            let address = ([10, 0, 0, at], 5050).into();
            view.masters
                .insert(id.clone(), Arc::new(Master { id, address, leading: true, removal_held: false }));
        }
        view.revision = Revision(1);
        let mut follower = ZoneFollower::new(&Config::default(), &[]).expect("default settings");
        follower.apply(&view, &Delta::between(&empty, &view));
        follower.zone()
    }

    fn request(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(hickory_proto::rr::Name::from_ascii(name).expect(name), kind));
        message.edns = payload.map(|payload| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            edns
        });
        message.to_vec().expect("a query can be encoded")
    }

    /// What is said from the zone alone.
    fn from_zone(zone: &Zone, freshness: Freshness, packet: &[u8], transport: Transport) -> Outcome {
        let guard = Guard::new(&PolicyConfig::default()).expect("a guard");
        let client = [127, 0, 0, 1].into();
        let sources = Sources { zone, freshness, forwarder: None, guard: &guard, client };
        match respond(&sources, packet, transport) {
            Step::Done(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn reply(zone: &Zone, packet: &[u8], transport: Transport) -> Message {
        match from_zone(zone, Freshness::Current, packet, transport) {
            Outcome::Answer { message, .. } => Message::from_vec(&message).expect("the answer can be read"),
            other => panic!("no answer but {other:?}"),
        }
    }

    /// Answers and additional records, and whether the message says that it is cut.
    #[test]
    fn additional_records_go_first_and_then_answers_from_the_end_on() {
        for (masters, kind, payload, transport, expected) in [
            (10, RecordType::A, None, Transport::Udp, (10, 0, false)),
            (28, RecordType::A, None, Transport::Udp, (28, 0, false)),
            (30, RecordType::A, None, Transport::Udp, (30, 0, false)),
            (31, RecordType::A, None, Transport::Udp, (30, 0, true)),
            (75, RecordType::A, Some(4096), Transport::Udp, (74, 0, true)),
            (200, RecordType::A, None, Transport::Tcp, (200, 0, false)),
            // One port, with the addresses of the hosts.
            (20, RecordType::SRV, None, Transport::Udp, (1, 20, false)),
            (40, RecordType::SRV, None, Transport::Udp, (1, 0, true)),
            (40, RecordType::SRV, Some(1232), Transport::Udp, (1, 40, false)),
            (200, RecordType::SRV, Some(1232), Transport::Udp, (1, 0, true)),
            (200, RecordType::SRV, None, Transport::Tcp, (1, 200, false)),
        ] {
            let name = if kind == RecordType::A { "leader.mesos." } else { "_leader._tcp.mesos." };
            let message = reply(&zone(masters), &request(name, kind, payload), transport);
            let found = (message.answers.len(), message.additionals.len(), message.metadata.truncation);
            assert_eq!(found, expected, "{masters} masters, {kind}, {payload:?}, {transport:?}");
        }
    }

    #[test]
    fn answers_over_tcp_end_at_the_longest_message() {
        let zone = zone(3);
        let packet = request("leader.mesos.", RecordType::A, None);
        let mut message = reply(&zone, &packet, Transport::Tcp);
        let one = message.answers[0].clone();
        message.answers = vec![one; 5000];
        let encoded = wire::encode_within(&mut message, u16::MAX).expect("a part of it fits");
        let read = Message::from_vec(&encoded).expect("it can be read");
        assert!(read.metadata.truncation);
        // Another record would not have fitted, even where names are too far apart to be compressed.
        assert!(encoded.len() + 30 > usize::from(u16::MAX), "{} octets", encoded.len());
    }

    /// Whatever comes, there is a readable answer of the allowed size with the same id, or none.
    fn check_any(packet: &[u8]) -> Result<(), TestCaseError> {
        for (transport, limit) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
            let message = match from_zone(&zone(40), Freshness::Current, packet, transport) {
                Outcome::Answer { message, .. } | Outcome::Malformed(Some(message)) => message,
                Outcome::Malformed(None) => {
                    prop_assert!(packet.len() < HEADER_LENGTH);
                    continue;
                }
                Outcome::Ignore => continue,
            };
            prop_assert!(message.len() <= limit);
            prop_assert_eq!(&message[..2], &packet[..2]);
            let read = Message::from_vec(&message);
            prop_assert!(read.is_ok(), "{:?} from {:?}", read, packet);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_octets_get_a_readable_answer_or_none(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            check_any(&packet)?;
        }

        #[test]
        fn damaged_queries_get_a_readable_answer_or_none(
            name in prop_oneof![Just("leader.mesos."), Just("_leader._tcp.mesos."), Just("x.y.z.mesos.")],
            payload in proptest::option::of(any::<u16>()),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in proptest::option::weighted(0.3, any::<prop::sample::Index>()),
            tail in proptest::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut packet = request(name, RecordType::SRV, payload);
            for (at, octet) in damage {
                let at = at.index(packet.len());
                packet[at] = octet;
            }
            if let Some(cut) = cut {
                packet.truncate(cut.index(packet.len()));
            }
            packet.extend(tail);
            check_any(&packet)?;
        }

        #[test]
        fn questions_with_any_labels_get_an_answer(
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..64), 0..4),
            kind in any::<u16>(),
        ) {
            let mut packet = vec![0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in &labels {
                packet.push(label.len() as u8);
                packet.extend(label);
            }
            packet.extend(b"\x05mEsOs\0");
            packet.extend(kind.to_be_bytes());
            packet.extend([0, 1]);
            check_any(&packet)?;
            let is_answered = matches!(from_zone(&zone(1), Freshness::Current, &packet, Transport::Udp), Outcome::Answer { .. });
            let length: usize = labels.iter().map(|label| label.len() + 1).sum();
            prop_assert!(is_answered || length + 7 > 255);
        }
    }

    #[test]
    fn answers_from_old_data_say_so_to_whoever_understands() {
        let zone = zone(1);
        for (name, payload, expected) in [
            ("master.mesos.", Some(1232), Some(3)),
            ("nothing.mesos.", Some(1232), Some(19)),
            ("example.com.", Some(1232), Some(20)),
            ("master.mesos.", None, None),
        ] {
            let packet = request(name, RecordType::A, payload);
            let Outcome::Answer { message, .. } = from_zone(&zone, Freshness::Stale, &packet, Transport::Udp)
            else {
                panic!("{name} is not answered");
            };
            let message = Message::from_vec(&message).expect("the answer can be read");
            let option = message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(15)).cloned());
            let code = option.map(|option| match option {
                EdnsOption::Unknown(15, data) => u16::from_be_bytes([data[0], data[1]]),
                other => panic!("{other:?}"),
            });
            assert_eq!(code, expected, "{name}");
        }
    }
}
