//! What happens to the source of packets that leave: one table of nftables, of one chain, that is this program's own.
//!
//! Each rule has what it says as its comment, by which it is found to be there. The table is replaced as a whole, in one
//! transaction of the kernel.

use std::net::IpAddr;

use rustix::net::netlink;

use crate::message::{DUMP, Message, attributes, be_address, text};
use crate::socket::Socket;
use crate::{NetlinkError, failed};

/// Messages of nftables (`linux/netfilter/nf_tables.h`).
const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const GET_RULE: u8 = 7;

/// The chain that packets pass when they leave, where sources are translated (`NF_INET_POST_ROUTING`,
/// `NF_IP_PRI_NAT_SRC`).
const CHAIN: &str = "leaving";
const CHAIN_KIND: &str = "nat";
const HOOK: u32 = 4;
const PRIORITY: u32 = 100;

/// Attributes of tables, chains and rules.
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_DATA: u16 = 7;

/// Attributes of lists, of expressions, and of values.
const ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const VALUE: u16 = 1;
const VERDICT: u16 = 2;

/// The register that packets are compared in, and the one of verdicts; `NF_ACCEPT`.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;
const ACCEPT: u32 = 1;

/// `NFT_META_OIFNAME` and `NFT_META_NFPROTO`; `NFT_CMP_EQ`; `NFT_PAYLOAD_NETWORK_HEADER`.
const INTERFACE_NAME: u32 = 7;
const FAMILY: u32 = 15;
const EQUAL: u32 = 0;
const NETWORK_HEADER: u32 = 1;

/// Octets of a name of an interface, with zeros after it.
const NAME_LENGTH: usize = 16;

/// The mark of a comment in the data of a rule that programs keep there, of which `nft` shows this one.
const COMMENT: u8 = 0;

/// A rule of the chain. The first that a packet fits decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatRule {
    /// What leaves through an interface of this name stays as it is.
    KeepThrough(String),
    /// What is for these addresses stays as it is.
    KeepTo(IpAddr, u8),
    /// What comes from these addresses gets that of the interface through which it leaves.
    TranslateFrom(IpAddr, u8),
}

/// The tables of nftables of a network namespace.
#[derive(Debug)]
pub struct Nat {
    socket: Socket,
}

impl Nat {
    /// Those of the namespace that the thread is in.
    ///
    /// # Errors
    /// When the kernel has none, or does not let.
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::open(Some(netlink::NETFILTER))
            .map_err(|source| failed("open", "a netlink socket for nftables", source))?;
        Ok(Self { socket })
    }

    /// What the rules of a table say, in their order; nothing if there is no such table.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn rules(&mut self, table: &str) -> Result<Vec<String>, NetlinkError> {
        let mut request = Message::of_nftables(GET_RULE);
        request.attribute(RULE_TABLE, &text(table));
        let answers = self.socket.exchange(request, DUMP);
        let answers = answers.map_err(|source| failed("list the rules of", table, source))?;
        Ok(answers.iter().map(|body| parse_comment(body).unwrap_or_default()).collect())
    }

    /// Makes a table have these rules and no others, all at once. Without rules there is no table.
    ///
    /// # Errors
    /// When the kernel refuses; nothing has changed then.
    pub fn replace(&mut self, table: &str, rules: &[NatRule]) -> Result<(), NetlinkError> {
        // One that is not there cannot be removed.
        let mut batch = vec![table_message(NEW_TABLE, table), table_message(DELETE_TABLE, table)];
        if !rules.is_empty() {
            batch.extend([table_message(NEW_TABLE, table), chain_message(table)]);
            batch.extend(rules.iter().map(|rule| rule_message(table, rule)));
        }
        self.socket.order_all(batch).map_err(|source| failed("set the rules of", table, source))
    }
}

impl std::fmt::Display for NatRule {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::KeepThrough(interface) => write!(out, "as it is through {interface}"),
            Self::KeepTo(address, prefix) => write!(out, "as it is to {address}/{prefix}"),
            Self::TranslateFrom(address, prefix) => write!(out, "translated from {address}/{prefix}"),
        }
    }
}

fn table_message(kind: u8, table: &str) -> Message {
    let mut message = Message::of_nftables(kind);
    message.attribute(TABLE_NAME, &text(table));
    if kind == NEW_TABLE { message.makes() } else { message }
}

fn chain_message(table: &str) -> Message {
    let mut message = Message::of_nftables(NEW_CHAIN);
    message.attribute(CHAIN_TABLE, &text(table));
    message.attribute(CHAIN_NAME, &text(CHAIN));
    let hook = message.begin(CHAIN_HOOK);
    message.attribute(HOOK_NUMBER, &HOOK.to_be_bytes());
    message.attribute(HOOK_PRIORITY, &PRIORITY.to_be_bytes());
    message.end(hook);
    message.attribute(CHAIN_TYPE, &text(CHAIN_KIND));
    message.makes()
}

fn rule_message(table: &str, rule: &NatRule) -> Message {
    let mut message = Message::of_nftables(NEW_RULE);
    message.attribute(RULE_TABLE, &text(table));
    message.attribute(RULE_CHAIN, &text(CHAIN));
    let expressions = message.begin(RULE_EXPRESSIONS);
    match rule {
        NatRule::KeepThrough(interface) => {
            let mut name = [0; NAME_LENGTH];
            name.iter_mut().zip(interface.bytes()).for_each(|(place, octet)| *place = octet);
            load(&mut message, INTERFACE_NAME);
            compare(&mut message, &name);
            accept(&mut message);
        }
        NatRule::KeepTo(address, prefix) => {
            let offset = if address.is_ipv4() { 16 } else { 24 };
            compare_address(&mut message, *address, *prefix, offset);
            accept(&mut message);
        }
        NatRule::TranslateFrom(address, prefix) => {
            let offset = if address.is_ipv4() { 12 } else { 8 };
            compare_address(&mut message, *address, *prefix, offset);
            expression(&mut message, "masq", |_| {});
        }
    }
    message.end(expressions);
    message.attribute(RULE_DATA, &comment(&rule.to_string()));
    message.appends()
}

// === Expressions ===

fn expression(message: &mut Message, name: &str, write: impl FnOnce(&mut Message)) {
    let element = message.begin(ELEMENT);
    message.attribute(EXPRESSION_NAME, &text(name));
    let data = message.begin(EXPRESSION_DATA);
    write(message);
    message.end(data);
    message.end(element);
}

/// Numbers as attributes, in network byte order.
fn numbers(message: &mut Message, numbers: &[(u16, u32)]) {
    for (kind, number) in numbers {
        message.attribute(*kind, &number.to_be_bytes());
    }
}

fn value(message: &mut Message, kind: u16, octets: &[u8]) {
    let data = message.begin(kind);
    message.attribute(VALUE, octets);
    message.end(data);
}

fn load(message: &mut Message, what: u32) {
    expression(message, "meta", |data| numbers(data, &[(1, REGISTER), (2, what)]));
}

fn compare(message: &mut Message, octets: &[u8]) {
    expression(message, "cmp", |data| {
        numbers(data, &[(1, REGISTER), (2, EQUAL)]);
        value(data, 3, octets);
    });
}

/// Compares a part of the packet's header, of which there are two kinds.
fn compare_address(message: &mut Message, address: IpAddr, prefix: u8, offset: u32) {
    load(message, FAMILY);
    compare(message, &[crate::family_of(address)]);
    let octets = be_address(address);
    let length = u32::try_from(octets.len()).unwrap_or(0);
    expression(message, "payload", |data| {
        numbers(data, &[(1, REGISTER), (2, NETWORK_HEADER), (3, offset), (4, length)]);
    });
    let mask: Vec<u8> = (0..octets.len()).map(|place| mask_octet(prefix, place)).collect();
    expression(message, "bitwise", |data| {
        numbers(data, &[(1, REGISTER), (2, REGISTER), (3, length)]);
        value(data, 4, &mask);
        value(data, 5, &vec![0; octets.len()]);
    });
    let first: Vec<u8> = octets.iter().zip(&mask).map(|(octet, mask)| octet & mask).collect();
    compare(message, &first);
}

/// One octet of a prefix' mask.
fn mask_octet(prefix: u8, place: usize) -> u8 {
    let bits = usize::from(prefix).saturating_sub(8 * place).min(8);
    u8::try_from((0xff00_u32 >> bits) & 0xff).unwrap_or(0)
}

fn accept(message: &mut Message) {
    expression(message, "immediate", |data| {
        numbers(data, &[(1, VERDICT_REGISTER)]);
        let outer = data.begin(2);
        let verdict = data.begin(VERDICT);
        data.attribute(1, &ACCEPT.to_be_bytes());
        data.end(verdict);
        data.end(outer);
    });
}

// === Comments ===

fn comment(said: &str) -> Vec<u8> {
    let said = text(said);
    let length = u8::try_from(said.len()).unwrap_or(u8::MAX);
    [&[COMMENT, length], said.as_slice()].concat()
}

/// What a rule says, if it is one of ours.
fn parse_comment(body: &[u8]) -> Option<String> {
    let attributes = attributes(body.get(4..)?);
    let (_, data) = attributes.into_iter().find(|(kind, _)| *kind == RULE_DATA)?;
    let [COMMENT, length, said @ ..] = data else { return None };
    let said = said.get(..usize::from(*length))?.strip_suffix(&[0])?;
    String::from_utf8(said.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_those_of_prefixes() {
        let mask = |prefix| [0, 1, 2, 3].map(|place| mask_octet(prefix, place));
        assert_eq!(mask(0), [0, 0, 0, 0]);
        assert_eq!(mask(8), [255, 0, 0, 0]);
        assert_eq!(mask(19), [255, 255, 0b1110_0000, 0]);
        assert_eq!(mask(32), [255; 4]);
    }

    #[test]
    fn what_a_rule_says_is_read_as_it_is_written() {
        let rule = NatRule::KeepTo([9, 0, 0, 0].into(), 8);
        let mut message = Message::of_nftables(NEW_RULE);
        message.attribute(RULE_DATA, &comment(&rule.to_string()));
        let bytes = message.finish(0, 1);
        assert_eq!(parse_comment(&bytes[16..]).as_deref(), Some("as it is to 9.0.0.0/8"));
        for length in 0..bytes.len() - 16 {
            assert_eq!(parse_comment(&bytes[16..16 + length]), None, "cut off");
        }
    }
}
