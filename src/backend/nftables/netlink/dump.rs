//! Reading back what the kernel holds: is it our program, and which entries are in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::elements::{self, Element};
use super::objects::{self, SetShape};
use super::slots;
use super::uapi::*;
use crate::backend::nftables::chains::ShapeChain;
use crate::backend::nftables::clients::ClientMap;
use crate::backend::nftables::program::{Base, Chain, ChainKind, Hook, Program, TABLE};
use crate::backend::nftables::sets::{FIXED_SETS, SetId};
use crate::ir::{Destination, Entry};
use crate::model::{Endpoint, Family};
use crate::netlink::attributes::{Attributes, find, put_string, string};
use crate::netlink::socket::{Message, Socket, SocketError, number};
use crate::netlink::{dump_request, message_type};

/// What the kernel holds of one family's table.
#[derive(Debug)]
pub(crate) enum Found {
    /// There is no such table.
    Nothing,
    /// There is one, but it is not the program; why.
    Another(String),
    /// It is the program.
    Ours(Installed),
}

/// The parts of the program that come and go with shapes.
#[derive(Debug, Default)]
pub(crate) struct Installed {
    /// The chains of shapes.
    pub(crate) shapes: BTreeSet<ShapeChain>,
    /// The affinity maps.
    pub(crate) affinity_maps: BTreeSet<ClientMap>,
    /// How many elements the kernel counts in each set, if it says so.
    pub(crate) counts: BTreeMap<SetId, u32>,
}

/// A chain as listed.
#[derive(Debug, PartialEq, Eq)]
struct ListedChain {
    base: Option<(Vec<u8>, u32, i32, u32)>,
    rules: Vec<String>,
}

/// Compares one family's table with the program.
pub(crate) fn program(
    socket: &mut Socket,
    family: Family,
    program: &Program<'_>,
) -> Result<Found, SocketError> {
    let mut chains = list_chains(socket, family)?;
    let sets = list_sets(socket, family)?;
    if chains.is_empty() && sets.is_empty() {
        return Ok(if table_exists(socket, family)? {
            Found::Another("the table is empty".to_owned())
        } else {
            Found::Nothing
        });
    }
    list_rules(socket, family, &mut chains)?;
    Ok(compare(family, program, &chains, &sets).map_or_else(Found::Another, Found::Ours))
}

fn compare(
    family: Family,
    program: &Program<'_>,
    chains: &BTreeMap<String, ListedChain>,
    sets: &BTreeMap<String, (SetShape, Option<u32>)>,
) -> Result<Installed, String> {
    let mut installed = Installed::default();
    for (name, (shape, count)) in sets {
        let set = SetId::from_name(name).ok_or_else(|| format!("set {name} is not ours"))?;
        if SetShape::of(family, set) != *shape {
            return Err(format!("set {name} is of another type"));
        }
        installed.counts.extend(count.map(|count| (set, count)));
        if let SetId::Affinity(map) = set {
            installed.affinity_maps.insert(map);
        }
    }
    if let Some(set) = FIXED_SETS
        .into_iter()
        .find(|set| !sets.contains_key(&set.name()))
    {
        return Err(format!("set {} is missing", set.name()));
    }
    let fixed = program.fixed_chains();
    for chain in &fixed {
        let found = chains
            .get(&chain.name)
            .ok_or_else(|| format!("chain {} is missing", chain.name))?;
        same(family, chain, found)?;
    }
    for (name, found) in chains {
        if fixed.iter().any(|chain| chain.name == *name) {
            continue;
        }
        let shape =
            ShapeChain::from_name(name).ok_or_else(|| format!("chain {name} is not ours"))?;
        same(family, &program.shape_chain(shape), found)?;
        if let Some(map) = shape.affinity_map()
            && !installed.affinity_maps.contains(&map)
        {
            return Err(format!("the map of chain {name} is missing"));
        }
        installed.shapes.insert(shape);
    }
    Ok(installed)
}

fn same(family: Family, wanted: &Chain, found: &ListedChain) -> Result<(), String> {
    let base = wanted.base.map(
        |Base {
             kind,
             hook,
             priority,
         }| {
            let kind = match kind {
                ChainKind::Filter => b"filter\0".to_vec(),
                ChainKind::Nat => b"nat\0".to_vec(),
            };
            (kind, hook_number(hook), priority, ACCEPT)
        },
    );
    if base != found.base {
        return Err(format!("chain {} is hooked elsewhere", wanted.name));
    }
    let rules: Vec<String> = objects::rule_messages(family, wanted, 0)
        .filter_map(|message| objects::describe_rule(&message))
        .collect();
    if rules != found.rules {
        return Err(format!("chain {} has other rules", wanted.name));
    }
    Ok(())
}

/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;

const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

fn is_our_table(attributes: &[u8], kind: u16) -> bool {
    find(attributes, kind).and_then(string) == Some(TABLE)
}

/// Whether there is a table with our name.
pub(crate) fn table_exists(socket: &mut Socket, family: Family) -> Result<bool, SocketError> {
    named_table_exists(socket, family, TABLE)
}

/// Whether there is a table with this name.
pub(crate) fn named_table_exists(
    socket: &mut Socket,
    family: Family,
    table: &str,
) -> Result<bool, SocketError> {
    let request = dump_request(
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE),
        family,
        &[],
    );
    socket.dump(
        &request,
        || false,
        |found, message| {
            *found |= find(message.attributes(), NFTA_TABLE_NAME).and_then(string) == Some(table);
        },
    )
}

/// The names of the chains of any table; none if there is no such table.
pub(crate) fn chain_names(
    socket: &mut Socket,
    family: Family,
    table: &str,
) -> Result<Vec<String>, SocketError> {
    let request = dump_request(
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN),
        family,
        &[],
    );
    socket.dump(&request, Vec::new, |names, message| {
        let attributes = message.attributes();
        if find(attributes, NFTA_CHAIN_TABLE).and_then(string) == Some(table) {
            let name = find(attributes, NFTA_CHAIN_NAME).and_then(string);
            names.extend(name.map(str::to_owned));
        }
    })
}

/// A rule that jumps or goes to a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Jump {
    /// Where the rule is.
    pub(crate) chain: String,
    /// Its handle.
    pub(crate) handle: u64,
    /// Where it leads.
    pub(crate) to: String,
}

/// Where an expression leads, if it says goto or jump.
fn verdict_chain(expression: &[u8]) -> Option<&str> {
    let data = find(expression, NFTA_EXPR_DATA)?;
    let verdict = find(find(data, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
    find(verdict, NFTA_VERDICT_CHAIN).and_then(string)
}

/// The rules of any table that lead to another chain.
pub(crate) fn jumps(
    socket: &mut Socket,
    family: Family,
    table: &str,
) -> Result<Vec<Jump>, SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_RULE_TABLE, table);
    let request = dump_request(
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE),
        family,
        &narrow,
    );
    socket.dump(&request, Vec::new, |jumps, message: &Message<'_>| {
        let attributes = message.attributes();
        let jump = || {
            let to = Attributes(find(attributes, NFTA_RULE_EXPRESSIONS)?)
                .find_map(|(_, expression)| verdict_chain(expression))?;
            let handle = find(attributes, NFTA_RULE_HANDLE)?;
            Some(Jump {
                chain: find(attributes, NFTA_RULE_CHAIN)
                    .and_then(string)?
                    .to_owned(),
                handle: u64::from_be_bytes(handle.try_into().ok()?),
                to: to.to_owned(),
            })
        };
        if find(attributes, NFTA_RULE_TABLE).and_then(string) == Some(table) {
            jumps.extend(jump());
        }
    })
}

fn list_chains(
    socket: &mut Socket,
    family: Family,
) -> Result<BTreeMap<String, ListedChain>, SocketError> {
    let request = dump_request(
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN),
        family,
        &[],
    );
    socket.dump(&request, BTreeMap::new, |chains, message| {
        let attributes = message.attributes();
        if !is_our_table(attributes, NFTA_CHAIN_TABLE) {
            return;
        }
        let Some(name) = find(attributes, NFTA_CHAIN_NAME).and_then(string) else {
            return;
        };
        let base = find(attributes, NFTA_CHAIN_HOOK).map(|hook| {
            (
                find(attributes, NFTA_CHAIN_TYPE).unwrap_or(&[]).to_vec(),
                number(hook, NFTA_HOOK_HOOKNUM).unwrap_or(u32::MAX),
                number(hook, NFTA_HOOK_PRIORITY).map_or(0, u32::cast_signed),
                number(attributes, NFTA_CHAIN_POLICY).unwrap_or(u32::MAX),
            )
        });
        chains.insert(
            name.to_owned(),
            ListedChain {
                base,
                rules: Vec::new(),
            },
        );
    })
}

fn list_rules(
    socket: &mut Socket,
    family: Family,
    chains: &mut BTreeMap<String, ListedChain>,
) -> Result<(), SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_RULE_TABLE, TABLE);
    let request = dump_request(
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE),
        family,
        &narrow,
    );
    let rules = socket.dump(&request, Vec::new, |rules, message: &Message<'_>| {
        let attributes = message.attributes();
        if let Some(chain) = find(attributes, NFTA_RULE_CHAIN).and_then(string)
            && is_our_table(attributes, NFTA_RULE_TABLE)
        {
            let rule = objects::describe_rule(message.whole).unwrap_or_default();
            rules.push((chain.to_owned(), rule));
        }
    })?;
    for (chain, rule) in rules {
        if let Some(chain) = chains.get_mut(&chain) {
            chain.rules.push(rule);
        }
    }
    Ok(())
}

fn list_sets(
    socket: &mut Socket,
    family: Family,
) -> Result<BTreeMap<String, (SetShape, Option<u32>)>, SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_SET_TABLE, TABLE);
    let request = dump_request(
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSET),
        family,
        &narrow,
    );
    let sets = socket.dump(&request, BTreeMap::new, |sets, message| {
        let attributes = message.attributes();
        if !is_our_table(attributes, NFTA_SET_TABLE) {
            return;
        }
        let Some(name) = find(attributes, NFTA_SET_NAME).and_then(string) else {
            return;
        };
        let data = number(attributes, NFTA_SET_DATA_TYPE)
            .map(|kind| (kind, number(attributes, NFTA_SET_DATA_LEN).unwrap_or(0)));
        let shape = SetShape {
            flags: number(attributes, NFTA_SET_FLAGS).unwrap_or(0),
            key_type: number(attributes, NFTA_SET_KEY_TYPE).unwrap_or(0),
            key_length: number(attributes, NFTA_SET_KEY_LEN).unwrap_or(0),
            data,
        };
        sets.insert(name.to_owned(), (shape, number(attributes, NFTA_SET_COUNT)));
    });
    match sets {
        // The table is not there.
        Err(SocketError::Dump(nix::errno::Errno::ENOENT)) => Ok(BTreeMap::new()),
        sets => sets,
    }
}

/// The entries of all sets of one family; `None` if one of them is nothing that we write.
///
/// A large set of endpoints is not dumped, unless it holds what no route leads to. Where the kernel
/// does not count elements that is not known, and it is dumped if `thorough`, however long that
/// takes.
pub(crate) fn entries(
    socket: &mut Socket,
    family: Family,
    installed: &Installed,
    thorough: bool,
) -> Result<Option<Vec<Entry>>, SocketError> {
    let mut entries = Vec::new();
    // Those that tell which endpoints there have to be come before the endpoints.
    for set in FIXED_SETS.into_iter().rev() {
        let counted = installed.counts.get(&set).copied();
        if set.holds_slots()
            && (counted.is_some() || !thorough)
            && let Some(mut found) = slots::read(socket, family, set, &entries, counted)?
        {
            entries.append(&mut found);
            continue;
        }
        let found = if set == SetId::ServiceCidrs {
            let bounds: Option<Vec<(IpAddr, bool)>> =
                list_elements(socket, family, set, |element| {
                    element.interval_bound(family)
                })?;
            bounds.and_then(elements::service_cidrs)
        } else {
            list_elements(socket, family, set, |element| element.entry(set, family))?
        };
        match found {
            Some(mut found) => entries.append(&mut found),
            None => return Ok(None),
        }
    }
    Ok(Some(entries))
}

/// Reads one set's elements; `None` if one of them cannot be read.
fn list_elements<T>(
    socket: &mut Socket,
    family: Family,
    set: SetId,
    read: impl Fn(&Element<'_>) -> Option<T>,
) -> Result<Option<Vec<T>>, SocketError> {
    socket.dump(
        &element_request(family, set),
        || Some(Vec::new()),
        |found, message| {
            for attributes in elements::listed(message.attributes()) {
                let Some(list) = found else { return };
                match Element::read(attributes).and_then(|element| read(&element)) {
                    Some(entry) => list.push(entry),
                    None => *found = None,
                }
            }
        },
    )
}

/// What `pick` makes of the clients that a map remembers: where each connected to,
/// where it went, and its element.
pub(crate) fn remembered<T>(
    socket: &mut Socket,
    family: Family,
    map: ClientMap,
    pick: impl Fn(Destination, Endpoint, &Element<'_>) -> Option<T>,
) -> Result<Vec<T>, SocketError> {
    socket.dump(
        &element_request(family, SetId::Affinity(map)),
        Vec::new,
        |picked, message| {
            for attributes in elements::listed(message.attributes()) {
                if let Some(element) = Element::read(attributes)
                    && let Some((destination, endpoint)) = element.remembered(family)
                {
                    picked.extend(pick(destination, endpoint, &element));
                }
            }
        },
    )
}

fn element_request(family: Family, set: SetId) -> Vec<u8> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_SET_ELEM_LIST_TABLE, TABLE);
    put_string(&mut narrow, NFTA_SET_ELEM_LIST_SET, &set.name());
    dump_request(
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETSETELEM),
        family,
        &narrow,
    )
}
