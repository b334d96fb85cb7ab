//! What an event of epoll is about.

use rustix::event::epoll::EventData;

use super::slots::{GENERATION_BITS, SlotKey};

/// Whose event it is, packed into the 64 bits that epoll hands back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// There are commands.
    Wake,
    /// A client waits at a listener, or a datagram arrived there.
    Listener(SlotKey),
    /// The client's side of a connection.
    Client(SlotKey),
    /// The endpoint's side of a connection.
    Backend(SlotKey),
    /// An endpoint answers in a UDP session.
    Session(SlotKey),
}

const KIND_SHIFT: u32 = 32 + GENERATION_BITS;

impl Token {
    pub(super) fn pack(self) -> EventData {
        let (kind, key) = match self {
            Self::Wake => (0, SlotKey { index: 0, generation: 0 }),
            Self::Listener(key) => (1, key),
            Self::Client(key) => (2, key),
            Self::Backend(key) => (3, key),
            Self::Session(key) => (4, key),
        };
        EventData::new_u64((kind << KIND_SHIFT) | (u64::from(key.generation) << 32) | u64::from(key.index))
    }

    pub(super) fn unpack(data: EventData) -> Self {
        let bits = data.u64();
        let generation = (bits >> 32) as u32 & ((1 << GENERATION_BITS) - 1);
        let key = SlotKey { index: bits as u32, generation };
        match bits >> KIND_SHIFT {
            0 => Self::Wake,
            1 => Self::Listener(key),
            2 => Self::Client(key),
            3 => Self::Backend(key),
            _ => Self::Session(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_way_through_epoll() {
        let key = SlotKey { index: u32::MAX, generation: (1 << GENERATION_BITS) - 1 };
        for token in [
            Token::Wake,
            Token::Listener(key),
            Token::Client(key),
            Token::Backend(SlotKey { index: 7, generation: 0 }),
            Token::Session(key),
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
