//! What has come of an answer and has not been read: decompressed (RFC 1952), if it came compressed.

use flate2::{Decompress, FlushDecompress, Status};

use super::unreadable::Unreadable;

/// Bytes into which there is room to decompress, at least.
const ROOM: usize = 64 << 10;
/// The window of gzip, as a power of two.
const WINDOW: u8 = 15;

/// Bytes that come at one end and are read at the other.
#[derive(Debug)]
pub(super) struct Unread {
    bytes: Vec<u8>,
    /// How many of them have been read.
    read: usize,
    zip: Option<Zip>,
}

#[derive(Debug)]
struct Zip {
    state: Decompress,
    has_ended: bool,
}

impl Unread {
    /// Of an answer that is compressed, or not.
    pub(super) fn new(zipped: bool) -> Self {
        let zip = zipped.then(|| Zip {
            state: Decompress::new_gzip(WINDOW),
            has_ended: false,
        });
        Self {
            bytes: Vec::new(),
            read: 0,
            zip,
        }
    }

    /// More has come. Compressed, it may be a thousand times as much.
    pub(super) fn push(&mut self, more: &[u8]) -> Result<(), Unreadable> {
        self.bytes.drain(..self.read);
        self.read = 0;
        match &mut self.zip {
            None => self.bytes.extend_from_slice(more),
            Some(zip) => zip.decompress(more, &mut self.bytes)?,
        }
        Ok(())
    }

    /// Whether all has come of what was compressed as a whole.
    pub(super) fn is_whole(&self) -> bool {
        self.zip.as_ref().is_none_or(|zip| zip.has_ended)
    }

    /// What has not been read.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.read..]
    }

    /// So many bytes of it have been read.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.read = (self.read + bytes).min(self.bytes.len());
    }
}

impl Zip {
    /// Straight to where it is read: it is many times as much as came.
    fn decompress(&mut self, mut from: &[u8], to: &mut Vec<u8>) -> Result<(), Unreadable> {
        while !from.is_empty() {
            if self.has_ended {
                return Err(Unreadable::Zip("it goes on after its end".to_owned()));
            }
            if to.capacity() - to.len() < ROOM {
                to.reserve(ROOM);
            }
            let before = (self.state.total_in(), to.len());
            let status = self
                .state
                .decompress_vec(from, to, FlushDecompress::None)
                .map_err(|error| Unreadable::Zip(error.to_string()))?;
            let taken = self.state.total_in() - before.0;
            if taken == 0 && to.len() == before.1 {
                return Err(Unreadable::Zip("it goes no further".to_owned()));
            }
            from = usize::try_from(taken)
                .ok()
                .and_then(|taken| from.get(taken..))
                .unwrap_or_default();
            self.has_ended = status == Status::StreamEnd;
        }
        Ok(())
    }
}
