//! The program and its data in nft syntax: what `--dry-run` prints and `nft -f` loads.
//!
//! Only printing lives here; what is printed is decided in `program` and `sets`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::affinity::Affinity;
use super::lanes::Lanes;
use super::program::choice::{self, REMEMBER, Verdict};
use super::program::element::Element;
use super::program::lots::Lot;
use super::program::numbers::{self, ADDRESS_SEED, Printed};
use super::program::sets::{AFFINITY_SIZE, Data, Field, SETS, SetId};
use super::program::sources::{self, CHECK_SOURCE};
use super::program::statement::{Base, Chain, Hook, Load, Priority, Statement};
use super::program::{Program, TABLE};
use crate::core::ir::{Delta, Destination, Entry, Host, Operation, Shared};
use crate::core::model::{Endpoint, Family, Owner};
use crate::dataplane::Options;

/// The whole ruleset for these entries, replacing whatever was there, in a stable order.
#[must_use]
pub fn render(config: &Options, entries: &[Entry]) -> String {
    let add = entries.iter().cloned().map(|entry| Operation {
        owner: Owner::Cluster,
        entry,
    });
    let delta = Delta {
        remove: Vec::new(),
        add: add.collect(),
        ..Delta::default()
    };
    let mut out = String::new();
    for family in &config.families {
        render_table(&mut out, config, *family, &delta);
    }
    out
}

const fn table_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn line(out: &mut String, depth: usize, text: std::fmt::Arguments<'_>) {
    for _ in 0..depth {
        out.push('\t');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn render_table(out: &mut String, config: &Options, family: Family, delta: &Delta) {
    let staged = Affinity::default().stage(delta);
    let mut elements: BTreeMap<SetId, Vec<String>> = BTreeMap::new();
    let (mut lots, mut lengths) = (BTreeSet::new(), BTreeSet::new());
    let lanes = Lanes::default().stage(delta);
    let mut put = |element: &Element<'_>| {
        if let Element::AllowedSource { network, .. } = element {
            lengths.insert(network.prefix());
        }
        if let Element::Shape { shape, .. } = element {
            lots.extend(shape.lot().filter(|lot| *lot != Lot::NONE));
        }
        let list = elements.entry(element.set()).or_default();
        list.push(element_text(element));
    };
    for Operation { entry, .. } in &delta.add {
        let (class, wanted) = match entry {
            Entry::Route { destination, .. } | Entry::ExternalRoute { destination, .. } => {
                staged.class_of(destination)
            }
            _ => (0, None),
        };
        if entry.family() == family
            && let Some(element) = Element::of(entry, class, wanted, lanes.of_entry(entry))
        {
            put(&element);
        }
    }
    for (_, element) in &staged.add {
        if element.family() == Some(family) {
            put(element);
        }
    }
    let draws = lots.iter().flat_map(|lot| choice::draw_elements(*lot));
    for (map, number, verdict) in choice::fixed_elements().chain(draws) {
        let verdict = Cow::Owned(verdict);
        let element = Element::Verdict {
            map,
            number,
            verdict,
        };
        elements
            .entry(map)
            .or_default()
            .push(element_text(&element));
    }
    let name = table_family(family);
    line(out, 0, format_args!("table {name} {TABLE}"));
    line(out, 0, format_args!("delete table {name} {TABLE}"));
    line(out, 0, format_args!("table {name} {TABLE} {{"));
    for set in SETS {
        let elements = elements.get(&set).map_or(&[][..], Vec::as_slice);
        render_set(out, family, set, elements);
    }
    let draws = choice::drawn(&lots);
    let chains = Program::new(config, family).fixed_chains().into_iter();
    for mut chain in chains.chain(draws.into_iter().map(choice::draw_chain)) {
        if chain.name == REMEMBER {
            let timeouts = staged.timeouts(family).unwrap_or_default().into_iter();
            let rules =
                timeouts.map(|(class, seconds)| choice::remember_rule(family, class, seconds));
            chain.rules = rules.collect();
        }
        if chain.name == CHECK_SOURCE {
            chain = sources::check_source(family, &lengths);
        }
        render_chain(out, family, &chain);
    }
    line(out, 0, format_args!("}}"));
}

fn render_set(out: &mut String, family: Family, set: SetId, elements: &[String]) {
    let is_map = set.data() != Data::None;
    let kind = if is_map { "map" } else { "set" };
    line(out, 1, format_args!("{kind} {} {{", set.name()));
    // nft has no name for the type of a hash, so a key of hashes is given by example.
    let by_example = set.key(family).contains(&Field::ClientHash);
    let describe = |fields: &[Field]| {
        let names: Vec<String> = fields
            .iter()
            .map(|field| field_type(*field, family, by_example))
            .collect();
        names.join(" . ")
    };
    let keyword = if by_example { "typeof" } else { "type" };
    let key = describe(set.key(family));
    match set.data() {
        Data::None => line(out, 2, format_args!("{keyword} {key}")),
        Data::Verdict => line(out, 2, format_args!("{keyword} {key} : verdict")),
        Data::Number => {
            let data = describe(&[Field::Number]);
            line(out, 2, format_args!("{keyword} {key} : {data}"));
        }
        Data::Endpoint => {
            let data = describe(&[Field::Address, Field::Port]);
            line(out, 2, format_args!("{keyword} {key} : {data}"));
        }
    }
    if set.is_dynamic() {
        line(out, 2, format_args!("size {AFFINITY_SIZE}"));
        line(out, 2, format_args!("flags dynamic,timeout"));
    }
    if set.is_interval() {
        line(out, 2, format_args!("flags interval"));
    }
    if let Some((first, rest)) = elements.split_first() {
        line(out, 2, format_args!("elements = {{"));
        line(
            out,
            3,
            format_args!("{first}{}", if rest.is_empty() { "" } else { "," }),
        );
        for (index, element) in rest.iter().enumerate() {
            let comma = if index + 1 == rest.len() { "" } else { "," };
            line(out, 3, format_args!("{element}{comma}"));
        }
        line(out, 2, format_args!("}}"));
    }
    line(out, 1, format_args!("}}"));
}

fn field_type(field: Field, family: Family, by_example: bool) -> String {
    let ip = table_family(family);
    match (field, by_example) {
        (Field::Address, true) => format!("{ip} daddr"),
        (Field::Protocol, true) => "meta l4proto".to_owned(),
        (Field::Port, true) => "th dport".to_owned(),
        (Field::Number, true) => "meta priority".to_owned(),
        (Field::Number, false) => "classid".to_owned(),
        (Field::ClientHash, _) => format!("numgen random mod {}", u32::MAX),
        (Field::Address, false) => match family {
            Family::V4 => "ipv4_addr".to_owned(),
            Family::V6 => "ipv6_addr".to_owned(),
        },
        (Field::Protocol, false) => "inet_proto".to_owned(),
        (Field::Port, false) => "inet_service".to_owned(),
    }
}

fn element_text(element: &Element<'_>) -> String {
    match element {
        Element::Shape {
            destination,
            shape,
            comment,
            ..
        } => {
            let comment = comment.as_ref().map_or_else(String::new, |comment| {
                format!(" comment \"{}\"", comment.text())
            });
            let shape = Printed(shape.number());
            format!("{}{comment} : {shape}", key(destination))
        }
        Element::Endpoint {
            destination,
            number,
            endpoint: Endpoint { address, port },
        } => {
            let number = Printed(*number);
            format!("{} . {number} : {address} . {port}", key(destination))
        }
        Element::Id {
            destination,
            number,
            id,
        } => {
            let (number, id) = (Printed(*number), Printed(*id));
            format!("{} . {number} : {id}", key(destination))
        }
        Element::NoEndpoints { destination, label } => {
            format!("{} comment \"{label}\"", key(destination))
        }
        Element::Guarded { destination } => key(destination),
        Element::AllowedSource {
            destination,
            network,
        } => {
            let length = Printed(numbers::prefix_length(network.prefix()));
            format!("{} . {} . {length}", key(destination), network.ip())
        }
        Element::Shared(Shared::ClusterIp(address) | Shared::NodePortAddress(address)) => {
            address.to_string()
        }
        Element::Shared(Shared::ServiceCidr(network)) => network_text(*network),
        Element::Shared(Shared::Hairpin {
            protocol,
            endpoint: Endpoint { address, port },
        }) => format!("{address} . {address} . {protocol} . {port}"),
        Element::Verdict {
            number, verdict, ..
        } => {
            let number = Printed(*number);
            match &**verdict {
                Verdict::Drop => format!("{number} : drop"),
                Verdict::Jump(chain) => format!("{number} : jump {chain}"),
                Verdict::Goto(chain) => format!("{number} : goto {chain}"),
            }
        }
    }
}

fn key(destination: &Destination) -> String {
    let Destination {
        host,
        protocol,
        port,
    } = destination;
    match host {
        Host::Address(address) => format!("{address} . {protocol} . {port}"),
        Host::Node(_) => format!("{protocol} . {port}"),
    }
}

/// nft prints a network of one address as the address.
fn network_text(network: ipnetwork::IpNetwork) -> String {
    let whole = match network.ip() {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    };
    if network.prefix() == whole {
        network.ip().to_string()
    } else {
        network.to_string()
    }
}

fn render_chain(out: &mut String, family: Family, chain: &Chain) {
    line(out, 1, format_args!("chain {} {{", chain.name));
    if let Some(Base { hook, priority }) = chain.base {
        let hook = Hook::name(hook);
        line(
            out,
            2,
            format_args!("type nat hook {hook} priority {priority}; policy accept;"),
        );
    }
    for rule in &chain.rules {
        let text: Vec<String> = rule
            .iter()
            .map(|statement| render_statement(family, statement))
            .collect();
        line(out, 2, format_args!("{}", text.join(" ")));
    }
    line(out, 1, format_args!("}}"));
}

fn render_statement(family: Family, statement: &Statement) -> String {
    let ip = table_family(family);
    let negation = |negate: bool| if negate { "!= " } else { "" };
    match statement {
        Statement::DestinationTranslated => "ct status dnat".to_owned(),
        Statement::AddressIn {
            load,
            network,
            negate,
        } => format!(
            "{} {}{}",
            load_text(family, *load),
            negation(*negate),
            network_text(*network)
        ),
        Statement::AddressIsLocal { load, negate } => {
            let address = match load {
                Load::SourceAddress => "saddr",
                _ => "daddr",
            };
            format!("fib {address} type {}local", negation(*negate))
        }
        Statement::Interface {
            name,
            prefix,
            negate,
        } => format!(
            "iifname {}\"{name}{}\"",
            negation(*negate),
            if *prefix { "*" } else { "" }
        ),
        Statement::InSet { key, set, negate } => format!(
            "{} {}@{}",
            key_text(family, key),
            negation(*negate),
            set.name()
        ),
        Statement::Marked(bit) => format!("meta mark & {bit:#x} != 0"),
        Statement::Mark(bit) => format!("meta mark set meta mark | {bit:#x}"),
        Statement::Unmark(bit) => format!("meta mark set meta mark ^ {bit:#x}"),
        Statement::SetPriority(priority) => {
            let to = match priority {
                Priority::Map { key, map } => {
                    format!("{} map @{}", key_text(family, key), map.name())
                }
                Priority::Random { modulus, offset } => {
                    format!("numgen random mod {modulus} offset {offset}")
                }
                Priority::Turn { modulus, offset } => {
                    format!("numgen inc mod {modulus} offset {offset}")
                }
                Priority::Hash {
                    load,
                    modulus,
                    offset,
                } => format!(
                    "jhash {} mod {modulus} seed {ADDRESS_SEED:#x} offset {offset}",
                    load_text(family, *load)
                ),
                Priority::And(mask) => format!("meta priority & {}", Printed(*mask)),
                Priority::Or(bits) => format!("meta priority | {}", Printed(*bits)),
                Priority::Number(0) => "none".to_owned(),
                Priority::Number(number) => Printed(*number).to_string(),
            };
            format!("meta priority set {to}")
        }
        Statement::PriorityIs { mask, value } => {
            format!("meta priority & {} == {}", Printed(*mask), Printed(*value))
        }
        Statement::PriorityVerdict { mask, map } => {
            format!("meta priority & {} vmap @{}", Printed(*mask), map.name())
        }
        Statement::TranslateTo { key, map } => format!(
            "dnat {ip} addr . port to {} map @{}",
            key_text(family, key),
            map.name()
        ),
        Statement::Remember {
            key,
            timeout_seconds,
        } => format!(
            "update @{} {{ {} timeout {timeout_seconds}s : meta priority }}",
            SetId::Affinity.name(),
            key_text(family, key),
        ),
        Statement::Forget { key } => format!(
            "delete @{} {{ {} : meta priority }}",
            SetId::Affinity.name(),
            key_text(family, key),
        ),
        Statement::Masquerade => "masquerade fully-random".to_owned(),
        Statement::ProtocolIs(protocol) => {
            format!("meta l4proto {}", protocol.to_string().to_lowercase())
        }
        Statement::Counter => "counter".to_owned(),
        Statement::Reject => "reject".to_owned(),
        Statement::Drop => "drop".to_owned(),
        Statement::Return => "return".to_owned(),
        Statement::Jump(chain) => format!("jump {chain}"),
        Statement::Goto(chain) => format!("goto {chain}"),
    }
}

fn key_text(family: Family, key: &[Load]) -> String {
    let parts: Vec<String> = key.iter().map(|load| load_text(family, *load)).collect();
    parts.join(" . ")
}

fn load_text(family: Family, load: Load) -> String {
    let ip = table_family(family);
    match load {
        Load::SourceAddress => format!("{ip} saddr"),
        Load::SourceNetwork { length } => {
            let mask = match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::from(
                    !u32::MAX.checked_shr(length.into()).unwrap_or(0),
                )),
                Family::V6 => IpAddr::V6(Ipv6Addr::from(
                    !u128::MAX.checked_shr(length.into()).unwrap_or(0),
                )),
            };
            format!("{ip} saddr & {mask}")
        }
        Load::DestinationAddress => format!("{ip} daddr"),
        Load::Protocol => "meta l4proto".to_owned(),
        Load::DestinationPort => "th dport".to_owned(),
        Load::Priority => "meta priority".to_owned(),
        Load::ClientHash { seed } => format!(
            "jhash {ip} saddr . {ip} daddr . meta l4proto . th dport mod {} seed {seed:#x}",
            u32::MAX
        ),
    }
}
