//! Types of the maps as octets.

use crate::{
    Affinity, AffinityKey, Connection, Count, Flow, Frontend, Load, MAGLEV_CHUNK, MaglevChunk, MaglevKey,
    Member, MemberState, Origin, Place, Service, Share, Slot, SlotKey, SocketFields,
};

/// A type that is a fixed number of words in the machine's byte order, without gaps.
pub trait Words: Sized {
    /// As octets, of which there are `SIZE`.
    const SIZE: usize;

    /// Writes it at the start of a buffer of at least `SIZE` octets.
    fn write(&self, to: &mut [u8]);

    /// Reads it from the start of a buffer of at least `SIZE` octets.
    fn read(from: &[u8]) -> Self;
}

impl Words for u32 {
    const SIZE: usize = 4;

    fn write(&self, to: &mut [u8]) {
        to[..4].copy_from_slice(&self.to_ne_bytes());
    }

    fn read(from: &[u8]) -> Self {
        Self::from_ne_bytes([from[0], from[1], from[2], from[3]])
    }
}

impl Words for u64 {
    const SIZE: usize = 8;

    fn write(&self, to: &mut [u8]) {
        to[..8].copy_from_slice(&self.to_ne_bytes());
    }

    fn read(from: &[u8]) -> Self {
        let [a, b, c, d, e, f, g, h] = [0, 1, 2, 3, 4, 5, 6, 7].map(|at| from[at]);
        Self::from_ne_bytes([a, b, c, d, e, f, g, h])
    }
}

impl<T: Words + Copy + Default, const N: usize> Words for [T; N] {
    const SIZE: usize = T::SIZE * N;

    fn write(&self, to: &mut [u8]) {
        for (at, each) in self.iter().enumerate() {
            each.write(&mut to[at * T::SIZE..]);
        }
    }

    fn read(from: &[u8]) -> Self {
        let mut all = [T::default(); N];
        for (at, each) in all.iter_mut().enumerate() {
            *each = T::read(&from[at * T::SIZE..]);
        }
        all
    }
}

/// Field after field, in the order of the declaration, which a test compares with the compiler's layout.
macro_rules! words {
    ($name:ident { $($field:ident: $kind:ty),+ $(,)? }) => {
        impl Words for $name {
            const SIZE: usize = 0 $(+ <$kind as Words>::SIZE)+;

            fn write(&self, to: &mut [u8]) {
                let mut at = 0;
                $(
                    self.$field.write(&mut to[at..]);
                    at += <$kind as Words>::SIZE;
                )+
                debug_assert_eq!(at, Self::SIZE);
            }

            fn read(from: &[u8]) -> Self {
                let mut at = 0;
                $(
                    let $field = <$kind as Words>::read(&from[at..]);
                    at += <$kind as Words>::SIZE;
                )+
                debug_assert_eq!(at, Self::SIZE);
                Self { $($field),+ }
            }
        }
    };
}

pub(crate) use words;

words!(Place { address: [u32; 4], port: u32 });
words!(Frontend { place: Place, protocol: u32 });
words!(Service { id: u32, generation: u32, slots: u32, algorithm: u32, affinity_seconds: u32, points: u32 });
words!(SlotKey { service: u32, generation: u32, index: u32 });
words!(Share { own: u32, alias: u32 });
words!(Slot { place: Place, counter: u32, share: Share, weight: u32 });
words!(MaglevKey { service: u32, generation: u32, chunk: u32 });
words!(MaglevChunk { pairs: [u32; (MAGLEV_CHUNK / 2) as usize] });
words!(Member { service: u32, place: Place });
words!(MemberState { counter: u32, flags: u32 });
words!(AffinityKey { service: u32, netns: [u32; 2] });
words!(Affinity { slot: Slot, used: u32 });
words!(Origin { place: Place, counter: u32, flags: u32, netns: [u32; 2] });
words!(Connection { socket: u64, endpoint: Place, origin: Origin });
words!(SocketFields {
    kernel_type: u32,
    of_call: u32,
    cookie: u32,
    flags: u32,
    linger_time: u32,
    segments_out: u32,
    segments_in: u32,
    data_segments_in: u32,
    bytes_sent: u32,
    bytes_resent: u32,
    bytes_received: u32,
    next_written: u32,
    next_sent: u32,
    next_received: u32,
    next_read: u32,
});
words!(Flow { socket: [u32; 2], place: Place });
words!(Count {
    connections: u64,
    ended: u64,
    failures: u64,
    resets: u64,
    bytes_out: u64,
    bytes_in: u64,
    packets_out: u64,
    packets_in: u64,
});
words!(Load { connections: u32 });
