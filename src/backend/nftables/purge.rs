//! Looking through the maps of remembered clients for those to forget, off the sync loop.
//!
//! The kernel lists a hash map in quadratic time: half a million clients take most of a minute.
//! That must not keep an endpoint's removal waiting, so a thread lists, with a socket of its
//! own, and the backend deletes what it finds.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use super::affinity::Search;
use super::clients::ClientMap;
use super::netlink::dump;
use super::netlink::elements::Element;
use crate::ir::Destination;
use crate::model::{Endpoint, Family};
use crate::netlink::socket::{Socket, SocketError};

/// A client to forget.
#[derive(Debug)]
pub(super) struct Doomed {
    pub(super) family: Family,
    pub(super) map: ClientMap,
    /// What it connected to.
    pub(super) destination: Destination,
    /// Where it went.
    pub(super) endpoint: Endpoint,
    /// The element's key, encoded.
    pub(super) key: Vec<u8>,
}

/// A search under way.
pub(super) struct Purge {
    pub(super) search: Arc<Search>,
    results: Receiver<Result<Vec<Doomed>, SocketError>>,
}

impl Purge {
    /// Starts to look through these maps.
    pub(super) fn start(
        maps: Vec<(Family, ClientMap)>,
        search: Arc<Search>,
    ) -> std::io::Result<Self> {
        let (tell, results) = channel();
        let wanted = Arc::clone(&search);
        std::thread::Builder::new()
            .name("affinity".to_owned())
            .spawn(move || {
                // Nobody may listen any more.
                let _ = tell.send(look_through(&maps, &wanted));
            })?;
        Ok(Self { search, results })
    }

    /// What was found, if the search is over.
    pub(super) fn found(&self) -> Option<Result<Vec<Doomed>, SocketError>> {
        match self.results.try_recv() {
            Ok(found) => Some(found),
            Err(TryRecvError::Empty) => None,
            // The thread panicked: as if it had found nothing to do, and the next round looks
            // again.
            Err(TryRecvError::Disconnected) => Some(Ok(Vec::new())),
        }
    }
}

fn look_through(maps: &[(Family, ClientMap)], search: &Search) -> Result<Vec<Doomed>, SocketError> {
    let mut socket = Socket::open()?;
    let mut doomed = Vec::new();
    for (family, map) in maps.iter().copied() {
        let pick = |destination, endpoint, element: &Element<'_>| {
            search
                .is_gone(map.timeout_seconds, destination, endpoint)
                .then(|| {
                    let mut key = Vec::new();
                    element.put_key(&mut key);
                    Doomed {
                        family,
                        map,
                        destination,
                        endpoint,
                        key,
                    }
                })
        };
        doomed.extend(dump::remembered(&mut socket, family, map, pick)?);
    }
    Ok(doomed)
}
