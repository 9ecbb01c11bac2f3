//! Registers, and what is loaded into them: the parts that expressions are made of.

use nftnl::nftnl_sys as sys;
use sys::libc;

use super::libnftnl::{Expression, Value};
use crate::core::model::Family;
use crate::dataplane::nftables::program::numbers::ADDRESS_SEED;
use crate::dataplane::nftables::program::sets::{Field, SetId};
use crate::dataplane::nftables::program::statement::Load;

/// A 32-bit register by its number among all of them: 4 bytes each, 16 in all.
#[derive(Debug, Clone, Copy)]
pub(super) struct Register(pub(super) u32);

impl Register {
    pub(super) const FIRST: Self = Self(0);

    /// The kernel's number: the 16-byte registers 1 to 4 begin where every fourth 4-byte
    /// register, 8 to 23, does, and nft names those by the short number.
    pub(super) const fn number(self) -> u32 {
        if self.0.is_multiple_of(4) {
            libc::NFT_REG_1 as u32 + self.0 / 4
        } else {
            libc::NFT_REG32_00 as u32 + self.0
        }
    }
}

pub(super) const NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
pub(super) const IP_SADDR: (u32, u32) = (12, 4);
pub(super) const IP_DADDR: (u32, u32) = (16, 4);
pub(super) const IP6_SADDR: (u32, u32) = (8, 16);
pub(super) const IP6_DADDR: (u32, u32) = (24, 16);
pub(super) const TH_DPORT: (u32, u32) = (2, 2);

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (`include/uapi/linux/netfilter/nf_nat.h`).
pub(super) const RANDOM_FULLY: u32 = 1 << 4;
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`, from the same.
pub(super) const MAP_ADDRESS_AND_PORT: u32 = 1 | 1 << 1;
/// `IPS_DST_NAT` (`nf_conntrack_common.h`).
pub(super) const STATUS_DNAT: u32 = 1 << 5;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_SADDR`, `NFTA_FIB_F_DADDR`, `RTN_LOCAL`.
pub(super) const FIB_ADDRTYPE: u32 = 3;
pub(super) const FIB_SADDR: u32 = 1;
pub(super) const FIB_DADDR: u32 = 2;
pub(super) const RTN_LOCAL: u32 = 2;
pub(super) const LOOKUP_INVERT: u32 = 1;
pub(super) const DYNSET_UPDATE: u32 = libc::NFT_DYNSET_OP_UPDATE as u32;
/// `NFT_DYNSET_OP_DELETE` (`nf_tables.h`).
pub(super) const DYNSET_DELETE: u32 = 2;
pub(super) const META_PRIORITY: u32 = libc::NFT_META_PRIORITY as u32;
/// What `jhash` is taken modulo: all that nft lets it be.
pub(super) const HASH_MODULUS: u32 = u32::MAX;
/// `NFT_HASH_JENKINS` (`nf_tables.h`).
pub(super) const HASH_JENKINS: u32 = 0;
pub(super) const META_L4PROTO: u32 = libc::NFT_META_L4PROTO as u32;
pub(super) const META_MARK: u32 = libc::NFT_META_MARK as u32;
pub(super) const META_IIFNAME: u32 = libc::NFT_META_IIFNAME as u32;
/// Bytes of an interface name with its padding (`IFNAMSIZ`).
pub(super) const IFNAMSIZ: usize = 16;

/// For a lookup and for a statement that changes a map.
pub(super) const HASHED_FOR_LOOKUP: Register = Register(6);
pub(super) const HASHED_FOR_UPDATE: Register = Register(4);

pub(super) struct Encoder {
    pub(super) family: Family,
    pub(super) out: Vec<Expression>,
    /// Where what is hashed is loaded: behind the key, in the registers that nft 1.0.6 takes.
    pub(super) hashed_at: Register,
}

impl Encoder {
    pub(super) fn push(&mut self, name: &'static std::ffi::CStr, attributes: Vec<(u32, Value)>) {
        self.out.push(Expression { name, attributes });
    }

    /// Loads a key's parts one after the other; returns the first register behind them.
    pub(super) fn load_key(&mut self, key: &[Load], first: Register) -> Register {
        let mut register = first;
        for load in key {
            self.load(*load, register);
            register = Register(register.0 + self.width(*load));
        }
        register
    }

    /// How many 4-byte registers a load fills.
    pub(super) const fn width(&self, load: Load) -> u32 {
        let field = match load {
            Load::SourceAddress | Load::SourceNetwork { .. } | Load::DestinationAddress => {
                Field::Address
            }
            Load::Protocol => Field::Protocol,
            Load::DestinationPort => Field::Port,
            Load::Priority => Field::Number,
            Load::ClientHash { .. } => Field::ClientHash,
        };
        registers(field, self.family)
    }

    pub(super) const fn address_location(&self, load: Load) -> (u32, u32) {
        match (self.family, load) {
            (Family::V4, Load::SourceAddress | Load::SourceNetwork { .. }) => IP_SADDR,
            (Family::V4, _) => IP_DADDR,
            (Family::V6, Load::SourceAddress | Load::SourceNetwork { .. }) => IP6_SADDR,
            (Family::V6, _) => IP6_DADDR,
        }
    }

    pub(super) fn load(&mut self, load: Load, register: Register) {
        match load {
            Load::SourceAddress | Load::DestinationAddress => {
                let location = self.address_location(load);
                self.payload(NETWORK_HEADER, location, register);
            }
            Load::SourceNetwork { length } => {
                let location = self.address_location(load);
                self.payload(NETWORK_HEADER, location, register);
                let mask = mask(length, location.1);
                self.bitwise_at(register, &mask, &vec![0; mask.len()]);
            }
            Load::DestinationPort => {
                let transport = libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32;
                self.payload(transport, TH_DPORT, register);
            }
            Load::Protocol => self.push(
                c"meta",
                vec![
                    (sys::NFTNL_EXPR_META_KEY, Value::U32(META_L4PROTO)),
                    (sys::NFTNL_EXPR_META_DREG, Value::U32(register.number())),
                ],
            ),
            Load::Priority => self.push(
                c"meta",
                vec![
                    (sys::NFTNL_EXPR_META_KEY, Value::U32(META_PRIORITY)),
                    (sys::NFTNL_EXPR_META_DREG, Value::U32(register.number())),
                ],
            ),
            Load::ClientHash { seed } => self.client_hash(seed, register),
        }
    }

    /// `[ hash reg 1 = jhash(reg 2, 40, 0x1) % mod 4294967295 ]`, of what is loaded behind it.
    pub(super) fn client_hash(&mut self, seed: u32, register: Register) {
        let client = [
            Load::SourceAddress,
            Load::DestinationAddress,
            Load::Protocol,
            Load::DestinationPort,
        ];
        let from = self.hashed_at;
        let end = self.load_key(&client, from);
        let attributes = [
            (sys::NFTNL_EXPR_HASH_SREG, from.number()),
            (sys::NFTNL_EXPR_HASH_DREG, register.number()),
            (sys::NFTNL_EXPR_HASH_LEN, (end.0 - from.0) * 4),
            (sys::NFTNL_EXPR_HASH_MODULUS, HASH_MODULUS),
            (sys::NFTNL_EXPR_HASH_SEED, seed),
            (sys::NFTNL_EXPR_HASH_TYPE, HASH_JENKINS),
        ];
        let attributes = attributes.map(|(attribute, value)| (attribute, Value::U32(value)));
        self.push(c"hash", attributes.to_vec());
    }

    /// `[ payload load 4b @ network header + 12 => reg 2 ] [ hash reg 1 = jhash(reg 2, 4, 0x…) % mod 64 ]`
    pub(super) fn hash(&mut self, load: Load, modulus: u32, offset: u32) {
        let from = Register(4);
        self.load(load, from);
        let attributes = [
            (sys::NFTNL_EXPR_HASH_SREG, from.number()),
            (sys::NFTNL_EXPR_HASH_DREG, Register::FIRST.number()),
            (sys::NFTNL_EXPR_HASH_LEN, self.width(load) * 4),
            (sys::NFTNL_EXPR_HASH_MODULUS, modulus),
            (sys::NFTNL_EXPR_HASH_SEED, ADDRESS_SEED),
            (sys::NFTNL_EXPR_HASH_OFFSET, offset),
            (sys::NFTNL_EXPR_HASH_TYPE, HASH_JENKINS),
        ];
        let attributes = attributes.map(|(attribute, value)| (attribute, Value::U32(value)));
        self.push(c"hash", attributes.to_vec());
    }

    pub(super) fn payload(&mut self, base: u32, (offset, length): (u32, u32), register: Register) {
        self.push(
            c"payload",
            vec![
                (sys::NFTNL_EXPR_PAYLOAD_DREG, Value::U32(register.number())),
                (sys::NFTNL_EXPR_PAYLOAD_BASE, Value::U32(base)),
                (sys::NFTNL_EXPR_PAYLOAD_OFFSET, Value::U32(offset)),
                (sys::NFTNL_EXPR_PAYLOAD_LEN, Value::U32(length)),
            ],
        );
    }

    pub(super) fn meta(&mut self, key: u32) {
        self.push(
            c"meta",
            vec![
                (sys::NFTNL_EXPR_META_KEY, Value::U32(key)),
                (
                    sys::NFTNL_EXPR_META_DREG,
                    Value::U32(Register::FIRST.number()),
                ),
            ],
        );
    }

    pub(super) fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        self.bitwise_at(Register::FIRST, mask, xor);
    }

    pub(super) fn bitwise_at(&mut self, register: Register, mask: &[u8], xor: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or(0);
        self.push(
            c"bitwise",
            vec![
                (sys::NFTNL_EXPR_BITWISE_SREG, Value::U32(register.number())),
                (sys::NFTNL_EXPR_BITWISE_DREG, Value::U32(register.number())),
                (sys::NFTNL_EXPR_BITWISE_LEN, Value::U32(length)),
                (sys::NFTNL_EXPR_BITWISE_MASK, Value::Bytes(mask.to_vec())),
                (sys::NFTNL_EXPR_BITWISE_XOR, Value::Bytes(xor.to_vec())),
            ],
        );
    }

    pub(super) fn compare(&mut self, not_equal: bool, data: &[u8]) {
        let operation = if not_equal {
            libc::NFT_CMP_NEQ
        } else {
            libc::NFT_CMP_EQ
        };
        self.push(
            c"cmp",
            vec![
                (
                    sys::NFTNL_EXPR_CMP_SREG,
                    Value::U32(Register::FIRST.number()),
                ),
                (
                    sys::NFTNL_EXPR_CMP_OP,
                    Value::U32(operation.cast_unsigned()),
                ),
                (sys::NFTNL_EXPR_CMP_DATA, Value::Bytes(data.to_vec())),
            ],
        );
    }

    pub(super) fn lookup(&mut self, set: SetId, to: Option<u32>, invert: bool) {
        let mut attributes = vec![
            (
                sys::NFTNL_EXPR_LOOKUP_SREG,
                Value::U32(Register::FIRST.number()),
            ),
            (
                sys::NFTNL_EXPR_LOOKUP_SET,
                Value::Text(set.name().to_owned()),
            ),
        ];
        attributes.extend(to.map(|register| (sys::NFTNL_EXPR_LOOKUP_DREG, Value::U32(register))));
        let flags = if invert { LOOKUP_INVERT } else { 0 };
        attributes.push((sys::NFTNL_EXPR_LOOKUP_FLAGS, Value::U32(flags)));
        self.push(c"lookup", attributes);
    }
}

/// So many bits of ones in so many bytes.
pub(super) fn mask(prefix: u8, width: u32) -> Vec<u8> {
    (0..width)
        .map(|byte| {
            let bits = u32::from(prefix).saturating_sub(byte * 8).min(8);
            u8::MAX.checked_shl(8 - bits).unwrap_or(0)
        })
        .collect()
}

pub(super) const fn registers(field: Field, family: Family) -> u32 {
    match (field, family) {
        (Field::Address, Family::V6) => 4,
        _ => 1,
    }
}
