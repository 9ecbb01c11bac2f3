//! What the socket's errors are to those who know backends alone.

use crate::dataplane::{ApplyError, Unavailable};
use crate::host::netlink::socket::SocketError;

impl From<SocketError> for Unavailable {
    fn from(error: SocketError) -> Self {
        Self(Box::new(error))
    }
}

impl From<SocketError> for ApplyError {
    fn from(error: SocketError) -> Self {
        Self::Unavailable(error.into())
    }
}
