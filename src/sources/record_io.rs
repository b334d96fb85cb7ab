//! RecordIO, the framing of Mesos' streams: a record's length in decimal, a line feed, the record.

use thiserror::Error;

/// Digits of a length at most: more than any that is accepted has.
const LENGTH_DIGITS_MAX: usize = 12;

/// Takes records out of a stream that comes in pieces.
#[derive(Debug)]
pub struct RecordReader {
    buffer: Vec<u8>,
    /// Before it, everything was taken.
    taken: usize,
    record_max: usize,
}

/// The stream is no RecordIO. What follows cannot be read either.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// There is no length where one has to be.
    #[error("expected the length of a record, found {found:?}")]
    Length {
        /// What is there instead.
        found: String,
    },
    /// The record is too long.
    #[error("a record of {length} bytes, more than the {record_max} that are accepted")]
    TooLong {
        /// Its length.
        length: usize,
        /// The longest that is accepted.
        record_max: usize,
    },
}

impl RecordReader {
    /// A reader of records of at most so many bytes.
    pub fn new(record_max: usize) -> Self {
        Self { buffer: Vec::new(), taken: 0, record_max }
    }

    /// Takes in what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record, if all of it has come.
    ///
    /// # Errors
    /// When the stream is no RecordIO, or a record is too long.
    pub fn next_record(&mut self) -> Result<Option<Vec<u8>>, RecordError> {
        let rest = &self.buffer[self.taken..];
        let head = &rest[..rest.len().min(LENGTH_DIGITS_MAX + 1)];
        let Some(digits) = head.iter().position(|byte| *byte == b'\n') else {
            return if head.len() > LENGTH_DIGITS_MAX || !head.iter().all(u8::is_ascii_digit) {
                Err(no_length(head))
            } else {
                Ok(None)
            };
        };
        let length = std::str::from_utf8(&head[..digits]).ok().filter(|text| !text.starts_with('+'));
        let length: usize =
            length.and_then(|text| text.parse().ok()).ok_or_else(|| no_length(&head[..digits]))?;
        if length > self.record_max {
            return Err(RecordError::TooLong { length, record_max: self.record_max });
        }
        let start = digits + 1;
        let Some(record) = rest.get(start..start + length) else {
            return Ok(None);
        };
        let record = record.to_vec();
        self.taken += start + length;
        Ok(Some(record))
    }
}

fn no_length(found: &[u8]) -> RecordError {
    RecordError::Length { found: String::from_utf8_lossy(found).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(reader: &mut RecordReader) -> Result<Vec<String>, RecordError> {
        let mut records = Vec::new();
        while let Some(record) = reader.next_record()? {
            records.push(String::from_utf8(record).expect("text"));
        }
        Ok(records)
    }

    #[test]
    fn records_come_out_however_the_stream_is_cut() {
        let stream = b"5\nhello0\n10\n{\"a\":\n\"b\"}";
        for cut in 0..=stream.len() {
            let mut reader = RecordReader::new(64);
            reader.push(&stream[..cut]);
            let mut records = read_all(&mut reader).expect("whole so far");
            reader.push(&stream[cut..]);
            records.extend(read_all(&mut reader).expect("whole"));
            assert_eq!(records, ["hello", "", "{\"a\":\n\"b\"}"], "cut at {cut}");
        }
        let mut reader = RecordReader::new(64);
        let mut records = Vec::new();
        for byte in stream {
            reader.push(&[*byte]);
            records.extend(read_all(&mut reader).expect("whole so far"));
        }
        assert_eq!(records.len(), 3);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for (stream, expected) in [
            (&b"<html>"[..], "expected the length"),
            (b"\nx", "expected the length"),
            (b"+5\nhello", "expected the length"),
            (b"-1\nx", "expected the length"),
            (b"1234567890123", "expected the length"),
            (b"65\n", "65 bytes, more than the 64"),
            (b"999999999999\n", "more than the 64"),
        ] {
            let mut reader = RecordReader::new(64);
            reader.push(stream);
            let error = reader.next_record().expect_err("no record").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
