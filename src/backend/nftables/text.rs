//! The program and its data in nft syntax: what `--dry-run` prints and `nft -f` loads.
//!
//! Only printing lives here; what is printed is decided in `program` and `sets`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use super::chains::ShapeChain;
use super::clients::ClientMap;
use super::program::{
    Base, Chain, ChainKind, Hook, Load, Program, ProgramConfig, Rule, Statement, TABLE,
};
use super::sets::{AFFINITY_SIZE, Data, FIXED_SETS, Field, SetId, slot_number};
use crate::ir::{Destination, Entry, Host, Route, Shared};
use crate::model::{Endpoint, Family};

/// The whole ruleset for these entries, replacing whatever was there, in a stable order.
#[must_use]
pub fn render(config: &ProgramConfig, entries: &[Entry]) -> String {
    let mut out = String::new();
    for family in &config.families {
        let mine: Vec<&Entry> = entries
            .iter()
            .filter(|entry| entry.family() == *family)
            .collect();
        render_table(&mut out, config, *family, &mine);
    }
    out
}

/// Commands that remove everything that is ours.
#[must_use]
pub fn render_cleanup(families: &[Family]) -> String {
    let mut out = String::new();
    for family in families {
        let name = table_family(*family);
        line(&mut out, 0, format_args!("table {name} {TABLE}"));
        line(&mut out, 0, format_args!("delete table {name} {TABLE}"));
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

fn render_table(out: &mut String, config: &ProgramConfig, family: Family, entries: &[&Entry]) {
    let shapes = shapes(entries.iter().copied());
    let maps: BTreeSet<ClientMap> = shapes.iter().filter_map(|s| s.affinity_map()).collect();
    let mut elements: BTreeMap<SetId, Vec<String>> = BTreeMap::new();
    for entry in entries {
        elements
            .entry(SetId::of(entry))
            .or_default()
            .push(element(entry));
    }
    let name = table_family(family);
    line(out, 0, format_args!("table {name} {TABLE}"));
    line(out, 0, format_args!("delete table {name} {TABLE}"));
    line(out, 0, format_args!("table {name} {TABLE} {{"));
    for set in FIXED_SETS
        .into_iter()
        .chain(maps.into_iter().map(SetId::Affinity))
    {
        render_set(
            out,
            family,
            set,
            elements.get(&set).map_or(&[], Vec::as_slice),
        );
    }
    let program = Program::new(config, family);
    // A chain must stand before those that go to it, and sorted shapes do not: nft takes
    // chains in any order within one table block.
    for chain in program
        .fixed_chains()
        .into_iter()
        .chain(shapes.iter().map(|shape| program.shape_chain(*shape)))
    {
        render_chain(out, family, &chain);
    }
    line(out, 0, format_args!("}}"));
}

/// The chains that entries need, with those that they lead to.
pub(crate) fn shapes<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeSet<ShapeChain> {
    ShapeChain::needed(entries.filter_map(ShapeChain::of))
}

fn render_set(out: &mut String, family: Family, set: SetId, elements: &[String]) {
    let is_map = set.data() != Data::None;
    let kind = if is_map { "map" } else { "set" };
    line(out, 1, format_args!("{kind} {} {{", set.name()));
    // nft has no name for the type of a slot number, so those keys are given by example.
    let by_example = set.key().contains(&Field::Slot);
    let describe = |fields: &[Field]| {
        let names: Vec<String> = fields
            .iter()
            .map(|field| field_type(*field, family, by_example))
            .collect();
        names.join(" . ")
    };
    let keyword = if by_example { "typeof" } else { "type" };
    let key = describe(set.key());
    match set.data() {
        Data::None => line(out, 2, format_args!("{keyword} {key}")),
        Data::Verdict => line(out, 2, format_args!("{keyword} {key} : verdict")),
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
        (Field::Slot, _) => {
            format!("numgen random mod {}", super::sets::EXTERNAL_OFFSET)
        }
        (Field::Address, false) => match family {
            Family::V4 => "ipv4_addr".to_owned(),
            Family::V6 => "ipv6_addr".to_owned(),
        },
        (Field::Protocol, false) => "inet_proto".to_owned(),
        (Field::Port, false) => "inet_service".to_owned(),
    }
}

fn element(entry: &Entry) -> String {
    match entry {
        Entry::Route {
            destination,
            route,
            label,
        } => format!(
            "{} comment \"{}\" : {}",
            key(destination),
            label.as_str(),
            verdict(entry, Some(*route))
        ),
        Entry::ExternalRoute { destination, route } => {
            format!("{} : {}", key(destination), verdict(entry, Some(*route)))
        }
        Entry::Remember { destination, .. } => {
            format!("{} : {}", key(destination), verdict(entry, None))
        }
        Entry::Slot {
            destination,
            list,
            index,
            endpoint: Endpoint { address, port },
        } => format!(
            "{} . {} : {address} . {port}",
            key(destination),
            slot_number(*list, *index)
        ),
        Entry::NoEndpoints { destination, label } => {
            format!("{} comment \"{}\"", key(destination), label.as_str())
        }
        Entry::Guarded { destination } => key(destination),
        Entry::AllowedSource {
            destination,
            network,
        } => format!("{} . {}", key(destination), network_text(*network)),
        Entry::Shared(Shared::ClusterIp(address) | Shared::NodePortAddress(address)) => {
            address.to_string()
        }
        Entry::Shared(Shared::ServiceCidr(network)) => network_text(*network),
        Entry::Shared(Shared::Hairpin {
            protocol,
            endpoint: Endpoint { address, port },
        }) => format!("{address} . {address} . {protocol} . {port}"),
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

fn verdict(entry: &Entry, route: Option<Route>) -> String {
    if route == Some(Route::Drop) {
        return "drop".to_owned();
    }
    ShapeChain::of(entry).map_or_else(|| "drop".to_owned(), |chain| format!("goto {chain}"))
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
    if let Some(Base {
        kind,
        hook,
        priority,
    }) = chain.base
    {
        let kind = match kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        let hook = Hook::name(hook);
        line(
            out,
            2,
            format_args!("type {kind} hook {hook} priority {priority}; policy accept;"),
        );
    }
    let is_remember = |rule: &Rule| {
        rule.iter()
            .any(|statement| matches!(statement, Statement::Remember { .. }))
    };
    if family == Family::V6 && chain.rules.iter().any(is_remember) {
        line(
            out,
            2,
            format_args!(
                "# nft 1.0.6 fails an assertion while it loads these rules; it lists them well"
            ),
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
        Statement::StateNew => "ct state new".to_owned(),
        Statement::DestinationTranslated => "ct status dnat".to_owned(),
        Statement::JustTranslated => "ct status & (confirmed|dnat) == dnat".to_owned(),
        Statement::ProtocolIs(protocol) => format!("meta l4proto {protocol}"),
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
        Statement::AddressIsLocal(Load::SourceAddress) => "fib saddr type local".to_owned(),
        Statement::AddressIsLocal(_) => "fib daddr type local".to_owned(),
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
        Statement::VerdictMap { key, map } => {
            format!("{} vmap @{}", key_text(family, key), map.name())
        }
        Statement::TranslateTo { key, map } => format!(
            "dnat {ip} addr . port to {} map @{}",
            key_text(family, key),
            map.name()
        ),
        Statement::Remember { map } => {
            let key = [
                Load::OriginalSourceAddress,
                Load::OriginalDestinationAddress,
                Load::Protocol,
                Load::OriginalDestinationPort,
            ];
            let data = [Load::DestinationAddress, Load::DestinationPort];
            format!(
                "update @{} {{ {} timeout {}s : {} }}",
                SetId::Affinity(*map).name(),
                key_text(family, &key),
                map.timeout_seconds,
                key_text(family, &data)
            )
        }
        Statement::Masquerade => "masquerade fully-random".to_owned(),
        Statement::Reject => "reject".to_owned(),
        Statement::Drop => "drop".to_owned(),
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
        Load::DestinationAddress => format!("{ip} daddr"),
        Load::Protocol => "meta l4proto".to_owned(),
        Load::DestinationPort => "th dport".to_owned(),
        Load::OriginalSourceAddress => format!("ct original {ip} saddr"),
        Load::OriginalDestinationAddress => format!("ct original {ip} daddr"),
        Load::OriginalDestinationPort => "ct original proto-dst".to_owned(),
        Load::Random { modulus, offset: 0 } => format!("numgen random mod {modulus}"),
        Load::Random { modulus, offset } => {
            format!("numgen random mod {modulus} offset {offset}")
        }
    }
}
