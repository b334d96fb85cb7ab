//! ChaCha20-Poly1305 of the packets of a session.
//!
//! A processor with AVX-512 does eight messages at a time, [`wide`]; that takes half of the time that `ring` needs, of
//! which the tunnel spends most. Messages that have no neighbours of their length, and other processors, use `ring`.

#[cfg(target_arch = "x86_64")]
mod chacha;
#[cfg(target_arch = "x86_64")]
mod poly;
#[cfg(target_arch = "x86_64")]
mod wide;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use crate::key::KEY_LENGTH;
use crate::message::{DATA_HEADER_LENGTH, DATA_OVERHEAD, TAG_LENGTH, u64_at};

/// Most messages that are done at a time.
pub(crate) const TOGETHER_MAX: usize = 8;

/// Fewer are faster one by one.
#[cfg(target_arch = "x86_64")]
const TOGETHER_MIN: usize = 4;

/// A key for messages in one direction.
pub(crate) struct Cipher {
    alone: LessSafeKey,
    /// The key's words, if the processor can do several messages at a time.
    #[cfg(target_arch = "x86_64")]
    words: Option<[u32; 8]>,
}

impl Cipher {
    pub(crate) fn new(key: &[u8; KEY_LENGTH]) -> Self {
        let alone =
            UnboundKey::new(&CHACHA20_POLY1305, key).expect("BUG: keys of sessions have the cipher's length");
        Self {
            alone: LessSafeKey::new(alone),
            #[cfg(target_arch = "x86_64")]
            words: is_wide().then(|| words_of(key)),
        }
    }

    /// Encrypts up to [`TOGETHER_MAX`] messages of `length` octets that stand one after the other, each a header, a
    /// packet and room for the tag.
    pub(crate) fn seal(&self, messages: &mut [u8], length: usize) {
        debug_assert!(messages.len() <= TOGETHER_MAX * length && messages.len().is_multiple_of(length));
        #[cfg(target_arch = "x86_64")]
        if let Some(words) = self.words.as_ref().filter(|_| messages.len() >= TOGETHER_MIN * length) {
            let tags = together(wide::Direction::Sealing, words, messages, length);
            for (message, tag) in messages.chunks_exact_mut(length).zip(tags) {
                message[length - TAG_LENGTH..].copy_from_slice(&tag.to_le_bytes());
            }
            return;
        }
        for message in messages.chunks_exact_mut(length) {
            let number = u64_at(message, 8);
            let (packet, tag_room) = message[DATA_HEADER_LENGTH..].split_at_mut(length - DATA_OVERHEAD);
            let tag = self
                .alone
                .seal_in_place_separate_tag(nonce(number), Aad::empty(), packet)
                .expect("BUG: a datagram is shorter than what the cipher takes");
            tag_room.copy_from_slice(tag.as_ref());
        }
    }

    /// Decrypts up to [`TOGETHER_MAX`] messages of `length` octets that stand one after the other. Says of each
    /// whether it is what was encrypted; the packet of one that is not is of no use.
    pub(crate) fn open(&self, messages: &mut [u8], length: usize) -> [bool; TOGETHER_MAX] {
        debug_assert!(messages.len() <= TOGETHER_MAX * length && messages.len().is_multiple_of(length));
        let mut are_right = [false; TOGETHER_MAX];
        #[cfg(target_arch = "x86_64")]
        if let Some(words) = self.words.as_ref().filter(|_| messages.len() >= TOGETHER_MIN * length) {
            let tags = together(wide::Direction::Opening, words, messages, length);
            for ((is_right, message), tag) in
                are_right.iter_mut().zip(messages.chunks_exact(length)).zip(tags)
            {
                let sent = message.last_chunk().map_or(0, |octets| u128::from_le_bytes(*octets));
                // One comparison of all bits: how long it takes says nothing of which are wrong.
                *is_right = sent ^ tag == 0;
            }
            return are_right;
        }
        for (is_right, message) in are_right.iter_mut().zip(messages.chunks_exact_mut(length)) {
            let number = nonce(u64_at(message, 8));
            *is_right =
                self.alone.open_in_place(number, Aad::empty(), &mut message[DATA_HEADER_LENGTH..]).is_ok();
        }
        are_right
    }
}

#[inline]
fn nonce(number: u64) -> Nonce {
    let mut octets = [0; 12];
    octets[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(octets)
}

/// Whether the processor has all that [`wide::crypt`] uses.
#[cfg(target_arch = "x86_64")]
fn is_wide() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512ifma")
        && is_x86_feature_detected!("avx512vbmi2")
}

#[cfg(target_arch = "x86_64")]
fn words_of(key: &[u8; KEY_LENGTH]) -> [u32; 8] {
    std::array::from_fn(|word| key[4 * word..].first_chunk().map_or(0, |octets| u32::from_le_bytes(*octets)))
}

#[cfg(target_arch = "x86_64")]
fn together(
    direction: wide::Direction,
    words: &[u32; 8],
    messages: &mut [u8],
    length: usize,
) -> [u128; TOGETHER_MAX] {
    let mut numbers = [0; TOGETHER_MAX];
    let mut packets: [&mut [u8]; TOGETHER_MAX] = std::array::from_fn(|_| Default::default());
    let mut count = 0;
    for message in messages.chunks_exact_mut(length).take(TOGETHER_MAX) {
        numbers[count] = u64_at(message, 8);
        packets[count] = &mut message[DATA_HEADER_LENGTH..];
        count += 1;
    }
    // SAFETY: there are words only if the processor has these instructions.
    unsafe { wide::crypt(direction, words, &numbers, &mut packets[..count], length - DATA_OVERHEAD) }
}

const _: () = assert!(TAG_LENGTH == size_of::<u128>() && DATA_HEADER_LENGTH == 16);
#[cfg(target_arch = "x86_64")]
const _: () = assert!(TOGETHER_MAX == wide::LANES);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::write_data_header;

    /// Messages of one packet's length, not encrypted yet.
    fn messages(packets: &[Vec<u8>], numbers: &[u64]) -> Vec<u8> {
        let mut messages = Vec::new();
        for (packet, number) in packets.iter().zip(numbers) {
            let mut header = [0; DATA_HEADER_LENGTH];
            write_data_header(&mut header, 7, *number);
            messages.extend(header);
            messages.extend(packet);
            messages.extend([0; TAG_LENGTH]);
        }
        messages
    }

    /// A cipher that does one message after the other.
    fn alone(key: &[u8; KEY_LENGTH]) -> Cipher {
        Cipher {
            #[cfg(target_arch = "x86_64")]
            words: None,
            ..Cipher::new(key)
        }
    }

    prop_compose! {
        /// Packets of one length, with what brings sums to their limits among them, and their numbers.
        fn packets()(length in prop_oneof![0_usize..200, 1100_usize..1600], count in 1_usize..=TOGETHER_MAX)(
            packets in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), length),
                    Just(vec![0xff; length]),
                    Just(vec![0; length]),
                ],
                count,
            ),
            numbers in proptest::collection::vec(any::<u64>(), count),
        ) -> (Vec<Vec<u8>>, Vec<u64>) {
            (packets, numbers)
        }
    }

    proptest! {
        #[test]
        fn together_is_what_alone_is((packets, numbers) in packets(), key in any::<[u8; KEY_LENGTH]>()) {
            let length = packets[0].len() + DATA_OVERHEAD;
            let plain = messages(&packets, &numbers);
            let [mut one, mut other] = [plain.clone(), plain.clone()];
            Cipher::new(&key).seal(&mut one, length);
            alone(&key).seal(&mut other, length);
            prop_assert_eq!(&one, &other);

            let are_right = Cipher::new(&key).open(&mut one, length);
            for (place, message) in one.chunks_exact(length).enumerate() {
                prop_assert!(are_right[place]);
                prop_assert_eq!(&message[DATA_HEADER_LENGTH..length - TAG_LENGTH], &packets[place]);
            }
        }

        #[test]
        fn what_was_changed_is_noticed_and_nothing_else(
            (packets, numbers) in packets(),
            key in any::<[u8; KEY_LENGTH]>(),
            (at, bit) in (any::<prop::sample::Index>(), 0..8),
        ) {
            let length = packets[0].len() + DATA_OVERHEAD;
            let mut sealed = messages(&packets, &numbers);
            Cipher::new(&key).seal(&mut sealed, length);
            let at = at.index(sealed.len());
            sealed[at] ^= 1_u8 << bit;
            let is_read = at % length >= 8;
            let are_right = Cipher::new(&key).open(&mut sealed, length);
            for (place, is_right) in are_right.into_iter().enumerate().take(packets.len()) {
                prop_assert_eq!(is_right, place != at / length || !is_read, "message {}", place);
            }
        }
    }

    #[test]
    fn it_is_that_of_the_standard() {
        // RFC 8439, 2.4.2: the nonce begins with zeros, as all do here.
        let key = std::array::from_fn(|octet| octet as u8);
        let plain =
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
            sunscreen would be it.";
        let sealed = "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b\
            f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8\
            07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736\
            5af90bbf74a35be6b40b8eedf2785e42874d";
        for count in [1, TOGETHER_MAX] {
            let mut messages = messages(&vec![plain.to_vec(); count], &vec![0x4a00_0000; count]);
            let length = plain.len() + DATA_OVERHEAD;
            Cipher::new(&key).seal(&mut messages, length);
            for message in messages.chunks_exact(length) {
                let octets = &message[DATA_HEADER_LENGTH..length - TAG_LENGTH];
                let digits: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
                assert_eq!(digits, sealed);
            }
        }
    }

    #[test]
    fn messages_of_every_length_are_done_to_their_last_octet() {
        for length in (0..300).chain([1380, 1392, 1420, 8972, 65_000]) {
            let packets: Vec<Vec<u8>> =
                (0..TOGETHER_MAX).map(|number| vec![number as u8 ^ 0xff; length]).collect();
            let numbers: Vec<u64> = (0..TOGETHER_MAX as u64).map(|number| u64::MAX - number).collect();
            let mut one = messages(&packets, &numbers);
            let mut other = one.clone();
            Cipher::new(&[length as u8; KEY_LENGTH]).seal(&mut one, length + DATA_OVERHEAD);
            alone(&[length as u8; KEY_LENGTH]).seal(&mut other, length + DATA_OVERHEAD);
            assert_eq!(one, other, "{length} octets");
        }
    }
}
