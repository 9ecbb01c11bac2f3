//! The whole table of what packets experience: sources, destinations, policies, endpoints. Numbers
//! at the front of test names are those of `docs/semantics.md`.
//!
//! What is expected comes from a model of that table, written here a second time on purpose:
//! [`Mode::class`] and [`expectation`]. All Services stand at the same time, each with addresses
//! and endpoints of its own, so that one that is served by another's endpoint is noticed too.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    CLUSTER_CIDR, Failure, Host, NODE, PATIENCE, Pointsman, Seen, Servers, World, connect_within,
    without,
};
use crate::objects::{Manifests, endpoint, service, slice_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}
use Family::{V4, V6};

/// The families that the node has: one of them may be without.
fn tested() -> impl Iterator<Item = Family> {
    [(V4, "IPv4"), (V6, "IPv6")]
        .into_iter()
        .filter(|(_, name)| Some(*name) != without())
        .map(|(family, _)| family)
}

/// What tells pods from others, and what else changes the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    ClusterCidr,
    MasqueradeAll,
    NodeCidr,
    Interface,
    InterfacePrefix,
    /// Nothing tells pods from others.
    Nothing,
}

impl Mode {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::ClusterCidr => &["--cluster-cidr", CLUSTER_CIDR],
            Self::MasqueradeAll => &["--cluster-cidr", CLUSTER_CIDR, "--masquerade-all"],
            Self::NodeCidr => &["--detect-local-mode=NodeCIDR"],
            Self::Interface => &[
                "--detect-local-mode=BridgeInterface",
                "--pod-bridge-interface=pod0",
            ],
            // pod0 and pods0, but not peer0.
            Self::InterfacePrefix => &[
                "--detect-local-mode=InterfaceNamePrefix",
                "--pod-interface-name-prefix=po",
            ],
            Self::Nothing => &[],
        }
    }

    /// What a source counts as.
    fn class(self, source: Source) -> Class {
        let is_pod = match self {
            Self::ClusterCidr | Self::MasqueradeAll => matches!(
                source,
                Source::Pod | Source::PodElsewhere | Source::HostAsPod
            ),
            Self::NodeCidr => matches!(source, Source::Pod | Source::HostAsPod),
            Self::Interface | Self::InterfacePrefix => source == Source::Pod,
            Self::Nothing => false,
        };
        match source {
            _ if is_pod => Class::P,
            Source::Host | Source::HostOther | Source::HostAsPod => Class::H,
            _ => Class::X,
        }
    }
}

/// The table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    P,
    H,
    X,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A pod on this node.
    Pod,
    /// A pod of another node.
    PodElsewhere,
    /// A process on this node.
    Host,
    /// The same, from another of the node's addresses: a masqueraded connection to another node
    /// would otherwise look like one that is not.
    HostOther,
    /// The same, from an address of the node within the pods' ranges.
    HostAsPod,
    /// Outside the cluster.
    Client,
    /// Another node.
    OtherNode,
}

impl Source {
    const ALL: [Self; 7] = [
        Self::Pod,
        Self::PodElsewhere,
        Self::Host,
        Self::HostOther,
        Self::HostAsPod,
        Self::Client,
        Self::OtherNode,
    ];

    fn address(self, family: Family) -> IpAddr {
        let (v4, v6) = match self {
            Self::Pod => ("10.244.1.200", "fd00:244:0:1:1::c8"),
            Self::PodElsewhere => ("10.244.3.9", "fd00:244:0:3::9"),
            Self::Host => ("198.51.100.1", "2001:db8:51::1"),
            Self::HostOther => ("192.0.2.1", "2001:db8:2::1"),
            Self::HostAsPod => ("10.244.1.254", "fd00:244:0:1:1::fe"),
            Self::Client => ("192.0.2.2", "2001:db8:2::2"),
            Self::OtherNode => ("198.51.101.2", "2001:db8:52::2"),
        };
        let text = if family == V4 { v4 } else { v6 };
        text.parse().expect("an address")
    }

    fn host(self, sites: &Sites) -> &Host {
        match self {
            Self::Pod => &sites.world.pod,
            Self::Host | Self::HostOther | Self::HostAsPod => &sites.world.node,
            Self::Client => &sites.world.client,
            Self::PodElsewhere | Self::OtherNode => &sites.third,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    ClusterIp,
    ExternalIp,
    Vip,
    NodePort,
}

impl Destination {
    const ALL: [Self; 4] = [Self::ClusterIp, Self::ExternalIp, Self::Vip, Self::NodePort];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Cluster,
    Local,
}

impl Policy {
    const ALL: [Self; 2] = [Self::Cluster, Self::Local];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Ready,
    Terminating,
    /// Serving, but neither ready nor terminating: never used.
    Unready,
}

/// The endpoints that a Service has: one on this node, one elsewhere, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Endpoints {
    here: Option<Condition>,
    elsewhere: Option<Condition>,
}

impl Endpoints {
    const ALL: [Self; 8] = {
        use Condition::{Ready, Terminating, Unready};
        const fn of(here: Option<Condition>, elsewhere: Option<Condition>) -> Endpoints {
            Endpoints { here, elsewhere }
        }
        [
            of(Some(Ready), Some(Ready)),
            of(None, Some(Ready)),
            of(Some(Terminating), Some(Ready)),
            of(Some(Unready), Some(Ready)),
            of(Some(Terminating), Some(Terminating)),
            of(None, Some(Terminating)),
            of(Some(Unready), Some(Unready)),
            of(None, None),
        ]
    };

    fn has(self, place: Place, condition: Condition) -> bool {
        let found = match place {
            Place::Here => self.here,
            Place::Elsewhere => self.elsewhere,
        };
        found == Some(condition)
    }

    /// The places, of those given, where connections may go: ready endpoints, or if there are
    /// none, terminating ones.
    fn usable(self, among: &[Place]) -> Vec<Place> {
        [Condition::Ready, Condition::Terminating]
            .into_iter()
            .map(|condition| -> Vec<Place> {
                let places = among.iter().copied();
                places.filter(|place| self.has(*place, condition)).collect()
            })
            .find(|places| !places.is_empty())
            .unwrap_or_default()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Here,
    Elsewhere,
}

impl Place {
    const ALL: [Self; 2] = [Self::Here, Self::Elsewhere];

    /// The node's address that a masqueraded connection to this place comes from.
    fn masqueraded(self, family: Family) -> IpAddr {
        match self {
            Self::Here => Source::HostOther.address(family),
            Self::Elsewhere => Source::Host.address(family),
        }
    }
}

/// A Service of a pair of policies and a state of its endpoints.
#[derive(Debug, Clone, Copy)]
struct Subject {
    number: u16,
    internal: Policy,
    external: Policy,
    endpoints: Endpoints,
}

impl Subject {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for internal in Policy::ALL {
            for external in Policy::ALL {
                for endpoints in Endpoints::ALL {
                    all.push(Self {
                        number: u16::try_from(all.len()).expect("few") + 1,
                        internal,
                        external,
                        endpoints,
                    });
                }
            }
        }
        all
    }

    fn address(&self, destination: Destination, family: Family) -> String {
        let n = self.number;
        match (destination, family) {
            (Destination::ClusterIp, V4) => format!("10.96.1.{n}"),
            (Destination::ClusterIp, V6) => format!("fd00:96::1{n:02x}"),
            (Destination::ExternalIp, V4) => format!("203.0.113.{n}"),
            (Destination::ExternalIp, V6) => format!("2001:db8:113::1{n:02x}"),
            (Destination::Vip, V4) => format!("203.0.113.{}", n + 100),
            (Destination::Vip, V6) => format!("2001:db8:113::2{n:02x}"),
            (Destination::NodePort, V4) => "192.0.2.1".to_owned(),
            (Destination::NodePort, V6) => "2001:db8:2::1".to_owned(),
        }
    }

    fn target(&self, destination: Destination, family: Family) -> SocketAddr {
        let address = self.address(destination, family);
        let port = match destination {
            Destination::NodePort => self.node_port(),
            _ => 80,
        };
        SocketAddr::new(address.parse().expect("an address"), port)
    }

    const fn node_port(&self) -> u16 {
        30100 + self.number
    }

    fn endpoint(&self, place: Place, family: Family) -> String {
        let n = self.number;
        match (place, family) {
            (Place::Here, V4) => format!("10.244.1.{}", n + 20),
            (Place::Here, V6) => format!("fd00:244:0:1::{:x}", n + 20),
            (Place::Elsewhere, V4) => format!("10.244.2.{}", n + 20),
            (Place::Elsewhere, V6) => format!("fd00:244:0:2::{:x}", n + 20),
        }
    }

    fn objects(&self) -> Vec<Value> {
        let name = format!("s{}", self.number);
        let both = |destination| [V4, V6].map(|family| self.address(destination, family));
        fn texts(addresses: &[String; 2]) -> [&str; 2] {
            [&addresses[0], &addresses[1]]
        }
        let service = service(&name, &texts(&both(Destination::ClusterIp)))
            .node_port(self.node_port())
            .vips(&texts(&both(Destination::Vip)))
            .external_ips(&texts(&both(Destination::ExternalIp)))
            .set(
                "/spec/internalTrafficPolicy",
                json!(format!("{:?}", self.internal)),
            )
            .set(
                "/spec/externalTrafficPolicy",
                json!(format!("{:?}", self.external)),
            );
        let mut objects = vec![service.0];
        for family in tested() {
            let endpoints: Vec<Value> = Place::ALL
                .into_iter()
                .filter_map(|place| self.endpoint_object(place, family))
                .collect();
            if !endpoints.is_empty() {
                objects.push(slice_of(&name, "TCP", endpoints));
            }
        }
        objects
    }

    fn endpoint_object(&self, place: Place, family: Family) -> Option<Value> {
        let (condition, node) = match place {
            Place::Here => (self.endpoints.here?, NODE),
            Place::Elsewhere => (self.endpoints.elsewhere?, "node-2"),
        };
        let mut object = endpoint(&self.endpoint(place, family));
        object["nodeName"] = json!(node);
        object["conditions"] = json!({
            "ready": condition == Condition::Ready,
            "serving": true,
            "terminating": condition == Condition::Terminating,
        });
        Some(object)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoints { here, elsewhere } = self.endpoints;
        write!(
            f,
            "iTP {:?}, eTP {:?}, endpoint here {here:?}, elsewhere {elsewhere:?}",
            self.internal, self.external
        )
    }
}

/// What becomes of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// Each of these is reached, seeing this source, and nothing else is.
    Served(BTreeSet<(SocketAddr, IpAddr)>),
    Refused,
    Dropped,
    /// Not what anyone expects.
    Other(String),
}

/// The table.
fn expectation(
    mode: Mode,
    source: Source,
    destination: Destination,
    subject: &Subject,
    family: Family,
) -> Outcome {
    let class = mode.class(source);
    let endpoints = subject.endpoints;
    let cluster = endpoints.usable(&Place::ALL);
    let local = endpoints.usable(&[Place::Here]);
    if cluster.is_empty() && local.is_empty() {
        return Outcome::Refused;
    }
    let is_internal = destination == Destination::ClusterIp;
    let (places, masqueraded) = match (is_internal, subject.internal, subject.external, class) {
        (true, Policy::Cluster, _, _) => (cluster, class != Class::P),
        (true, Policy::Local, _, _) => (local, class != Class::P),
        (false, _, Policy::Cluster, _) => (cluster, true),
        (false, _, Policy::Local, Class::P) => (cluster, false),
        (false, _, Policy::Local, Class::H) => (cluster, true),
        (false, _, Policy::Local, Class::X) => (local, false),
    };
    let masqueraded = match mode {
        Mode::MasqueradeAll if is_internal => true,
        Mode::Nothing if is_internal => false,
        _ => masqueraded,
    };
    if places.is_empty() {
        return Outcome::Dropped;
    }
    let seen = places.into_iter().map(|place| {
        let endpoint = subject.endpoint(place, family).parse().expect("an address");
        let source = if masqueraded {
            place.masqueraded(family)
        } else {
            source.address(family)
        };
        (SocketAddr::new(endpoint, 8080), source)
    });
    Outcome::Served(seen.collect())
}

/// Connects until everything expected has been seen, and often enough to see what else there is.
fn observe(source: IpAddr, target: SocketAddr, expected: &Outcome) -> Outcome {
    const ENOUGH: usize = 8;
    const MANY: usize = 60;
    // An ICMPv6 refusal comes with the second SYN, after a second.
    let patience = match (expected, target.is_ipv4()) {
        (Outcome::Dropped, true) => Duration::from_millis(400),
        (Outcome::Dropped, false) => Duration::from_millis(1300),
        _ => PATIENCE,
    };
    let mut reached = BTreeSet::new();
    for turn in 1..=MANY {
        match connect_within(Some(source), target, patience) {
            Ok(Seen { endpoint, source }) => reached.insert((endpoint, source)),
            Err(Failure::Refused) => return Outcome::Refused,
            Err(Failure::TimedOut) => return Outcome::Dropped,
            Err(failure) => return Outcome::Other(format!("{failure:?}")),
        };
        let so_far = Outcome::Served(reached.clone());
        if turn >= ENOUGH && so_far == *expected {
            return so_far;
        }
    }
    Outcome::Served(reached)
}

/// The world, with one more node: a connection from the one where the other endpoint is would
/// come back to where it came from, and not be answered unless masqueraded.
struct Sites {
    world: World,
    third: Host,
}

impl Sites {
    fn new() -> Self {
        let world = World::new();
        let third = Host::new();
        world.node.link("third0", &third, "eth0");
        // The addresses within the pods' ranges are not to be chosen unless asked for.
        world.node.sh("ip addr add 198.51.101.1/24 dev third0
             ip addr add 2001:db8:52::1/64 dev third0 nodad
             ip route add 10.244.3.0/24 via 198.51.101.2
             ip route add fd00:244:0:3::/64 via 2001:db8:52::2
             ip addr add 10.244.1.254/32 dev client0
             ip addr add fd00:244:0:1:1::fe/128 dev client0 nodad preferred_lft 0");
        third.sh("ip addr add 198.51.101.2/24 dev eth0
             ip addr add 2001:db8:52::2/64 dev eth0 nodad
             ip route add local 10.244.3.0/24 dev lo
             ip -6 route add local fd00:244:0:3::/64 dev lo
             ip route add default via 198.51.101.1
             ip route add default via 2001:db8:52::1");
        world.peer.sh("ip route add 198.51.101.0/24 via 198.51.100.1
             ip route add 10.244.3.0/24 via 198.51.100.1
             ip route add 2001:db8:52::/64 via 2001:db8:51::1
             ip route add fd00:244:0:3::/64 via 2001:db8:51::1");
        Self { world, third }
    }
}

/// Whether what is said of a connection is what becomes of it.
fn agrees(said: &Value, expected: &Outcome, from: IpAddr, class: Class) -> bool {
    let route = &said["answer"]["routes"][0];
    let outcome = route["outcome"].as_str().unwrap_or_default();
    let sentence = route["sentence"].as_str().unwrap_or_default();
    let Outcome::Served(seen) = expected else {
        let words = match expected {
            Outcome::Refused => "refused",
            _ => "dropped",
        };
        return outcome == words && sentence.starts_with(words);
    };
    let endpoints = route["endpoints"].as_array().into_iter().flatten();
    let used: BTreeSet<SocketAddr> = endpoints
        .filter(|endpoint| endpoint["used"] == json!(true))
        .filter_map(|endpoint| endpoint["endpoint"].as_str()?.parse().ok())
        .collect();
    let reached: BTreeSet<SocketAddr> = seen.iter().map(|(endpoint, _)| *endpoint).collect();
    let is_hidden = seen.iter().any(|(_, source)| *source != from);
    let masqueraded = route["masqueraded"] == json!(true);
    // Of the node's own addresses, one may be what it is masqueraded to.
    let is_so = masqueraded == is_hidden || (class == Class::H && masqueraded);
    outcome == "connects"
        && used == reached
        && is_so
        && sentence.contains("masqueraded") == masqueraded
}

/// Walks the whole table in one mode.
fn walk(mode: Mode) {
    walk_where(mode, |_, _| true);
}

/// Walks a part of the table in one mode.
fn walk_where(mode: Mode, part: impl Fn(&Subject, Destination) -> bool) {
    let sites = Sites::new();
    let _servers = [&sites.world.pods, &sites.world.peer].map(|host| Servers::tcp(host, &[8080]));
    let subjects = Subject::all();
    let manifests = Manifests::new(subjects.iter().flat_map(Subject::objects).collect());
    let arguments = [&["--manifests", manifests.path()], mode.arguments()].concat();
    let process = Pointsman::start_without_cidr(&sites.world.node, &arguments);

    let started = Instant::now();
    let mut walked = 0;
    let mut wrong = Vec::new();
    for source in Source::ALL {
        // All attempts of a source at once: most of their time is waiting for what never comes.
        let mut attempts = Vec::new();
        for subject in &subjects {
            for destination in Destination::ALL {
                if !part(subject, destination) {
                    continue;
                }
                for family in tested() {
                    let expected = expectation(mode, source, destination, subject, family);
                    let (from, target) =
                        (source.address(family), subject.target(destination, family));
                    let goal = expected.clone();
                    let attempt = source
                        .host(&sites)
                        .spawn(move || observe(from, target, &goal));
                    let name =
                        format!("{family:?} {source:?} to {destination:?} {target}, {subject}");
                    attempts.push((name, expected, attempt, (from, target)));
                }
            }
        }
        for (number, (name, expected, attempt, (from, target))) in attempts.into_iter().enumerate()
        {
            let observed = attempt.join().expect("an attempt");
            walked += 1;
            if observed != expected {
                wrong.push(format!("{name}\n  want {expected:?}\n  got  {observed:?}"));
            }
            // What a source counts as shows in a few of them; each question has the kernel walk through all connections.
            if mode != Mode::ClusterCidr && number % 5 != 0 {
                continue;
            }
            let said = process.ask(
                "/v1/explain",
                &[("from", &from.to_string()), ("to", &target.to_string())],
            );
            if !agrees(&said, &expected, from, mode.class(source)) {
                wrong.push(format!("{name}\n  want {expected:?}\n  said {said}"));
            }
        }
    }
    eprintln!("{mode:?}: {walked} cases in {:?}", started.elapsed());
    assert!(walked > 0);
    assert!(
        wrong.is_empty(),
        "{} of {walked} cases are wrong\n{}\n{}",
        wrong.len(),
        wrong.join("\n"),
        process.log(),
    );
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e1_without_an_endpoint_to_use_anywhere_every_source_is_refused_everywhere() {
    walk_where(Mode::ClusterCidr, |subject, _| {
        subject.endpoints.usable(&Place::ALL).is_empty()
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e2_without_an_endpoint_here_a_local_policy_drops_all_to_a_cluster_ip_and_outsiders_elsewhere() {
    walk_where(Mode::ClusterCidr, |subject, destination| {
        let policy = match destination {
            Destination::ClusterIp => subject.internal,
            _ => subject.external,
        };
        let is_usable = |places| !subject.endpoints.usable(places).is_empty();
        policy == Policy::Local && is_usable(&Place::ALL) && !is_usable(&[Place::Here])
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e3_the_internal_policy_is_for_cluster_ips_alone_and_the_external_one_for_all_others() {
    walk_where(Mode::ClusterCidr, |subject, _| {
        let is_everywhere = subject.endpoints.usable(&Place::ALL).len() == 2;
        subject.internal != subject.external && is_everywhere
    });
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e6_traffic_policies_hold_with_pods_known_by_the_cluster_cidr() {
    walk(Mode::ClusterCidr);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e4_masquerade_all_hides_every_client_of_a_cluster_ip_and_changes_nothing_else() {
    walk(Mode::MasqueradeAll);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e6_traffic_policies_hold_with_pods_known_by_the_nodes_cidrs() {
    walk(Mode::NodeCidr);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e6_traffic_policies_hold_with_pods_known_by_their_interface() {
    walk(Mode::Interface);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e6_traffic_policies_hold_with_pods_known_by_an_interface_prefix() {
    walk(Mode::InterfacePrefix);
}

#[test]
#[cfg_attr(no_namespaces, ignore = "needs root, or user namespaces")]
fn e5_without_a_way_to_tell_pods_nobody_is_masqueraded_on_a_cluster_ip() {
    walk(Mode::Nothing);
}
