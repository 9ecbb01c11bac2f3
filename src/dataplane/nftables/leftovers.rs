//! The chains that kube-proxy's iptables and ipvs modes leave behind when it is stopped, as far as they
//! were written through nf_tables (`iptables-nft`): found and taken away.
//!
//! kubelet's own chains (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`, …) are not touched.

use std::collections::BTreeSet;

use super::program::base::KUBE_PROXY_TABLE;
use super::wire::batch::{Batch, FinishedBatch};
use super::wire::{foreign, presence, tables};
use crate::core::model::Family;
use crate::dataplane::owners::{is_built_in, is_for_others_too, is_kube_proxys, is_ours};
use crate::host::netlink::socket::{Socket, SocketError};

/// The tables of iptables that kube-proxy writes to.
const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// The transaction that removes them, and how many there are.
pub(super) fn removal(
    socket: &mut Socket,
    families: &[Family],
    is_to_go: impl Fn(&str) -> bool,
) -> Result<(FinishedBatch, usize), SocketError> {
    let mut batch = Batch::new(false);
    let mut count = 0;
    for family in families {
        for table in TABLES {
            let mut chains: BTreeSet<String> = foreign::chain_names(socket, *family, table)?
                .into_iter()
                .filter(|chain| is_to_go(chain))
                .collect();
            if chains.is_empty() {
                continue;
            }
            let jumps = foreign::jumps(socket, *family, table)?;
            for rule in &jumps {
                let is_others = !chains.contains(&rule.chain) && !is_built_in(&rule.chain);
                if is_others && is_for_others_too(&rule.to) {
                    chains.remove(&rule.to);
                }
            }
            count += chains.len();
            for rule in jumps {
                if chains.contains(&rule.to) && !chains.contains(&rule.chain) {
                    tables::put_delete_rule(&mut batch, *family, table, &rule.chain, rule.handle);
                }
            }
            // All rules first: the chains refer to each other.
            for chain in &chains {
                tables::put_flush_chain(&mut batch, *family, table, chain);
            }
            for chain in &chains {
                tables::put_delete_named_chain(&mut batch, *family, table, chain);
            }
        }
    }
    Ok((batch.finish(), count))
}

/// The transaction that removes the tables of kube-proxy's nftables mode, and how many there are.
pub(super) fn tables_removal(socket: &mut Socket) -> Result<(FinishedBatch, usize), SocketError> {
    let (mut batch, mut count) = (Batch::new(false), 0);
    for family in Family::BOTH {
        if presence::named_table_exists(socket, family, KUBE_PROXY_TABLE)? {
            tables::put_delete_named_table(&mut batch, family, KUBE_PROXY_TABLE);
            count += 1;
        }
    }
    Ok((batch.finish(), count))
}

/// Whether there is anything of kube-proxy's.
pub(super) fn are_there(socket: &mut Socket) -> Result<bool, SocketError> {
    for family in Family::BOTH {
        if presence::named_table_exists(socket, family, KUBE_PROXY_TABLE)? {
            return Ok(true);
        }
        let chains = foreign::chain_names(socket, family, "nat")?;
        if chains.iter().any(|chain| is_kube_proxys(chain)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a chain goes when we take over.
pub(super) fn is_kube_proxys_or_ours(chain: &str) -> bool {
    is_kube_proxys(chain) || is_ours(chain)
}
