//! Where one event of a watch ends and the next one begins: lines of JSON, or protobuf with its length in
//! four bytes before it, the highest first (`serializer/streaming`, `util/framer` of `apimachinery`).

use bytes::{Buf, Bytes, BytesMut};

use super::formats::Format;
use super::unreadable::Unreadable;

/// The most bytes of an object that are read at once, as in `client-go`. etcd takes none of more than 1.5 MiB
/// unless it is told to.
pub(super) const MOST_BYTES: usize = 16 << 20;

/// Cuts the bytes of a watch into events.
#[derive(Debug)]
pub(super) struct Frames {
    format: Format,
    buffer: BytesMut,
    /// How much of the buffer has been searched for an end of line.
    searched: usize,
}

impl Frames {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            buffer: BytesMut::new(),
            searched: 0,
        }
    }

    /// More has come.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event, if all of it has come.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Unreadable> {
        match self.format {
            Format::Protobuf => self.counted(),
            Format::Json => self.line(),
        }
    }

    fn counted(&mut self) -> Result<Option<Bytes>, Unreadable> {
        let Some(length) = self.buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = within(u64::from(u32::from_be_bytes(*length)))?;
        if self.buffer.len() - 4 < length {
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    fn line(&mut self) -> Result<Option<Bytes>, Unreadable> {
        loop {
            let found = self.buffer[self.searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            let Some(found) = found else {
                self.searched = self.buffer.len();
                within(self.searched as u64)?;
                return Ok(None);
            };
            let line = self.buffer.split_to(self.searched + found);
            self.buffer.advance(1);
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                within(line.len() as u64)?;
                return Ok(Some(line.freeze()));
            }
        }
    }
}

/// A length that is taken in at once.
pub(super) fn within(length: u64) -> Result<usize, Unreadable> {
    let most = usize::try_from(length).ok();
    most.filter(|length| *length <= MOST_BYTES)
        .ok_or(Unreadable::TooLong(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(format: Format, bytes: &[u8], piece: usize) -> Vec<Result<Vec<u8>, String>> {
        let mut frames = Frames::new(format);
        let mut found = Vec::new();
        for piece in bytes.chunks(piece) {
            frames.push(piece);
            loop {
                match frames.next() {
                    Ok(Some(frame)) => found.push(Ok(frame.to_vec())),
                    Ok(None) => break,
                    Err(error) => {
                        found.push(Err(error.to_string()));
                        return found;
                    }
                }
            }
        }
        found
    }

    #[test]
    fn events_are_the_same_wherever_pieces_end_and_half_an_event_is_none() {
        let lines = b"{\"a\":1}\n\n  \r\n{\"b\":2}\n{\"half\"".as_slice();
        let counted = b"\0\0\0\x02ab\0\0\0\0\0\0\0\x03xyz\0\0\0\x09half".as_slice();
        for piece in 1..20 {
            let found = cut(Format::Json, lines, piece);
            let expected = [b"{\"a\":1}".to_vec(), b"{\"b\":2}".to_vec()];
            assert_eq!(found, expected.map(Ok), "{piece}");
            let found = cut(Format::Protobuf, counted, piece);
            let expected = [b"ab".to_vec(), Vec::new(), b"xyz".to_vec()];
            assert_eq!(found, expected.map(Ok), "{piece}");
        }
    }

    #[test]
    fn what_would_take_too_much_memory_is_refused_before_it_does() {
        let found = cut(Format::Protobuf, b"\xff\xff\xff\xff", 4);
        assert!(matches!(found.as_slice(), [Err(error)] if error.contains("4294967295 bytes")));
        let endless = vec![b'x'; MOST_BYTES + 1];
        let found = cut(Format::Json, &endless, 1 << 16);
        assert!(matches!(found.as_slice(), [Err(_)]));
    }
}
