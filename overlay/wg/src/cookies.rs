//! The proofs at the end of handshake messages.
//!
//! The first shows that the sender knows whom it talks to, and is cheap to check. While a node is under load it also
//! wants the second: a cookie that it gave to the sender's address, so that it works for nobody who lies about that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::AeadInPlace;
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use ring::rand::{SecureRandom, SystemRandom};

use crate::key::{KEY_LENGTH, PublicKey};
use crate::message::{COOKIE_REPLY_LENGTH, u32_at};
use crate::noise::MACS_LENGTH;

const MAC_LENGTH: usize = 16;
const NONCE: std::ops::Range<usize> = 8..32;
const COOKIE: std::ops::Range<usize> = 32..48;

/// How long a cookie is good for (COOKIE_REFRESH_TIME of the protocol).
const COOKIE_LIFE: Duration = Duration::from_secs(120);

type Mac = [u8; MAC_LENGTH];

/// Checks the first proof of messages to one key of this node.
pub(crate) struct KeyCheck {
    mac_key: [u8; KEY_LENGTH],
}

impl std::fmt::Debug for KeyCheck {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("KeyCheck")
    }
}

/// Checks the second proof of messages to one key of this node.
pub(crate) struct Guard {
    cookie_cipher: XChaCha20Poly1305,
    /// What cookies are made from.
    secret: [u8; KEY_LENGTH],
    secret_made: Instant,
}

/// Makes the proofs of messages to one peer.
pub(crate) struct Prover {
    mac_key: [u8; KEY_LENGTH],
    cookie_cipher: XChaCha20Poly1305,
    cookie: Option<(Mac, Instant)>,
    /// The first proof of the last message; a cookie is only for that.
    last: Option<Mac>,
}

impl KeyCheck {
    pub(crate) fn new(own: &PublicKey) -> Self {
        Self { mac_key: mac_key(own) }
    }

    /// Whether the sender of a handshake message knows the key.
    pub(crate) fn knows_key(&self, message: &[u8]) -> bool {
        let (content, macs) = message.split_at(message.len() - MACS_LENGTH);
        is_same(&mac(&self.mac_key, &[content]), &macs[..MAC_LENGTH])
    }
}

impl Guard {
    pub(crate) fn new(own: &PublicKey, now: Instant) -> Self {
        Self { cookie_cipher: cookie_cipher(own), secret: random_octets(), secret_made: now }
    }

    /// Whether the sender receives what is sent to its address.
    pub(crate) fn knows_cookie(&mut self, message: &[u8], sender: SocketAddr, now: Instant) -> bool {
        let (content, second) = message.split_at(message.len() - MAC_LENGTH);
        is_same(&mac(&self.cookie_for(sender, now), &[content]), second)
    }

    /// What the sender of a message is told, to try again with its cookie.
    pub(crate) fn reply(
        &mut self,
        message: &[u8],
        sender: SocketAddr,
        now: Instant,
    ) -> [u8; COOKIE_REPLY_LENGTH] {
        let first = message.len() - MACS_LENGTH;
        let mut reply = [0; COOKIE_REPLY_LENGTH];
        reply[0] = 3;
        reply[4..8].copy_from_slice(&u32_at(message, 4).to_le_bytes());
        let nonce: [u8; 24] = random_octets();
        reply[NONCE].copy_from_slice(&nonce);
        let mut cookie = self.cookie_for(sender, now);
        let tag = self
            .cookie_cipher
            .encrypt_in_place_detached(
                XNonce::from_slice(&nonce),
                &message[first..first + MAC_LENGTH],
                &mut cookie,
            )
            .expect("BUG: a cookie is shorter than what the cipher takes");
        reply[COOKIE].copy_from_slice(&cookie);
        reply[COOKIE.end..].copy_from_slice(&tag);
        reply
    }

    fn cookie_for(&mut self, sender: SocketAddr, now: Instant) -> Mac {
        if now.saturating_duration_since(self.secret_made) >= COOKIE_LIFE {
            self.secret = random_octets();
            self.secret_made = now;
        }
        let address = match sender.ip() {
            std::net::IpAddr::V4(address) => address.to_ipv6_mapped(),
            std::net::IpAddr::V6(address) => address,
        };
        mac(&self.secret, &[&address.octets(), &sender.port().to_be_bytes()])
    }
}

impl Prover {
    pub(crate) fn new(peer: &PublicKey) -> Self {
        Self { mac_key: mac_key(peer), cookie_cipher: cookie_cipher(peer), cookie: None, last: None }
    }

    /// Writes both proofs at the end of a message.
    pub(crate) fn sign(&mut self, message: &mut [u8], now: Instant) {
        let first = message.len() - MACS_LENGTH;
        let second = first + MAC_LENGTH;
        let proof = mac(&self.mac_key, &[&message[..first]]);
        message[first..second].copy_from_slice(&proof);
        self.last = Some(proof);
        if let Some((cookie, made)) = self.cookie
            && now.saturating_duration_since(made) < COOKIE_LIFE
        {
            let proof = mac(&cookie, &[&message[..second]]);
            message[second..].copy_from_slice(&proof);
        }
    }

    /// Takes a cookie. Whether it was one, for the last message.
    pub(crate) fn take_cookie(&mut self, reply: &[u8; COOKIE_REPLY_LENGTH], now: Instant) -> bool {
        let Some(last) = self.last.take() else {
            return false;
        };
        let mut cookie = [0; MAC_LENGTH];
        cookie.copy_from_slice(&reply[COOKIE]);
        let is_true = self
            .cookie_cipher
            .decrypt_in_place_detached(
                XNonce::from_slice(&reply[NONCE]),
                &last,
                &mut cookie,
                chacha20poly1305::Tag::from_slice(&reply[COOKIE.end..]),
            )
            .is_ok();
        if is_true {
            self.cookie = Some((cookie, now));
        } else {
            self.last = Some(last);
        }
        is_true
    }
}

fn mac_key(key: &PublicKey) -> [u8; KEY_LENGTH] {
    labelled(b"mac1----", key)
}

fn cookie_cipher(key: &PublicKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(&labelled(b"cookie--", key).into())
}

fn labelled(label: &[u8; 8], key: &PublicKey) -> [u8; KEY_LENGTH] {
    let mut hash = Blake2s256::new();
    Digest::update(&mut hash, label);
    Digest::update(&mut hash, key.as_bytes());
    hash.finalize().into()
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Mac {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key)
        .expect("BUG: all keys of proofs are at most 32 octets");
    for part in parts {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

/// Compares in a time that tells nothing about the proof.
fn is_same(expected: &Mac, given: &[u8]) -> bool {
    expected.len() == given.len()
        && expected.iter().zip(given).fold(0, |difference, (one, other)| difference | (one ^ other)) == 0
}

/// Random octets. Without randomness there is no secrecy, so that ends the process.
pub(crate) fn random_octets<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut octets = [0; LENGTH];
    SystemRandom::new().fill(&mut octets).expect("the system has randomness");
    octets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PrivateKey;
    use crate::message::INITIATION_LENGTH;

    #[test]
    fn a_cookie_is_good_for_its_address_and_for_a_while() {
        let now = Instant::now();
        let public = PrivateKey::generate().expect("randomness").public();
        let (mut guard, mut prover) = (Guard::new(&public, now), Prover::new(&public));
        let (here, there) = (([192, 0, 2, 1], 51820).into(), ([192, 0, 2, 2], 51820).into());
        let mut message = [7; INITIATION_LENGTH];

        prover.sign(&mut message, now);
        assert!(KeyCheck::new(&public).knows_key(&message));
        assert!(!guard.knows_cookie(&message, here, now));

        let reply = guard.reply(&message, here, now);
        assert!(prover.take_cookie(&reply, now));
        prover.sign(&mut message, now);
        assert!(KeyCheck::new(&public).knows_key(&message));
        assert!(guard.knows_cookie(&message, here, now));
        assert!(!guard.knows_cookie(&message, there, now));
        assert!(!guard.knows_cookie(&message, here, now + COOKIE_LIFE));
    }

    #[test]
    fn a_cookie_for_another_message_is_refused() {
        let now = Instant::now();
        let public = PrivateKey::generate().expect("randomness").public();
        let (mut guard, mut prover) = (Guard::new(&public, now), Prover::new(&public));
        let here = ([192, 0, 2, 1], 51820).into();
        let mut other = [7; INITIATION_LENGTH];
        Prover::new(&public).sign(&mut other, now);
        assert!(!prover.take_cookie(&guard.reply(&other, here, now), now));
        let mut message = [8; INITIATION_LENGTH];
        prover.sign(&mut message, now);
        assert!(!prover.take_cookie(&guard.reply(&other, here, now), now));
        assert!(prover.take_cookie(&guard.reply(&message, here, now), now));
    }

    #[test]
    fn who_does_not_know_the_key_is_noticed() {
        let now = Instant::now();
        let keys = [(); 2].map(|()| PrivateKey::generate().expect("randomness").public());
        let mut message = [7; INITIATION_LENGTH];
        Prover::new(&keys[0]).sign(&mut message, now);
        assert!(!KeyCheck::new(&keys[1]).knows_key(&message));
    }
}
