//! What can be answered even if no more than the header of a message can be read.

use hickory_proto::op::ResponseCode as WireCode;

use super::Outcome;
use crate::metrics::{CodeLabel, KindLabel};
use crate::wire::HEADER_LENGTH;

/// A message's header as it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header([u8; HEADER_LENGTH]);

impl Header {
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        packet.first_chunk().copied().map(Self)
    }

    pub(super) fn is_response(self) -> bool {
        self.0[2] & 0x80 != 0
    }

    pub(super) fn opcode(self) -> u8 {
        self.0[2] >> 3 & 0x0f
    }

    /// An answer without any section: id, opcode and the wish for recursion come back.
    pub(super) fn reply(self, code: WireCode) -> Vec<u8> {
        let [id_high, id_low, flags, ..] = self.0;
        let mut reply = vec![0; HEADER_LENGTH];
        reply[0] = id_high;
        reply[1] = id_low;
        reply[2] = 0x80 | (flags & 0x79);
        reply[3] = code.low();
        reply
    }

    pub(super) fn failed(self, kind: KindLabel) -> Outcome {
        let message = self.reply(WireCode::ServFail);
        Outcome::Answer { message, kind, code: CodeLabel::ServFail, is_proven: false }
    }
}
