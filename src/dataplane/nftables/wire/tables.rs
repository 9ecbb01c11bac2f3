//! Messages that create and delete the program: tables, sets, chains and rules.

use nftnl::{MsgType, ProtoFamily};

use super::batch::Batch;
use super::expressions;
use super::libnftnl::{self, NewSet};
use super::uapi::*;
use crate::core::model::Family;
use crate::dataplane::nftables::program::TABLE;
use crate::dataplane::nftables::program::sets::{AFFINITY_SIZE, Data, Field, SetId};
use crate::dataplane::nftables::program::statement::{Base, Chain, Hook};
use crate::host::netlink::attributes::{put_bytes, put_string};
use crate::host::netlink::{
    NLM_F_REQUEST, close_message, family_number, message_type, put_headers,
};

fn table(family: Family) -> nftnl::Table {
    let family = match family {
        Family::V4 => ProtoFamily::Ipv4,
        Family::V6 => ProtoFamily::Ipv6,
    };
    libnftnl::table(TABLE, family)
}

/// Appends what removes the table, whether it is there or not.
pub(crate) fn put_delete_table(batch: &mut Batch, family: Family) {
    put_create_table(batch, family);
    let message = libnftnl::message(&table(family), MsgType::Del, batch.next_sequence());
    batch.put_program(family, &message, format!("deleting table {TABLE}"));
}

/// Appends what creates the table unless it is there.
pub(crate) fn put_create_table(batch: &mut Batch, family: Family) {
    let message = libnftnl::message(&table(family), MsgType::Add, batch.next_sequence());
    batch.put_program(family, &message, format!("table {TABLE}"));
}

/// Appends what creates a set.
pub(crate) fn put_set(batch: &mut Batch, family: Family, set: SetId) {
    let sequence = batch.next_sequence();
    let message = libnftnl::new_set(&new_set(family, set, sequence), sequence);
    batch.put_program(family, &message, format!("set {}", set.name()));
}

/// Appends what creates a chain without its rules: verdicts may refer to it from here on.
pub(crate) fn put_chain(batch: &mut Batch, family: Family, chain: &Chain) {
    let table = table(family);
    let mut object = libnftnl::chain(&chain.name, &table);
    if let Some(Base { hook, priority }) = chain.base {
        object.set_type(nftnl::ChainType::Nat);
        object.set_hook(hook.into(), priority);
        object.set_policy(nftnl::Policy::Accept);
    }
    let message = libnftnl::message(&object, MsgType::Add, batch.next_sequence());
    batch.put_program(family, &message, format!("chain {}", chain.name));
}

impl From<Hook> for nftnl::Hook {
    fn from(hook: Hook) -> Self {
        match hook {
            Hook::Prerouting => Self::PreRouting,
            Hook::Output => Self::Out,
            Hook::Postrouting => Self::PostRouting,
        }
    }
}

/// Appends a chain's rules.
pub(crate) fn put_rules(batch: &mut Batch, family: Family, chain: &Chain) {
    for (index, message) in rule_messages(family, chain, batch.next_sequence()).enumerate() {
        let what = format!("rule {index} of chain {}", chain.name);
        batch.put_program(family, &message, what);
    }
}

/// The messages that append a chain's rules, numbered from `sequence` on.
pub(crate) fn rule_messages(
    family: Family,
    chain: &Chain,
    sequence: u32,
) -> impl Iterator<Item = Vec<u8>> {
    (sequence..).zip(&chain.rules).map(move |(sequence, rule)| {
        let table = table(family);
        let object = libnftnl::chain(&chain.name, &table);
        let mut message = nftnl::Rule::new(&object);
        for expression in expressions::rule(family, rule) {
            message.add_expr(&expression);
        }
        libnftnl::message(&message, MsgType::Add, sequence)
    })
}

/// What a rule does, as libnftnl describes it; see [`libnftnl::describe_rule`].
pub(crate) fn describe_rule(message: &[u8]) -> Option<String> {
    libnftnl::describe_rule(message)
}

/// Appends what deletes a chain, which nothing may refer to any more, with its rules.
pub(crate) fn put_delete_chain(batch: &mut Batch, family: Family, name: &str) {
    let message = named(
        NFT_MSG_DELCHAIN,
        family,
        (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME),
        name,
        batch.next_sequence(),
    );
    batch.put_program(family, &message, format!("deleting chain {name}"));
}

/// Appends what deletes a table that is not ours, with everything in it. It must be there.
pub(crate) fn put_delete_named_table(batch: &mut Batch, family: Family, table: &str) {
    let sequence = batch.next_sequence();
    let message = request(NFT_MSG_DELTABLE, family, sequence, |out| {
        put_string(out, NFTA_TABLE_NAME, table);
    });
    batch.put_program(family, &message, format!("deleting table {table}"));
}

/// Appends what deletes a rule by its handle.
pub(crate) fn put_delete_rule(
    batch: &mut Batch,
    family: Family,
    table: &str,
    chain: &str,
    handle: u64,
) {
    let sequence = batch.next_sequence();
    let message = request(NFT_MSG_DELRULE, family, sequence, |out| {
        put_string(out, NFTA_RULE_TABLE, table);
        put_string(out, NFTA_RULE_CHAIN, chain);
        put_bytes(out, NFTA_RULE_HANDLE, &handle.to_be_bytes());
    });
    batch.put_program(
        family,
        &message,
        format!("deleting a rule of {table} {chain}"),
    );
}

/// Appends what deletes all rules of a chain.
pub(crate) fn put_flush_chain(batch: &mut Batch, family: Family, table: &str, chain: &str) {
    let sequence = batch.next_sequence();
    let message = request(NFT_MSG_DELRULE, family, sequence, |out| {
        put_string(out, NFTA_RULE_TABLE, table);
        put_string(out, NFTA_RULE_CHAIN, chain);
    });
    batch.put_program(family, &message, format!("flushing {table} {chain}"));
}

/// Appends what deletes a chain of any table.
pub(crate) fn put_delete_named_chain(batch: &mut Batch, family: Family, table: &str, chain: &str) {
    let sequence = batch.next_sequence();
    let message = request(NFT_MSG_DELCHAIN, family, sequence, |out| {
        put_string(out, NFTA_CHAIN_TABLE, table);
        put_string(out, NFTA_CHAIN_NAME, chain);
    });
    batch.put_program(family, &message, format!("deleting {table} {chain}"));
}

fn request(kind: u16, family: Family, sequence: u32, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = Vec::new();
    put_headers(
        &mut message,
        message_type(NFNL_SUBSYS_NFTABLES, kind),
        NLM_F_REQUEST,
        sequence,
        family_number(family),
        0,
    );
    put(&mut message);
    close_message(&mut message, 0);
    message
}

fn named(
    kind: u16,
    family: Family,
    (table_attribute, name_attribute): (u16, u16),
    name: &str,
    sequence: u32,
) -> Vec<u8> {
    request(kind, family, sequence, |out| {
        put_string(out, table_attribute, TABLE);
        put_string(out, name_attribute, name);
    })
}

fn new_set(family: Family, set: SetId, id: u32) -> NewSet {
    let shape = SetShape::of(family, set);
    NewSet {
        family: u16::from(family_number(family)),
        table: TABLE,
        name: set.name().to_owned(),
        id,
        flags: shape.flags,
        key_type: shape.key_type,
        key_length: shape.key_length,
        data: shape.data,
        size: set.is_dynamic().then_some(AFFINITY_SIZE),
        user_data: user_data(family, set),
    }
}

/// What tells a set of ours from another with its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetShape {
    /// `NFT_SET_*`.
    pub(crate) flags: u32,
    /// nft's number for the key's type.
    pub(crate) key_type: u32,
    /// Bytes of the key.
    pub(crate) key_length: u32,
    /// The data's type and bytes, for a map.
    pub(crate) data: Option<(u32, u32)>,
}

impl SetShape {
    pub(crate) fn of(family: Family, set: SetId) -> Self {
        let mut flags = 0;
        if set.data() != Data::None {
            flags |= NFT_SET_MAP;
        }
        if set.is_interval() {
            flags |= NFT_SET_INTERVAL;
        }
        if set.is_dynamic() {
            flags |= NFT_SET_EVAL | NFT_SET_TIMEOUT;
        }
        let data = match set.data() {
            Data::None => None,
            // The length of a verdict is that of a register.
            Data::Verdict => Some((datatype::VERDICT, 16)),
            Data::Number => Some((datatype::CLASSID, 4)),
            Data::Endpoint => {
                let fields = [Field::Address, Field::Port];
                Some((type_number(family, &fields), length(family, &fields)))
            }
        };
        Self {
            flags,
            key_type: type_number(family, set.key(family)),
            key_length: length(family, set.key(family)),
            data,
        }
    }
}

/// nft numbers a concatenation by its parts' numbers, 6 bits each.
fn type_number(family: Family, fields: &[Field]) -> u32 {
    fields.iter().fold(0, |number, field| {
        (number << datatype::CONCAT_BITS)
            | match (field, family) {
                (Field::Address, Family::V4) => datatype::IPV4_ADDR,
                (Field::Address, Family::V6) => datatype::IPV6_ADDR,
                (Field::Protocol, _) => datatype::INET_PROTOCOL,
                (Field::Port, _) => datatype::INET_SERVICE,
                (Field::Number, _) => datatype::CLASSID,
                (Field::ClientHash, _) => datatype::INTEGER,
            }
    })
}

fn length(family: Family, fields: &[Field]) -> u32 {
    let bytes: usize = fields.iter().map(|field| field.registers(family)).sum();
    // At most 60.
    u32::try_from(bytes).unwrap_or(0)
}

/// What nft keeps in a set to print it as it was written (`src/mnl.c`, `src/netlink.c`).
fn user_data(family: Family, set: SetId) -> Vec<u8> {
    let mut out = Vec::new();
    // nft has no name for the type of a hash, so a key of hashes is given by example.
    let by_example = set.key(family).contains(&Field::ClientHash);
    let is_map = set.data() != Data::None;
    let byte_order = match set.key(family) {
        [Field::Number] => udata::BYTEORDER_HOST_ENDIAN,
        [_] => udata::BYTEORDER_BIG_ENDIAN,
        _ => udata::BYTEORDER_INVALID,
    };
    put_number(&mut out, udata::SET_KEYBYTEORDER, byte_order);
    if is_map {
        let byte_order = match set.data() {
            Data::Number => udata::BYTEORDER_HOST_ENDIAN,
            _ => udata::BYTEORDER_INVALID,
        };
        put_number(&mut out, udata::SET_DATABYTEORDER, byte_order);
    }
    if set.key(family).len() > 1 {
        let key = concat(set.key(family), by_example);
        put(&mut out, udata::SET_KEY_TYPEOF, &key);
    }
    if set.data() == Data::Endpoint {
        let data = concat(&[Field::Address, Field::Port], by_example);
        put(&mut out, udata::SET_DATA_TYPEOF, &data);
    }
    if by_example && set.data() == Data::Number {
        let numbers = numbers(&[udata::META_PRIORITY]);
        let data = expression(udata::EXPR_META, &numbers);
        put(&mut out, udata::SET_DATA_TYPEOF, &data);
    }
    if is_map {
        put_number(&mut out, udata::SET_DATA_INTERVAL, 0);
    }
    out
}

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    // A description of four parts has less than 100 bytes.
    out.push(u8::try_from(value.len()).unwrap_or(0));
    out.extend_from_slice(value);
}

fn put_number(out: &mut Vec<u8>, kind: u8, value: u32) {
    put(out, kind, &value.to_ne_bytes());
}

/// A concatenation, of hashes given by example or a mere concatenation of the key's types.
fn concat(fields: &[Field], by_example: bool) -> Vec<u8> {
    let mut parts = Vec::new();
    if by_example {
        // `numgen random mod 4294967295`: what a hash is, too.
        let example = numbers(&[udata::NUMGEN_RANDOM, u32::MAX, 0]);
        for index in (0..).take(fields.len()) {
            put(&mut parts, index, &expression(udata::EXPR_NUMGEN, &example));
        }
    }
    expression(udata::EXPR_CONCAT, &parts)
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    let mut data = Vec::new();
    for (index, number) in (0..).zip(numbers) {
        put_number(&mut data, index, *number);
    }
    data
}

fn expression(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, udata::TYPEOF_EXPR, kind);
    put(&mut out, udata::TYPEOF_DATA, data);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What nft 1.0.6 sends for the same sets, read back from a kernel.
    #[test]
    fn user_data_is_what_nft_keeps() {
        let hex =
            |bytes: Vec<u8>| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let cases = [
            (
                Family::V4,
                SetId::ServiceIps,
                "000400000000010401000000030800040d0000000100060400000000",
            ),
            (
                Family::V4,
                SetId::Draws,
                "000401000000010400000000060400000000",
            ),
            (
                Family::V4,
                SetId::Affinity,
                "000400000000010401000000030800040d0000000100060400000000",
            ),
            (
                Family::V6,
                SetId::Affinity,
                "000400000000010401000000034000040d0000000138001a00041700000001120004010000000104ff\
                 ffffff020400000000011a00041700000001120004010000000104ffffffff020400000000040e0004\
                 090000000106000402000000060400000000",
            ),
            (
                Family::V6,
                SetId::Hairpin,
                "000400000000030800040d0000000100",
            ),
            (Family::V4, SetId::ClusterIps, "000402000000"),
            (
                Family::V4,
                SetId::AllowedSources,
                "000400000000030800040d0000000100",
            ),
        ];
        for (family, set, expected) in cases {
            assert_eq!(hex(user_data(family, set)), expected, "{family} {set:?}");
        }
    }

    #[test]
    fn key_types_are_numbered_as_nft_numbers_them() {
        let cases = [
            (Family::V4, SetId::Endpoints, 0x001c_c357, 16),
            (Family::V6, SetId::Endpoints, 0x0020_c357, 28),
            (Family::V6, SetId::Affinity, 0x0000_0104, 8),
            (Family::V4, SetId::ServiceNodePorts, 0x0000_030d, 8),
            (Family::V6, SetId::AllowedSources, 0x0830_d217, 44),
            (Family::V4, SetId::ClusterIps, 7, 4),
        ];
        for (family, set, key_type, key_length) in cases {
            let shape = SetShape::of(family, set);
            assert_eq!((shape.key_type, shape.key_length), (key_type, key_length));
        }
    }
}
