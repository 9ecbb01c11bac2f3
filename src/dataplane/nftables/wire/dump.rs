//! Reading back what the kernel holds: is it our program, and which entries are in it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use super::counters;
use super::elements::{self, Listed};
use super::intervals;
use super::lookup;
use super::presence::{self, ListedTable};
use super::registers;
use super::tables::{self, SetShape};
use super::uapi::*;
use crate::core::model::Family;
use crate::dataplane::nftables::contents::Assembly;
use crate::dataplane::nftables::program::choice::{self, REMEMBER, Verdict};
use crate::dataplane::nftables::program::element::Element;
use crate::dataplane::nftables::program::lots::Lot;
use crate::dataplane::nftables::program::numbers::{self, CLASS_MASK, Class};
use crate::dataplane::nftables::program::parts::Parts;
use crate::dataplane::nftables::program::sets::{SETS, SetId};
use crate::dataplane::nftables::program::sources::{self, CHECK_SOURCE};
use crate::dataplane::nftables::program::statement::{Base, Chain, Hook};
use crate::dataplane::nftables::program::{Program, TABLE};
use crate::host::netlink::attributes::{Attributes, find, put_string, string};
use crate::host::netlink::socket::{Message, RESTLESS, Socket, SocketError, number};
use crate::host::netlink::{dump_request, message_type};

/// Lists what one family's table holds.
///
/// The kernel narrows these listings down to our table. A listing that was disturbed by a change of
/// another table is whole all the same, and one of ours is [`super::super::interference`]'s business: so
/// nothing is listed twice, however often others write.
pub(crate) struct Lister<'a> {
    pub(crate) socket: &'a mut Socket,
    pub(crate) family: Family,
    /// Something, ours or not, has changed during a listing.
    pub(crate) disturbed: bool,
}

impl Lister<'_> {
    /// The objects of a kind in our table. Where the kernel does not narrow a listing down, the
    /// caller has to.
    fn list<S>(
        &mut self,
        kind: u16,
        narrow: &[u8],
        state: S,
        each: impl FnMut(&mut S, &Message<'_>),
    ) -> Result<S, SocketError> {
        let request = dump_request(
            message_type(NFNL_SUBSYS_NFTABLES, kind),
            self.family,
            narrow,
        );
        let (state, disturbed) = self.socket.dump_once(&request, state, each)?;
        self.disturbed |= disturbed;
        Ok(state)
    }
}

/// The attribute that narrows a listing of rules, sets or elements down to our table: it has this
/// number in all of them.
fn in_our_table() -> Vec<u8> {
    const { assert!(NFTA_RULE_TABLE == NFTA_SET_TABLE && NFTA_SET_TABLE == NFTA_SET_ELEM_LIST_TABLE) };
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_RULE_TABLE, TABLE);
    narrow
}

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

/// The parts of the program that come and go, and how much data there is.
#[derive(Debug, Default)]
pub(crate) struct Installed {
    /// The parts.
    pub(crate) parts: Parts,
    /// How many elements the kernel counts in each set, if it says so.
    pub(crate) counts: BTreeMap<SetId, u32>,
}

/// A chain as listed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListedChain {
    base: Option<(Vec<u8>, u32, i32, u32)>,
    rules: Vec<String>,
    /// For which class and how long each rule remembers, if it does.
    timeouts: Vec<Option<(Class, u32)>>,
    /// The length of prefix that each rule is for, if it is.
    lengths: Vec<Option<u8>>,
}

/// Compares one family's table with the program.
pub(crate) fn program(
    lister: &mut Lister<'_>,
    program: &Program<'_>,
) -> Result<Found, SocketError> {
    let family = lister.family;
    let began = Instant::now();
    let mut tries = 0;
    let (mut chains, sets) = loop {
        let Some(ListedTable { objects, flags }) = presence::table(lister.socket, family, TABLE)?
        else {
            return Ok(Found::Nothing);
        };
        if flags != 0 {
            return Ok(Found::Another(match flags {
                NFT_TABLE_F_DORMANT => "the table is dormant".to_owned(),
                _ => "the table has flags that are not ours".to_owned(),
            }));
        }
        if objects == 0 {
            return Ok(Found::Another("the table is empty".to_owned()));
        }
        let sets = list_sets(lister)?;
        let disturbed = std::mem::take(&mut lister.disturbed);
        let chains = list_chains(lister)?;
        // Chains are listed with everybody's: if those change, ours may be missing.
        if !lister.disturbed || chains.len() + sets.len() == objects as usize {
            lister.disturbed |= disturbed;
            break (chains, sets);
        }
        tries += 1;
        if began.elapsed() >= RESTLESS {
            return Err(SocketError::Restless { tries });
        }
    };
    list_rules(lister, &mut chains)?;
    let mut installed = match compare(family, program, &chains, &sets) {
        Ok(installed) => installed,
        Err(why) => return Ok(Found::Another(why)),
    };
    let mut verdicts = BTreeMap::new();
    for map in SETS.into_iter().filter(|set| set.is_of_the_program()) {
        let Some(found) = list_elements(lister, map, |listed| listed.number_verdict())? else {
            return Ok(Found::Another(format!("map {} is not ours", map.name())));
        };
        let found = found.into_iter();
        verdicts.extend(found.map(|(number, verdict)| ((map, number), verdict)));
    }
    Ok(match lots(verdicts, &installed.parts.draws) {
        Some(lots) => {
            installed.parts.lots = lots;
            Found::Ours(installed)
        }
        None => Found::Another("the maps of chains have other elements".to_owned()),
    })
}

/// The lots that lead to a chain, if the verdict maps hold what they should.
pub(super) fn lots(
    verdicts: BTreeMap<(SetId, u32), Verdict>,
    draws: &BTreeSet<Lot>,
) -> Option<BTreeSet<Lot>> {
    let numbers = verdicts.keys().filter(|(map, _)| *map == SetId::Draws);
    let lots: BTreeSet<Lot> = numbers
        .filter_map(|(_, number)| Lot::from_code(u16::try_from(*number).ok()?))
        .filter(|lot| *lot != Lot::NONE)
        .collect();
    let wanted: BTreeMap<(SetId, u32), Verdict> = lots
        .iter()
        .flat_map(|lot| choice::draw_elements(*lot))
        .chain(choice::fixed_elements())
        .map(|(map, number, verdict)| ((map, number), verdict))
        .collect();
    let all_drawn = choice::drawn(&lots).is_subset(draws);
    (all_drawn && wanted == verdicts).then_some(lots)
}

pub(super) fn compare(
    family: Family,
    program: &Program<'_>,
    chains: &BTreeMap<String, ListedChain>,
    sets: &ListedSets,
) -> Result<Installed, String> {
    let mut installed = Installed::default();
    for (name, (shape, count)) in sets {
        let set = SetId::from_name(name).ok_or_else(|| format!("set {name} is not ours"))?;
        if SetShape::of(family, set) != *shape {
            return Err(format!("set {name} is of another type"));
        }
        installed.counts.extend(count.map(|count| (set, count)));
    }
    if let Some(set) = SETS.into_iter().find(|set| !sets.contains_key(set.name())) {
        return Err(format!("set {} is missing", set.name()));
    }
    let fixed = program.fixed_chains();
    for chain in &fixed {
        let found = chains
            .get(&chain.name)
            .ok_or_else(|| format!("chain {} is missing", chain.name))?;
        if chain.name == CHECK_SOURCE {
            let lengths: BTreeSet<u8> = found.lengths.iter().flatten().copied().collect();
            same(family, &sources::check_source(family, &lengths), found)?;
            installed.parts.lengths = lengths;
            continue;
        }
        if chain.name != REMEMBER {
            same(family, chain, found)?;
            continue;
        }
        let timeouts: Option<BTreeMap<Class, u32>> = found.timeouts.iter().copied().collect();
        let timeouts = timeouts.ok_or("chain remember has other rules")?;
        let rules = timeouts
            .iter()
            .map(|(class, seconds)| choice::remember_rule(family, *class, *seconds));
        same(family, &Chain::regular(REMEMBER, rules.collect()), found)?;
        installed.parts.timeouts = timeouts;
    }
    for (name, found) in chains {
        if fixed.iter().any(|chain| chain.name == *name) {
            continue;
        }
        let lot = choice::drawn_lot(name).ok_or_else(|| format!("chain {name} is not ours"))?;
        same(family, &choice::draw_chain(lot), found)?;
        installed.parts.draws.insert(lot);
    }
    Ok(installed)
}

fn same(family: Family, wanted: &Chain, found: &ListedChain) -> Result<(), String> {
    let base = wanted
        .base
        .map(|Base { hook, priority }| (b"nat\0".to_vec(), hook_number(hook), priority, ACCEPT));
    if base != found.base {
        return Err(format!("chain {} is hooked elsewhere", wanted.name));
    }
    let rules: Vec<String> = tables::rule_messages(family, wanted, 0)
        .filter_map(|message| tables::describe_rule(&message))
        .map(|rule| counters::without_counts(&registers::packed(&rule)))
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
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

fn is_our_table(attributes: &[u8], kind: u16) -> bool {
    find(attributes, kind).and_then(string) == Some(TABLE)
}

fn list_chains(lister: &mut Lister<'_>) -> Result<BTreeMap<String, ListedChain>, SocketError> {
    lister.list(NFT_MSG_GETCHAIN, &[], BTreeMap::new(), take_chain)
}

pub(super) fn take_chain(chains: &mut BTreeMap<String, ListedChain>, message: &Message<'_>) {
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
            timeouts: Vec::new(),
            lengths: Vec::new(),
        },
    );
}

/// A rule as listed.
pub(super) struct ListedRule {
    chain: String,
    description: String,
    timeout: Option<(Class, u32)>,
    length: Option<u8>,
}

fn list_rules(
    lister: &mut Lister<'_>,
    chains: &mut BTreeMap<String, ListedChain>,
) -> Result<(), SocketError> {
    let narrow = in_our_table();
    let rules = lister.list(NFT_MSG_GETRULE, &narrow, Vec::new(), take_rule)?;
    put_rules(chains, rules);
    Ok(())
}

pub(super) fn take_rule(rules: &mut Vec<ListedRule>, message: &Message<'_>) {
    let attributes = message.attributes();
    if let Some(chain) = find(attributes, NFTA_RULE_CHAIN).and_then(string)
        && is_our_table(attributes, NFTA_RULE_TABLE)
    {
        let rule = tables::describe_rule(message.whole).unwrap_or_default();
        rules.push(ListedRule {
            chain: chain.to_owned(),
            description: counters::without_counts(&registers::packed(&rule)),
            timeout: timeout(attributes),
            length: length(attributes),
        });
    }
}

pub(super) fn put_rules(chains: &mut BTreeMap<String, ListedChain>, rules: Vec<ListedRule>) {
    for rule in rules {
        if let Some(chain) = chains.get_mut(&rule.chain) {
            chain.rules.push(rule.description);
            chain.timeouts.push(rule.timeout);
            chain.lengths.push(rule.length);
        }
    }
}

/// The first expression of a rule with this name.
fn expression<'a>(rule: &'a [u8], name: &str) -> Option<&'a [u8]> {
    Attributes(find(rule, NFTA_RULE_EXPRESSIONS)?)
        .map(|(_, expression)| expression)
        .find(|expression| find(expression, NFTA_EXPR_NAME).and_then(string) == Some(name))
        .and_then(|expression| find(expression, NFTA_EXPR_DATA))
}

/// The length of prefix that a rule is for, if it is for one.
fn length(rule: &[u8]) -> Option<u8> {
    let data = find(expression(rule, "immediate")?, NFTA_IMMEDIATE_DATA)?;
    let number = find(data, NFTA_DATA_VALUE)?;
    numbers::length_of(u32::from_ne_bytes(number.try_into().ok()?))
}

/// For which class and for how many seconds a rule remembers, if it does.
fn timeout(rule: &[u8]) -> Option<(Class, u32)> {
    let expression = |name| expression(rule, name);
    let value = find(find(expression("cmp")?, NFTA_CMP_DATA)?, NFTA_DATA_VALUE)?;
    let bits = u32::from_ne_bytes(value.try_into().ok()?);
    let class = (bits & CLASS_MASK) >> CLASS_MASK.trailing_zeros();
    let milliseconds = find(expression("dynset")?, NFTA_DYNSET_TIMEOUT)?;
    let milliseconds = u64::from_be_bytes(milliseconds.try_into().ok()?);
    let seconds = u32::try_from(milliseconds / 1000).ok()?;
    Some((Class::try_from(class).ok()?, seconds))
}

/// The sets of a table by name: their shapes, and how many elements the kernel counts in them.
type ListedSets = BTreeMap<String, (SetShape, Option<u32>)>;

fn list_sets(lister: &mut Lister<'_>) -> Result<ListedSets, SocketError> {
    let narrow = in_our_table();
    match lister.list(NFT_MSG_GETSET, &narrow, BTreeMap::new(), take_set) {
        // The table is not there.
        Err(SocketError::Dump(nix::errno::Errno::ENOENT)) => Ok(BTreeMap::new()),
        sets => sets,
    }
}

pub(super) fn take_set(sets: &mut ListedSets, message: &Message<'_>) {
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
}

/// The elements of all sets of one family but the program's own; `None` if one of them is nothing
/// that we write. `each` is called with all of them.
///
/// A large set of endpoints is not dumped, unless it holds what no route leads to. Where the kernel
/// does not count elements that is not known, and it is dumped if `thorough`, however long that
/// takes.
pub(crate) fn contents(
    lister: &mut Lister<'_>,
    installed: &Installed,
    thorough: bool,
    mut each: impl FnMut(&Element<'_>),
) -> Result<Option<Assembly>, SocketError> {
    let family = lister.family;
    let mut assembly = Assembly::default();
    // Routes and ids tell which endpoints there have to be, so they come first.
    for set in SETS {
        if set.is_of_the_program() || set.is_dynamic() {
            continue;
        }
        let counted = installed.counts.get(&set).copied();
        if counted.is_some() || !thorough {
            match lookup::read(lister.socket, family, set, &assembly, counted)? {
                None => {}
                Some(found) => {
                    for element in &found {
                        each(element);
                        if !assembly.take(element) {
                            return Ok(None);
                        }
                    }
                    continue;
                }
            }
        }
        let found = if set == SetId::ServiceCidrs {
            ranges(list_elements(lister, set, |listed| {
                listed.interval_bound(family)
            })?)
        } else {
            list_elements(lister, set, |listed| {
                listed.element(set, family).map(Element::into_owned)
            })?
        };
        let is_ours = found.is_some_and(|found| {
            found.iter().all(|element| {
                each(element);
                assembly.take(element)
            })
        });
        if !is_ours {
            return Ok(None);
        }
    }
    Ok(Some(assembly))
}

/// Reads one set's elements; `None` if one of them cannot be read.
fn list_elements<T>(
    lister: &mut Lister<'_>,
    set: SetId,
    read: impl Fn(&Listed<'_>) -> Option<T>,
) -> Result<Option<Vec<T>>, SocketError> {
    let mut narrow = in_our_table();
    put_string(&mut narrow, NFTA_SET_ELEM_LIST_SET, set.name());
    let found = Some(Vec::new());
    lister.list(NFT_MSG_GETSETELEM, &narrow, found, |found, message| {
        take_elements(found, message, &read);
    })
}

pub(super) fn take_elements<T>(
    found: &mut Option<Vec<T>>,
    message: &Message<'_>,
    read: impl Fn(&Listed<'_>) -> Option<T>,
) {
    for attributes in elements::listed(message.attributes()) {
        let Some(list) = found else { return };
        match Listed::read(attributes).and_then(|listed| read(&listed)) {
            Some(entry) => list.push(entry),
            None => *found = None,
        }
    }
}

/// The elements that bounds of ranges are.
pub(super) fn ranges(bounds: Option<Vec<(IpAddr, bool)>>) -> Option<Vec<Element<'static>>> {
    let ranges = intervals::service_cidrs(bounds?)?;
    Some(ranges.into_iter().map(Element::Shared).collect())
}
