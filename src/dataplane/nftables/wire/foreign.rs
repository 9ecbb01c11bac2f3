//! What is asked about more than our tables: kube-proxy's chains and who leads to them, and the number of
//! the ruleset.

use super::uapi::*;
use crate::core::model::Family;
use crate::host::netlink::attributes::{Attributes, find, put_string, string};
use crate::host::netlink::socket::{Message, Socket, SocketError};
use crate::host::netlink::{
    NLM_F_ACK, NLM_F_REQUEST, close_message, dump_request, message_type, put_headers,
};

/// `NFPROTO_UNSPEC`.
const UNSPECIFIED: u8 = 0;

/// The number of the ruleset, everybody's: each transaction that is committed adds one
/// (`nf_tables_commit`; 0 is left out).
pub(crate) fn generation(socket: &mut Socket) -> Result<u32, SocketError> {
    let mut request = Vec::new();
    put_headers(
        &mut request,
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN),
        NLM_F_REQUEST | NLM_F_ACK,
        0,
        UNSPECIFIED,
        0,
    );
    close_message(&mut request, 0);
    let mut generation = None;
    socket.ask(&request, 1, |message| {
        let id = find(message.attributes(), NFTA_GEN_ID);
        generation = generation.or(id.and_then(|id| id.try_into().ok()).map(u32::from_be_bytes));
    })?;
    Ok(generation.unwrap_or_default())
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
