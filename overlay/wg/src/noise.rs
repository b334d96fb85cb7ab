//! The two messages that agree on keys: Noise_IKpsk2, as WireGuard uses it.

use std::time::{Duration, SystemTime};

use snow::{Builder, HandshakeState};

use crate::key::{KEY_LENGTH, PrivateKey, PublicKey};
use crate::message::{INITIATION_LENGTH, RESPONSE_LENGTH, u32_at};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"WireGuard v1 zx2c4 Jason@zx2c4.com";

/// No secret besides the keys.
const NO_SHARED_SECRET: [u8; KEY_LENGTH] = [0; KEY_LENGTH];

/// Octets of the two proofs at the end of each message.
pub(crate) const MACS_LENGTH: usize = 32;

/// Where the Noise part of an initiation is.
const INITIATION_NOISE: std::ops::Range<usize> = 8..INITIATION_LENGTH - MACS_LENGTH;

/// Where the Noise part of a response is.
const RESPONSE_NOISE: std::ops::Range<usize> = 12..RESPONSE_LENGTH - MACS_LENGTH;

/// A time of a peer's clock. Handshakes of a peer are only accepted in the order of their times, so that a recorded
/// one is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Stamp([u8; 12]);

impl Stamp {
    /// The time in TAI64N.
    pub(crate) fn of(time: SystemTime) -> Self {
        const UNIX_EPOCH: u64 = (1 << 62) + 10;
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let mut stamp = [0; 12];
        stamp[..8].copy_from_slice(&(UNIX_EPOCH + since.as_secs()).to_be_bytes());
        stamp[8..].copy_from_slice(&since.subsec_nanos().to_be_bytes());
        Self(stamp)
    }

    /// This time, or the first one after another, if the clock was set back.
    pub(crate) fn after(self, other: Self) -> Self {
        if self > other {
            return self;
        }
        let mut next = other;
        for octet in next.0.iter_mut().rev() {
            *octet = octet.wrapping_add(1);
            if *octet != 0 {
                break;
            }
        }
        next
    }
}

/// What both ends have after a handshake.
pub(crate) struct Agreed {
    /// The number by which the peer knows the session.
    pub(crate) remote_index: u32,
    pub(crate) sending: [u8; KEY_LENGTH],
    pub(crate) receiving: [u8; KEY_LENGTH],
}

/// A handshake that this end began.
pub(crate) struct Initiated {
    noise: Box<HandshakeState>,
    local_index: u32,
}

/// A handshake that a peer began.
pub(crate) struct Received {
    noise: Box<HandshakeState>,
    remote_index: u32,
    /// Who began it.
    pub(crate) peer: PublicKey,
    pub(crate) stamp: Stamp,
}

impl Initiated {
    /// Begins a handshake. The message lacks its last [`MACS_LENGTH`] octets.
    pub(crate) fn new(
        own: &PrivateKey,
        peer: &PublicKey,
        local_index: u32,
        stamp: Stamp,
    ) -> Result<(Self, [u8; INITIATION_LENGTH]), snow::Error> {
        let mut noise = Box::new(builder(own)?.remote_public_key(peer.as_bytes())?.build_initiator()?);
        let mut message = [0; INITIATION_LENGTH];
        message[0] = 1;
        message[4..8].copy_from_slice(&local_index.to_le_bytes());
        noise.write_message(&stamp.0, &mut message[INITIATION_NOISE])?;
        Ok((Self { noise, local_index }, message))
    }

    /// The number by which this end knows the session.
    pub(crate) fn local_index(&self) -> u32 {
        self.local_index
    }

    /// Takes the answer. One that is forged changes nothing: the true one can still come.
    pub(crate) fn finish(&mut self, response: &[u8; RESPONSE_LENGTH]) -> Result<Agreed, snow::Error> {
        self.noise.read_message(&response[RESPONSE_NOISE], &mut [])?;
        let (sending, receiving) = self.noise.dangerously_get_raw_split();
        Ok(Agreed { remote_index: u32_at(response, 4), sending, receiving })
    }
}

impl Received {
    /// Reads a handshake that begins.
    pub(crate) fn read(own: &PrivateKey, message: &[u8; INITIATION_LENGTH]) -> Result<Self, snow::Error> {
        let mut noise = Box::new(builder(own)?.build_responder()?);
        let mut stamp = Stamp::default();
        noise.read_message(&message[INITIATION_NOISE], &mut stamp.0)?;
        let peer = noise
            .get_remote_static()
            .and_then(|key| <[u8; KEY_LENGTH]>::try_from(key).ok())
            .ok_or(snow::Error::Input)?;
        Ok(Self { noise, remote_index: u32_at(message, 4), peer: PublicKey::from(peer), stamp })
    }

    /// Agrees. The message lacks its last [`MACS_LENGTH`] octets.
    pub(crate) fn respond(
        mut self,
        local_index: u32,
    ) -> Result<(Agreed, [u8; RESPONSE_LENGTH]), snow::Error> {
        let mut message = [0; RESPONSE_LENGTH];
        message[0] = 2;
        message[4..8].copy_from_slice(&local_index.to_le_bytes());
        message[8..12].copy_from_slice(&self.remote_index.to_le_bytes());
        self.noise.write_message(&[], &mut message[RESPONSE_NOISE])?;
        let (receiving, sending) = self.noise.dangerously_get_raw_split();
        Ok((Agreed { remote_index: self.remote_index, sending, receiving }, message))
    }
}

fn builder(own: &PrivateKey) -> Result<Builder<'_>, snow::Error> {
    let pattern = PATTERN.parse().map_err(|_| snow::Error::Input)?;
    Builder::new(pattern).prologue(PROLOGUE)?.psk(2, &NO_SHARED_SECRET)?.local_private_key(own.expose())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_though_the_clock_is_set_back() {
        let now = SystemTime::now();
        let (earlier, later) = (Stamp::of(now), Stamp::of(now + Duration::from_nanos(1)));
        assert_eq!(later.after(earlier), later);
        assert_eq!(earlier.after(earlier), later);
        assert!(earlier.after(later) > later);
        assert!(Stamp([0xff; 12]).after(Stamp::of(now)) > later);
    }
}
