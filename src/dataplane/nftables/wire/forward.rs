//! Which chains drop what is forwarded and no rule accepts: by their policy, or by their last rule.

use super::uapi::*;
use crate::dataplane::Dropping;
use crate::host::netlink::attributes::{Attributes, find, put_string, string};
use crate::host::netlink::socket::{Socket, SocketError};
use crate::host::netlink::{dump_request_of, message_type};

/// The name of what iptables calls a target (`nf_tables_compat.h`).
const NFTA_TARGET_NAME: u16 = 1;
/// `NF_INET_FORWARD`.
const FORWARD: u32 = 2;
/// `NF_DROP`, as policy and as verdict.
const DROP: u32 = 0;
/// Families of tables that forwarded packets meet (`NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_IPV6`).
const FAMILIES: [(u8, &str); 3] = [(1, "inet"), (2, "ip"), (10, "ip6")];

/// Lists them.
pub(crate) fn dropping(socket: &mut Socket) -> Result<Vec<Dropping>, SocketError> {
    let mut all = Vec::new();
    for (family, name) in FAMILIES {
        let kind = message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETCHAIN);
        let request = dump_request_of(kind, family, &[]);
        let (chains, _) = socket.dump_once(&request, Vec::new(), |chains, message| {
            chains.extend(forwarding(message.attributes()));
        })?;
        for (table, chain, policy) in chains {
            let how = if policy == Some(DROP) {
                Some("drops")
            } else {
                last_rule(socket, family, &table, &chain)?
            };
            all.extend(how.map(|how| Dropping {
                table: format!("{name} {table}"),
                chain,
                how,
            }));
        }
    }
    Ok(all)
}

/// Table, name and policy of a base chain that filters what is forwarded.
fn forwarding(chain: &[u8]) -> Option<(String, String, Option<u32>)> {
    let number = |attributes: &[u8], kind| {
        let value = find(attributes, kind)?;
        Some(u32::from_be_bytes(value.try_into().ok()?))
    };
    let hook = find(chain, NFTA_CHAIN_HOOK)?;
    let is_filter = find(chain, NFTA_CHAIN_TYPE).and_then(string) == Some("filter");
    if !is_filter || number(hook, NFTA_HOOK_HOOKNUM) != Some(FORWARD) {
        return None;
    }
    let text = |kind| Some(find(chain, kind).and_then(string)?.to_owned());
    Some((
        text(NFTA_CHAIN_TABLE)?,
        text(NFTA_CHAIN_NAME)?,
        number(chain, NFTA_CHAIN_POLICY),
    ))
}

/// What the last rule of a chain does with everything that gets there, if it lets nothing pass.
fn last_rule(
    socket: &mut Socket,
    family: u8,
    table: &str,
    chain: &str,
) -> Result<Option<&'static str>, SocketError> {
    let mut narrow = Vec::new();
    put_string(&mut narrow, NFTA_RULE_TABLE, table);
    put_string(&mut narrow, NFTA_RULE_CHAIN, chain);
    let kind = message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETRULE);
    let request = dump_request_of(kind, family, &narrow);
    let (last, _) = socket.dump_once(&request, None, |last, message| {
        let attributes = message.attributes();
        let is = |kind, name| find(attributes, kind).and_then(string) == Some(name);
        if is(NFTA_RULE_TABLE, table) && is(NFTA_RULE_CHAIN, chain) {
            *last = ends_all(attributes);
        }
    })?;
    Ok(last)
}

fn ends_all(rule: &[u8]) -> Option<&'static str> {
    let expressions = Attributes(find(rule, NFTA_RULE_EXPRESSIONS)?);
    let mut how = None;
    for (_, expression) in expressions {
        match find(expression, NFTA_EXPR_NAME).and_then(string)? {
            "counter" | "log" => {}
            "reject" => how = Some("rejects"),
            // By iptables-nft: `-j REJECT`.
            "target" => {
                let name =
                    find(find(expression, NFTA_EXPR_DATA)?, NFTA_TARGET_NAME).and_then(string);
                how = (name? == "REJECT").then_some("rejects");
            }
            "immediate" => {
                let data = find(find(expression, NFTA_EXPR_DATA)?, NFTA_IMMEDIATE_DATA)?;
                let code = find(find(data, NFTA_DATA_VERDICT)?, NFTA_VERDICT_CODE)?;
                let is_drop = u32::from_be_bytes(code.try_into().ok()?) == DROP;
                how = is_drop.then_some("drops");
            }
            // It looks at something.
            _ => return None,
        }
    }
    how
}
