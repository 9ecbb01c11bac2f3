//! Numbers of the kernel's interface that the `libc` and `nftnl-sys` crates do not have.
//!
//! Source: `include/uapi/linux/netfilter/nf_tables.h`, `nfnetlink.h` and `netlink.h`.

#![allow(missing_docs, reason = "the names are the kernel's")]

pub(crate) const NFTA_TABLE_NAME: u16 = 1;
pub(crate) const NFTA_TABLE_FLAGS: u16 = 2;
pub(crate) const NFTA_TABLE_USE: u16 = 3;
pub(crate) const NFT_TABLE_F_DORMANT: u32 = 1;

pub(crate) const NFTA_CHAIN_TABLE: u16 = 1;
pub(crate) const NFTA_CHAIN_NAME: u16 = 3;
pub(crate) const NFTA_CHAIN_HOOK: u16 = 4;
pub(crate) const NFTA_CHAIN_POLICY: u16 = 5;
pub(crate) const NFTA_CHAIN_TYPE: u16 = 7;
pub(crate) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(crate) const NFTA_HOOK_PRIORITY: u16 = 2;

pub(crate) const NFTA_RULE_TABLE: u16 = 1;
pub(crate) const NFTA_RULE_CHAIN: u16 = 2;
pub(crate) const NFTA_RULE_HANDLE: u16 = 3;
pub(crate) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(crate) const NFTA_EXPR_NAME: u16 = 1;
pub(crate) const NFTA_EXPR_DATA: u16 = 2;
pub(crate) const NFTA_CMP_DATA: u16 = 3;
pub(crate) const NFTA_DYNSET_TIMEOUT: u16 = 6;
pub(crate) const NFTA_IMMEDIATE_DATA: u16 = 2;

/// `NFTA_CT_DREG` and `NFTA_META_DREG`, `NFTA_CT_KEY` and `NFTA_META_KEY`.
pub(crate) const NFTA_LOAD_DREG: u16 = 1;
pub(crate) const NFTA_LOAD_KEY: u16 = 2;
pub(crate) const NFTA_CT_DIRECTION: u16 = 3;
pub(crate) const IP_CT_DIR_ORIGINAL: u8 = 0;
pub(crate) const NFT_META_L4PROTO: u32 = 16;
pub(crate) const NFTA_PAYLOAD_DREG: u16 = 1;
pub(crate) const NFTA_PAYLOAD_BASE: u16 = 2;
pub(crate) const NFTA_PAYLOAD_OFFSET: u16 = 3;
pub(crate) const NFTA_PAYLOAD_LEN: u16 = 4;
pub(crate) const NETWORK_HEADER: u32 = 1;
pub(crate) const TRANSPORT_HEADER: u32 = 2;
pub(crate) const NFTA_BITWISE_SREG: u16 = 1;
pub(crate) const NFTA_BITWISE_DREG: u16 = 2;
pub(crate) const NFTA_BITWISE_LEN: u16 = 3;
pub(crate) const NFTA_BITWISE_MASK: u16 = 4;
pub(crate) const NFTA_BITWISE_XOR: u16 = 5;
pub(crate) const NFTA_CMP_SREG: u16 = 1;
pub(crate) const NFTA_CMP_OP: u16 = 2;
pub(crate) const NFT_CMP_NEQ: u32 = 1;
pub(crate) const NFTA_DYNSET_SET_NAME: u16 = 1;
pub(crate) const NFTA_DYNSET_OP: u16 = 3;
pub(crate) const NFT_DYNSET_OP_UPDATE: u32 = 1;
pub(crate) const NFTA_DYNSET_SREG_KEY: u16 = 4;
pub(crate) const NFTA_DYNSET_EXPR: u16 = 7;

pub(crate) const NFTA_SET_TABLE: u16 = 1;
pub(crate) const NFTA_SET_NAME: u16 = 2;
pub(crate) const NFTA_SET_FLAGS: u16 = 3;
pub(crate) const NFTA_SET_KEY_TYPE: u16 = 4;
pub(crate) const NFTA_SET_KEY_LEN: u16 = 5;
pub(crate) const NFTA_SET_DATA_TYPE: u16 = 6;
pub(crate) const NFTA_SET_DATA_LEN: u16 = 7;
pub(crate) const NFTA_SET_DESC: u16 = 9;
pub(crate) const NFTA_SET_DESC_SIZE: u16 = 1;
pub(crate) const NFTA_SET_ID: u16 = 10;
pub(crate) const NFTA_SET_EXPR: u16 = 17;
pub(crate) const NFTA_SET_COUNT: u16 = 20;

pub(crate) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(crate) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(crate) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(crate) const NFTA_LIST_ELEM: u16 = 1;
pub(crate) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(crate) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(crate) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(crate) const NFTA_SET_ELEM_EXPIRATION: u16 = 5;
pub(crate) const NFTA_SET_ELEM_USERDATA: u16 = 6;
pub(crate) const NFTA_SET_ELEM_EXPR: u16 = 7;
pub(crate) const NFT_SET_ELEM_INTERVAL_END: u32 = 1;

pub(crate) const NFTA_DATA_VALUE: u16 = 1;
pub(crate) const NFTA_DATA_VERDICT: u16 = 2;
pub(crate) const NFTA_VERDICT_CODE: u16 = 1;
pub(crate) const NFTA_VERDICT_CHAIN: u16 = 2;
pub(crate) const NFT_JUMP: i32 = -3;
pub(crate) const NFT_GOTO: i32 = -4;
pub(crate) const NF_DROP: i32 = 0;

pub(crate) const NFT_SET_INTERVAL: u32 = 0x4;
pub(crate) const NFT_SET_MAP: u32 = 0x8;
pub(crate) const NFT_SET_TIMEOUT: u32 = 0x10;
pub(crate) const NFT_SET_EVAL: u32 = 0x20;

pub(crate) const NFNL_MSG_BATCH_BEGIN: u16 = 16;
pub(crate) const NFNL_MSG_BATCH_END: u16 = 17;
pub(crate) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(crate) const NFT_MSG_NEWTABLE: u16 = 0;
pub(crate) const NFT_MSG_GETTABLE: u16 = 1;
pub(crate) const NFTA_COUNTER_PACKETS: u16 = 2;
pub(crate) const NFT_MSG_NEWGEN: u16 = 15;
pub(crate) const NFT_MSG_GETGEN: u16 = 16;
pub(crate) const NFTA_GEN_PROC_PID: u16 = 2;
pub(crate) const NFTA_GEN_PROC_NAME: u16 = 3;
pub(crate) const NFTA_GEN_ID: u16 = 1;
pub(crate) const NFT_MSG_DELTABLE: u16 = 2;
pub(crate) const NFT_MSG_NEWCHAIN: u16 = 3;
pub(crate) const NFT_MSG_GETCHAIN: u16 = 4;
pub(crate) const NFT_MSG_DELCHAIN: u16 = 5;
pub(crate) const NFT_MSG_NEWRULE: u16 = 6;
pub(crate) const NFT_MSG_GETRULE: u16 = 7;
pub(crate) const NFT_MSG_DELRULE: u16 = 8;
pub(crate) const NFT_MSG_NEWSET: u16 = 9;
pub(crate) const NFT_MSG_GETSET: u16 = 10;
pub(crate) const NFT_MSG_DELSET: u16 = 11;
pub(crate) const NFT_MSG_NEWSETELEM: u16 = 12;
pub(crate) const NFT_MSG_GETSETELEM: u16 = 13;
pub(crate) const NFT_MSG_DELSETELEM: u16 = 14;

/// libnftnl's user data (`include/libnftnl/udata.h`) and nft's (`include/rule.h`): what makes
/// `nft list ruleset` print types and comments as they were written.
pub(crate) mod udata {
    pub(crate) const SET_KEYBYTEORDER: u8 = 0;
    pub(crate) const SET_DATABYTEORDER: u8 = 1;
    pub(crate) const SET_KEY_TYPEOF: u8 = 3;
    pub(crate) const SET_DATA_TYPEOF: u8 = 4;
    pub(crate) const SET_DATA_INTERVAL: u8 = 6;
    pub(crate) const TYPEOF_EXPR: u8 = 0;
    pub(crate) const TYPEOF_DATA: u8 = 1;
    pub(crate) const ELEM_COMMENT: u8 = 0;
    pub(crate) const BYTEORDER_INVALID: u32 = 0;
    pub(crate) const BYTEORDER_HOST_ENDIAN: u32 = 1;
    pub(crate) const BYTEORDER_BIG_ENDIAN: u32 = 2;
    /// `enum expr_types`.
    pub(crate) const EXPR_META: u32 = 9;
    pub(crate) const EXPR_CONCAT: u32 = 13;
    pub(crate) const EXPR_NUMGEN: u32 = 23;
    /// `NFT_META_PRIORITY`.
    pub(crate) const META_PRIORITY: u32 = 2;
    pub(crate) const NUMGEN_RANDOM: u32 = 1;
}

/// nft's numbers for data types (`include/datatype.h`, `enum datatypes`).
pub(crate) mod datatype {
    pub(crate) const INTEGER: u32 = 4;
    pub(crate) const IPV4_ADDR: u32 = 7;
    pub(crate) const IPV6_ADDR: u32 = 8;
    pub(crate) const INET_PROTOCOL: u32 = 12;
    pub(crate) const INET_SERVICE: u32 = 13;
    pub(crate) const CLASSID: u32 = 23;
    /// Bits that each part takes in the number of a concatenation (`TYPE_BITS`).
    pub(crate) const CONCAT_BITS: u32 = 6;
    /// `NFT_DATA_VERDICT` in the kernel's header.
    pub(crate) const VERDICT: u32 = 0xffff_ff00;
}
