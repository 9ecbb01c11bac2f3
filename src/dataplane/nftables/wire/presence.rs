//! Whether there is a table, and what the kernel says of it as a whole.

use super::uapi::*;
use crate::core::model::Family;
use crate::dataplane::nftables::program::TABLE;
use crate::host::netlink::attributes::put_string;
use crate::host::netlink::socket::{Socket, SocketError, number};
use crate::host::netlink::{
    NLM_F_ACK, NLM_F_REQUEST, close_message, family_number, message_type, put_headers,
};

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
    Ok(self::table(socket, family, table)?.is_some())
}

/// A table as listed.
pub(super) struct ListedTable {
    /// How many chains, sets and other objects it has.
    pub(super) objects: u32,
    /// `NFT_TABLE_F_*`.
    pub(super) flags: u32,
}

/// A table, if it exists.
pub(super) fn table(
    socket: &mut Socket,
    family: Family,
    name: &str,
) -> Result<Option<ListedTable>, SocketError> {
    let mut request = Vec::new();
    put_headers(
        &mut request,
        message_type(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE),
        NLM_F_REQUEST | NLM_F_ACK,
        0,
        family_number(family),
        0,
    );
    put_string(&mut request, NFTA_TABLE_NAME, name);
    close_message(&mut request, 0);
    let mut found = None;
    socket.ask(&request, 1, |message| {
        let attributes = message.attributes();
        found = number(attributes, NFTA_TABLE_USE).map(|objects| ListedTable {
            objects,
            flags: number(attributes, NFTA_TABLE_FLAGS).unwrap_or(0),
        });
    })?;
    Ok(found)
}
