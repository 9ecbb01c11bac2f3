//! How it is said.

use std::net::IpAddr;

use super::asked::{From, Route};
use crate::core::ir::Draw;
use crate::core::model::Name;
use crate::core::select::{Hints, NotFollowed, Standing};

/// How many names are given to someone who has asked for one that there is not.
pub(super) const NEAREST: usize = 5;

/// The first line.
pub(super) fn headline(from: &From, route: &Route) -> String {
    let who = match from {
        From::Anyone => format!("from {}", route.source),
        From::Host => "from this node".to_owned(),
        From::Address(address) => format!("from {address} ({})", route.source),
    };
    let at = format!("{} ({})", route.destination, route.kind);
    format!("{} at {at}, {who}: {}", route.service, route.sentence)
}

/// Several things: "a", "a and b", "a, b and c".
pub(super) fn list(things: &[String]) -> String {
    match things {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// So many of something.
pub(super) fn count(number: usize, one: &str, many: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{number} {many}")
    }
}

/// What decides which one it is.
pub(super) const fn drawn(draw: Draw) -> &'static str {
    match draw {
        Draw::Random => "each as likely",
        Draw::Weighted => "each as likely as it has places",
        Draw::Turn => "one after the other",
        Draw::WeightedTurn => "one after the other, as often as each has places",
        Draw::Source => "the same for all connections of one source address",
        Draw::Destination => "the same for everyone who connects to this address",
    }
}

/// What an endpoint is.
pub(super) fn standing(standing: &Standing, list: &str, zone: Option<&Name>) -> String {
    match standing {
        Standing::Used => "takes connections".to_owned(),
        Standing::Fallback => {
            "takes connections although it is terminating: none is ready".to_owned()
        }
        Standing::Spare => "is terminating, and serves only where none is ready".to_owned(),
        Standing::Gone => "is terminating and serves no longer".to_owned(),
        Standing::NotReady => "is not ready".to_owned(),
        Standing::Drained => "has weight 0: it keeps the connections that it has".to_owned(),
        Standing::Ejected => {
            "does not answer this node while others do: it is passed over until it does".to_owned()
        }
        Standing::OtherNode => format!("is on another node, and {list} is Local"),
        Standing::HintedToOtherNode => "is hinted to other nodes, and one is to this".to_owned(),
        Standing::HintedToOtherZone(zones) => {
            let zones: Vec<String> = zones.iter().map(ToString::to_string).collect();
            let zone = zone.map_or("none", |zone| zone);
            format!(
                "is hinted to zone {}, and this node's is {zone}",
                list_or(&zones)
            )
        }
    }
}

fn list_or(things: &[String]) -> String {
    if things.is_empty() {
        "none".to_owned()
    } else {
        things.join(", ")
    }
}

/// What hints come to.
pub(super) fn hints(hints: &Hints) -> String {
    match hints {
        Hints::None => "there are none".to_owned(),
        Hints::ThisNode => "those to this node are followed".to_owned(),
        Hints::Zone(zone) => format!("those to zone {zone} are followed"),
        Hints::Ignored(why) => format!("not followed, because {}", not_followed(why)),
    }
}

/// Why hints are not followed.
pub(super) fn not_followed(why: &NotFollowed) -> String {
    match why {
        NotFollowed::Missing { without, ready } => {
            format!("{without} of {ready} ready endpoints have none")
        }
        NotFollowed::NoZone => {
            "this node has no zone (label topology.kubernetes.io/zone)".to_owned()
        }
        NotFollowed::NotHere(zone) => format!("no ready endpoint is hinted to zone {zone}"),
    }
}

/// A time that people think in.
pub(super) fn seconds(seconds: u32) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

/// An address and a port.
pub(super) fn at(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}
