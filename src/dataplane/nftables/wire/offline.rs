//! What a family's table holds, from messages and without a kernel to ask: for who tests the reading.

use std::collections::BTreeMap;

use super::dump::{
    compare, lots, put_rules, ranges, take_chain, take_elements, take_rule, take_set,
};
use super::uapi::*;
use crate::core::ir::Entry;
use crate::core::model::Family;
use crate::dataplane::Options;
use crate::dataplane::nftables::contents::Assembly;
use crate::dataplane::nftables::program::Program;
use crate::dataplane::nftables::program::element::Element;
use crate::dataplane::nftables::program::sets::{SETS, SetId};
use crate::host::netlink::attributes::{find, string};
use crate::host::netlink::message_type;
use crate::host::netlink::socket::messages;

/// What a family's table holds if these messages are all that the kernel says of it, or why it is not our
/// program: the same as [`super::dump`] makes of a kernel's.
///
/// # Errors
///
/// If it is not our program.
pub fn entries_of(options: &Options, family: Family, listing: &[u8]) -> Result<Vec<Entry>, String> {
    let (mut chains, mut sets, mut rules) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for message in messages(listing) {
        match message
            .kind
            .checked_sub(message_type(NFNL_SUBSYS_NFTABLES, 0))
        {
            Some(NFT_MSG_NEWCHAIN) => take_chain(&mut chains, &message),
            Some(NFT_MSG_NEWRULE) => take_rule(&mut rules, &message),
            Some(NFT_MSG_NEWSET) => take_set(&mut sets, &message),
            _ => {}
        }
    }
    put_rules(&mut chains, rules);
    let of = |set: SetId| {
        messages(listing).filter(move |message| {
            let name = find(message.attributes(), NFTA_SET_ELEM_LIST_SET).and_then(string);
            message.kind == message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_NEWSETELEM)
                && name == Some(set.name())
        })
    };
    let strange = |set: SetId| format!("set {} has other elements", set.name());
    let (mut verdicts, mut assembly) = (BTreeMap::new(), Assembly::default());
    for set in SETS.into_iter().filter(|set| !set.is_dynamic()) {
        let (mut found, mut numbers, mut bounds) =
            (Some(Vec::new()), Some(Vec::new()), Some(Vec::new()));
        for message in of(set) {
            if set.is_of_the_program() {
                take_elements(&mut numbers, &message, |listed| listed.number_verdict());
            } else if set == SetId::ServiceCidrs {
                take_elements(&mut bounds, &message, |listed| {
                    listed.interval_bound(family)
                });
            } else {
                take_elements(&mut found, &message, |listed| {
                    listed.element(set, family).map(Element::into_owned)
                });
            }
        }
        let numbers = numbers.ok_or_else(|| strange(set))?;
        let numbers = numbers.into_iter();
        verdicts.extend(numbers.map(|(number, verdict)| ((set, number), verdict)));
        let found = found.zip(ranges(bounds)).ok_or_else(|| strange(set))?;
        let mut found = found.0.iter().chain(&found.1);
        if !found.all(|element| assembly.take(element)) {
            return Err(strange(set));
        }
    }
    let installed = compare(family, &Program::new(options, family), &chains, &sets)?;
    lots(verdicts, &installed.parts.draws).ok_or("the maps of chains have other elements")?;
    Ok(assembly.finish(&installed.parts.timeouts).entries)
}
