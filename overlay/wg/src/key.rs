//! Keys of nodes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom, SystemRandom};
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use thiserror::Error;

/// Octets of a key.
pub const KEY_LENGTH: usize = 32;

/// What a node proves who it is with. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey([u8; KEY_LENGTH]);

/// What a node is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY_LENGTH]);

/// Why a text is no key.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("a key is 32 octets in base64")]
pub struct KeyError;

impl PrivateKey {
    /// A new key. It fails only if the system has no randomness.
    pub fn generate() -> Result<Self, ring::error::Unspecified> {
        let mut octets = [0; KEY_LENGTH];
        SystemRandom::new().fill(&mut octets)?;
        Ok(Self::from(octets))
    }

    /// The key that others may know.
    pub fn public(&self) -> PublicKey {
        let mut curve = DefaultResolver
            .resolve_dh(&DHChoice::Curve25519)
            .expect("BUG: the curve is a feature of snow that this crate asks for");
        curve.set(&self.0);
        let mut octets = [0; KEY_LENGTH];
        octets.copy_from_slice(curve.pubkey());
        PublicKey(octets)
    }

    /// The secret itself, to keep it in a file.
    pub fn expose(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl From<[u8; KEY_LENGTH]> for PrivateKey {
    /// Takes any octets, and sets the bits that the curve demands.
    fn from(mut octets: [u8; KEY_LENGTH]) -> Self {
        octets[0] &= 248;
        octets[31] = octets[31] & 127 | 64;
        Self(octets)
    }
}

impl FromStr for PrivateKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decoded(text).map(Self::from)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PrivateKey(of {})", self.public())
    }
}

impl PublicKey {
    /// Its octets.
    pub fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl From<[u8; KEY_LENGTH]> for PublicKey {
    fn from(octets: [u8; KEY_LENGTH]) -> Self {
        Self(octets)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decoded(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

fn decoded(text: &str) -> Result<[u8; KEY_LENGTH], KeyError> {
    STANDARD.decode(text.trim()).ok().and_then(|octets| octets.try_into().ok()).ok_or(KeyError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_are_those_of_the_curve() {
        // RFC 7748, section 6.1.
        let private = PrivateKey::from([
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
            0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ]);
        let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
        assert_eq!(private.public().to_string(), public);
        assert_eq!(public.parse(), Ok(private.public()));
    }

    #[test]
    fn a_private_key_is_not_printed() {
        let private = PrivateKey::generate().expect("randomness");
        let printed = format!("{private:?}");
        assert!(!printed.contains(&STANDARD.encode(private.expose())), "{printed}");
    }

    #[test]
    fn texts_of_another_length_are_refused() {
        for text in ["", "AAAA", "not base64", &STANDARD.encode([0; 31]), &STANDARD.encode([0; 33])] {
            assert_eq!(text.parse::<PublicKey>(), Err(KeyError));
        }
    }
}
