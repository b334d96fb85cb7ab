//! Messages by which two ends find out how large a packet may be.
//!
//! They travel as packets of the tunnel, encrypted and proven. Their first octet says that they are of no version of
//! IP, so that implementations that do not know them drop them like any broken packet. Such a peer never answers.

/// Octets at the beginning of all of them: not IP, and what they are.
const MARK: [u8; 4] = [0, b'm', b'n', b'p'];

/// Octets of one; a question is longer by zeros, to the length that is probed.
pub(crate) const PROBING_LENGTH: usize = 12;

const QUESTION: u8 = 1;
const ANSWER: u8 = 2;

/// A question about a length, or the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probing {
    pub(crate) is_answer: bool,
    pub(crate) number: u32,
    /// Octets of the question's packet, as it was sent or as it came.
    pub(crate) length: u16,
}

impl Probing {
    pub(crate) fn read(packet: &[u8]) -> Option<Self> {
        let head = packet.first_chunk::<PROBING_LENGTH>()?;
        if head[..4] != MARK {
            return None;
        }
        let is_answer = match head[4] {
            QUESTION => false,
            ANSWER => true,
            _ => return None,
        };
        let length = u16::from_le_bytes([head[6], head[7]]);
        // A question is as long as it says, or it tells nothing.
        if !is_answer && usize::from(length) != packet.len() {
            return None;
        }
        Some(Self { is_answer, number: u32::from_le_bytes([head[8], head[9], head[10], head[11]]), length })
    }

    pub(crate) fn write(self, out: &mut [u8]) {
        out[..4].copy_from_slice(&MARK);
        out[4] = if self.is_answer { ANSWER } else { QUESTION };
        out[5] = 0;
        out[6..8].copy_from_slice(&self.length.to_le_bytes());
        out[8..PROBING_LENGTH].copy_from_slice(&self.number.to_le_bytes());
        out[PROBING_LENGTH..].fill(0);
    }

    /// Octets of its packet.
    pub(crate) fn packet_length(self) -> usize {
        if self.is_answer { PROBING_LENGTH } else { usize::from(self.length).max(PROBING_LENGTH) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_that_was_shortened_is_none() {
        let question = Probing { is_answer: false, number: 7, length: 1200 };
        let mut packet = vec![0xff; question.packet_length()];
        question.write(&mut packet);
        assert_eq!(Probing::read(&packet), Some(question));
        for length in 0..packet.len() {
            assert_eq!(Probing::read(&packet[..length]), None);
        }
        let answer = Probing { is_answer: true, ..question };
        let mut packet = vec![0; answer.packet_length()];
        answer.write(&mut packet);
        assert_eq!(Probing::read(&packet), Some(answer));
    }
}
