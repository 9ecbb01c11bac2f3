//! From the program's statements to nftables expressions.
//!
//! Each function says which `nft --debug=netlink` lines it produces: nft's own encoding of the
//! same rule is the reference, so that `nft list ruleset` prints what the dry run says. No
//! unsafe code: building the C objects is `ffi`'s business.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nftnl::nftnl_sys as sys;
use sys::libc;

use super::ffi::{Expression, Value};
use crate::core::model::Family;
use crate::dataplane::nftables::program::sets::{Field, SetId};
use crate::dataplane::nftables::program::statement::{Load, Priority, Rule, Statement};

/// A 32-bit register by its number among all of them: 4 bytes each, 16 in all.
#[derive(Debug, Clone, Copy)]
struct Register(u32);

impl Register {
    const FIRST: Self = Self(0);

    /// The kernel's number: the 16-byte registers 1 to 4 begin where every fourth 4-byte
    /// register, 8 to 23, does, and nft names those by the short number.
    const fn number(self) -> u32 {
        if self.0.is_multiple_of(4) {
            libc::NFT_REG_1 as u32 + self.0 / 4
        } else {
            libc::NFT_REG32_00 as u32 + self.0
        }
    }
}

const NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
const IP_SADDR: (u32, u32) = (12, 4);
const IP_DADDR: (u32, u32) = (16, 4);
const IP6_SADDR: (u32, u32) = (8, 16);
const IP6_DADDR: (u32, u32) = (24, 16);
const TH_DPORT: (u32, u32) = (2, 2);

/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (`include/uapi/linux/netfilter/nf_nat.h`).
const RANDOM_FULLY: u32 = 1 << 4;
/// `NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED`, from the same.
const MAP_ADDRESS_AND_PORT: u32 = 1 | 1 << 1;
/// `IPS_DST_NAT` (`nf_conntrack_common.h`).
const STATUS_DNAT: u32 = 1 << 5;
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_SADDR`, `NFTA_FIB_F_DADDR`, `RTN_LOCAL`.
const FIB_ADDRTYPE: u32 = 3;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;
const LOOKUP_INVERT: u32 = 1;
const DYNSET_UPDATE: u32 = libc::NFT_DYNSET_OP_UPDATE as u32;
/// `NFT_DYNSET_OP_DELETE` (`nf_tables.h`).
const DYNSET_DELETE: u32 = 2;
const META_PRIORITY: u32 = libc::NFT_META_PRIORITY as u32;
/// What `jhash` is taken modulo: all that nft lets it be.
const HASH_MODULUS: u32 = u32::MAX;
/// `NFT_HASH_JENKINS` (`nf_tables.h`).
const HASH_JENKINS: u32 = 0;
const META_L4PROTO: u32 = libc::NFT_META_L4PROTO as u32;
const META_MARK: u32 = libc::NFT_META_MARK as u32;
const META_IIFNAME: u32 = libc::NFT_META_IIFNAME as u32;
/// Bytes of an interface name with its padding (`IFNAMSIZ`).
const IFNAMSIZ: usize = 16;

/// The expressions of a rule.
pub(super) fn rule(family: Family, rule: &Rule) -> Vec<Expression> {
    let mut encoder = Encoder {
        family,
        out: Vec::new(),
        hashed_at: HASHED_FOR_LOOKUP,
    };
    for statement in rule {
        encoder.statement(statement);
    }
    encoder.out
}

/// For a lookup and for a statement that changes a map.
const HASHED_FOR_LOOKUP: Register = Register(6);
const HASHED_FOR_UPDATE: Register = Register(4);

struct Encoder {
    family: Family,
    out: Vec<Expression>,
    /// Where what is hashed is loaded: behind the key, in the registers that nft 1.0.6 takes.
    hashed_at: Register,
}

impl Encoder {
    fn push(&mut self, name: &'static std::ffi::CStr, attributes: Vec<(u32, Value)>) {
        self.out.push(Expression { name, attributes });
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::DestinationTranslated => {
                self.ct_bit(libc::NFT_CT_STATUS as u32, STATUS_DNAT);
            }
            Statement::AddressIn {
                load,
                network,
                negate,
            } => self.address_in(*load, *network, *negate),
            Statement::AddressIsLocal { load, negate } => self.address_is_local(*load, *negate),
            Statement::Interface {
                name,
                prefix,
                negate,
            } => self.interface(name, *prefix, *negate),
            Statement::InSet { key, set, negate } => self.in_set(key, *set, *negate),
            Statement::Marked(bit) => {
                self.meta(META_MARK);
                self.bitwise(&bit.to_ne_bytes(), &[0; 4]);
                self.compare(true, &[0; 4]);
            }
            Statement::Mark(bit) => self.set_mark(!bit, *bit),
            Statement::Unmark(bit) => self.set_mark(u32::MAX, *bit),
            Statement::SetPriority(priority) => self.set_priority(priority),
            Statement::PriorityIs { mask, value } => {
                self.masked_priority(*mask);
                self.compare(false, &value.to_ne_bytes());
            }
            Statement::PriorityVerdict { mask, map } => {
                self.masked_priority(*mask);
                self.lookup(*map, Some(libc::NFT_REG_VERDICT as u32), false);
            }
            Statement::TranslateTo { key, map } => self.translate_to(key, *map),
            Statement::Remember {
                key,
                timeout_seconds,
            } => self.clients(key, DYNSET_UPDATE, *timeout_seconds),
            Statement::Forget { key } => self.clients(key, DYNSET_DELETE, 0),
            Statement::Masquerade => self.push(
                c"masq",
                vec![(sys::NFTNL_EXPR_MASQ_FLAGS, Value::U32(RANDOM_FULLY))],
            ),
            Statement::Reject => self.reject(),
            Statement::Drop => self.verdict(libc::NF_DROP, None),
            Statement::Return => self.verdict(libc::NFT_RETURN, None),
            Statement::Jump(chain) => self.verdict(libc::NFT_JUMP, Some(chain)),
            Statement::Goto(chain) => self.verdict(libc::NFT_GOTO, Some(chain)),
        }
    }

    /// `[ ct load status => reg 1 ]`
    fn ct(&mut self, key: u32) {
        self.push(
            c"ct",
            vec![
                (sys::NFTNL_EXPR_CT_KEY, Value::U32(key)),
                (
                    sys::NFTNL_EXPR_CT_DREG,
                    Value::U32(Register::FIRST.number()),
                ),
            ],
        );
    }

    /// `[ ct load state => reg 1 ] [ bitwise … ] [ cmp neq reg 1 0x00000000 ]`
    fn ct_bit(&mut self, key: u32, bit: u32) {
        self.ct(key);
        self.bitwise(&bit.to_ne_bytes(), &[0; 4]);
        self.compare(true, &[0; 4]);
    }

    /// `[ payload load 2b @ network header + 12 => reg 1 ] [ cmp eq reg 1 … ]`, loading only
    /// the bytes that a whole-byte prefix needs, as nft does.
    fn address_in(&mut self, load: Load, network: IpNetwork, negate: bool) {
        let (offset, width) = self.address_location(load);
        let octets = match network.ip() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let prefix = u32::from(network.prefix());
        if prefix.is_multiple_of(8) {
            let whole_bytes = prefix / 8;
            self.payload(NETWORK_HEADER, (offset, whole_bytes), Register::FIRST);
            self.compare(
                negate,
                octets.get(..whole_bytes as usize).unwrap_or(&octets),
            );
        } else {
            self.payload(NETWORK_HEADER, (offset, width), Register::FIRST);
            self.bitwise(&mask(network.prefix(), width), &vec![0; octets.len()]);
            self.compare(negate, &octets);
        }
    }

    /// `[ fib daddr type => reg 1 ] [ cmp eq reg 1 0x00000002 ]`
    fn address_is_local(&mut self, load: Load, negate: bool) {
        let flags = match load {
            Load::SourceAddress => FIB_SADDR,
            _ => FIB_DADDR,
        };
        self.push(
            c"fib",
            vec![
                (sys::NFTNL_EXPR_FIB_RESULT, Value::U32(FIB_ADDRTYPE)),
                (sys::NFTNL_EXPR_FIB_FLAGS, Value::U32(flags)),
                (
                    sys::NFTNL_EXPR_FIB_DREG,
                    Value::U32(Register::FIRST.number()),
                ),
            ],
        );
        self.compare(negate, &RTN_LOCAL.to_ne_bytes());
    }

    /// `[ meta load iifname => reg 1 ] [ cmp eq reg 1 … ]`; a prefix compares fewer bytes.
    fn interface(&mut self, name: &str, prefix: bool, negate: bool) {
        self.meta(META_IIFNAME);
        let mut bytes = name.as_bytes().to_vec();
        bytes.truncate(IFNAMSIZ - 1);
        if !prefix {
            bytes.resize(IFNAMSIZ, 0);
        }
        self.compare(negate, &bytes);
    }

    fn in_set(&mut self, key: &[Load], set: SetId, negate: bool) {
        self.load_key(key, Register::FIRST);
        self.lookup(set, None, negate);
    }

    /// `[ meta load mark => reg 1 ] [ bitwise reg 1 = ( reg 1 & … ) ^ … ] [ meta set mark … ]`
    fn set_mark(&mut self, mask: u32, xor: u32) {
        self.meta(META_MARK);
        self.bitwise(&mask.to_ne_bytes(), &xor.to_ne_bytes());
        self.set_meta(META_MARK);
    }

    /// `[ … => reg 1 ] [ meta set priority with reg 1 ]`
    fn set_priority(&mut self, priority: &Priority) {
        match priority {
            Priority::Map { key, map } => {
                self.load_key(key, Register::FIRST);
                self.lookup(*map, Some(Register::FIRST.number()), false);
            }
            Priority::Random { modulus, offset } => self.push(
                c"numgen",
                vec![
                    (
                        sys::NFTNL_EXPR_NG_DREG,
                        Value::U32(Register::FIRST.number()),
                    ),
                    (sys::NFTNL_EXPR_NG_MODULUS, Value::U32(*modulus)),
                    (
                        sys::NFTNL_EXPR_NG_TYPE,
                        Value::U32(libc::NFT_NG_RANDOM as u32),
                    ),
                    (sys::NFTNL_EXPR_NG_OFFSET, Value::U32(*offset)),
                ],
            ),
            Priority::And(mask) => self.masked_priority(*mask),
            Priority::Or(bits) => {
                self.meta(META_PRIORITY);
                self.bitwise(&(!bits).to_ne_bytes(), &bits.to_ne_bytes());
            }
            Priority::Number(number) => self.push(
                c"immediate",
                vec![
                    (
                        sys::NFTNL_EXPR_IMM_DREG,
                        Value::U32(Register::FIRST.number()),
                    ),
                    (
                        sys::NFTNL_EXPR_IMM_DATA,
                        Value::Bytes(number.to_ne_bytes().to_vec()),
                    ),
                ],
            ),
        }
        self.set_meta(META_PRIORITY);
    }

    /// `[ meta load priority => reg 1 ] [ bitwise reg 1 = ( reg 1 & … ) ^ 0x00000000 ]`
    fn masked_priority(&mut self, mask: u32) {
        self.meta(META_PRIORITY);
        self.bitwise(&mask.to_ne_bytes(), &[0; 4]);
    }

    fn set_meta(&mut self, key: u32) {
        self.push(
            c"meta",
            vec![
                (sys::NFTNL_EXPR_META_KEY, Value::U32(key)),
                (
                    sys::NFTNL_EXPR_META_SREG,
                    Value::U32(Register::FIRST.number()),
                ),
            ],
        );
    }

    /// `[ lookup … dreg 1 ] [ nat dnat ip addr_min reg 1 proto_min reg 9 ]`, with the rest that
    /// the kernel fills in, so that it lists the rule as it was sent.
    fn translate_to(&mut self, key: &[Load], map: SetId) {
        self.load_key(key, Register::FIRST);
        self.lookup(map, Some(Register::FIRST.number()), false);
        let address = Register::FIRST.number();
        let port = Register(registers(Field::Address, self.family)).number();
        let family = u32::from(crate::host::netlink::family_number(self.family));
        let kind = libc::NFT_NAT_DNAT.cast_unsigned();
        let attributes = [
            (sys::NFTNL_EXPR_NAT_TYPE, kind),
            (sys::NFTNL_EXPR_NAT_FAMILY, family),
            (sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, address),
            (sys::NFTNL_EXPR_NAT_REG_ADDR_MAX, address),
            (sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, port),
            (sys::NFTNL_EXPR_NAT_REG_PROTO_MAX, port),
            (sys::NFTNL_EXPR_NAT_FLAGS, MAP_ADDRESS_AND_PORT),
        ];
        let attributes = attributes.map(|(attribute, value)| (attribute, Value::U32(value)));
        self.push(c"nat", attributes.to_vec());
    }

    /// `[ dynset update reg_key 1 set affinity sreg_data 2 timeout 10800000ms ]`
    fn clients(&mut self, key: &[Load], operation: u32, timeout_seconds: u32) {
        self.hashed_at = HASHED_FOR_UPDATE;
        self.load_key(key, Register::FIRST);
        self.hashed_at = HASHED_FOR_LOOKUP;
        // The key has at most 16 bytes.
        let data_at = Register(4);
        self.load(Load::Priority, data_at);
        let milliseconds = u64::from(timeout_seconds) * 1000;
        let attributes = vec![
            (
                sys::NFTNL_EXPR_DYNSET_SREG_KEY,
                Value::U32(Register::FIRST.number()),
            ),
            (
                sys::NFTNL_EXPR_DYNSET_SREG_DATA,
                Value::U32(data_at.number()),
            ),
            (sys::NFTNL_EXPR_DYNSET_OP, Value::U32(operation)),
            (sys::NFTNL_EXPR_DYNSET_TIMEOUT, Value::U64(milliseconds)),
            (
                sys::NFTNL_EXPR_DYNSET_SET_NAME,
                Value::Text(SetId::Affinity.name().to_owned()),
            ),
        ];
        self.push(c"dynset", attributes);
    }

    /// `[ reject type 0 code 3 ]`, and code 4 in IPv6: port unreachable.
    fn reject(&mut self) {
        let code = match self.family {
            Family::V4 => 3,
            Family::V6 => 4,
        };
        self.push(
            c"reject",
            vec![
                (
                    sys::NFTNL_EXPR_REJECT_TYPE,
                    Value::U32(libc::NFT_REJECT_ICMP_UNREACH as u32),
                ),
                (sys::NFTNL_EXPR_REJECT_CODE, Value::U8(code)),
            ],
        );
    }

    /// `[ immediate reg 0 goto -> lb-3 ]`
    fn verdict(&mut self, code: i32, chain: Option<&String>) {
        let mut attributes = vec![
            (
                sys::NFTNL_EXPR_IMM_DREG,
                Value::U32(libc::NFT_REG_VERDICT as u32),
            ),
            (
                sys::NFTNL_EXPR_IMM_VERDICT,
                Value::U32(code.cast_unsigned()),
            ),
        ];
        attributes
            .extend(chain.map(|chain| (sys::NFTNL_EXPR_IMM_CHAIN, Value::Text(chain.clone()))));
        self.push(c"immediate", attributes);
    }

    /// Loads a key's parts one after the other; returns the first register behind them.
    fn load_key(&mut self, key: &[Load], first: Register) -> Register {
        let mut register = first;
        for load in key {
            self.load(*load, register);
            register = Register(register.0 + self.width(*load));
        }
        register
    }

    /// How many 4-byte registers a load fills.
    const fn width(&self, load: Load) -> u32 {
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

    const fn address_location(&self, load: Load) -> (u32, u32) {
        match (self.family, load) {
            (Family::V4, Load::SourceAddress | Load::SourceNetwork { .. }) => IP_SADDR,
            (Family::V4, _) => IP_DADDR,
            (Family::V6, Load::SourceAddress | Load::SourceNetwork { .. }) => IP6_SADDR,
            (Family::V6, _) => IP6_DADDR,
        }
    }

    fn load(&mut self, load: Load, register: Register) {
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
    fn client_hash(&mut self, seed: u32, register: Register) {
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

    fn payload(&mut self, base: u32, (offset, length): (u32, u32), register: Register) {
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

    fn meta(&mut self, key: u32) {
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

    fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        self.bitwise_at(Register::FIRST, mask, xor);
    }

    fn bitwise_at(&mut self, register: Register, mask: &[u8], xor: &[u8]) {
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

    fn compare(&mut self, not_equal: bool, data: &[u8]) {
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

    fn lookup(&mut self, set: SetId, to: Option<u32>, invert: bool) {
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
fn mask(prefix: u8, width: u32) -> Vec<u8> {
    (0..width)
        .map(|byte| {
            let bits = u32::from(prefix).saturating_sub(byte * 8).min(8);
            u8::MAX.checked_shl(8 - bits).unwrap_or(0)
        })
        .collect()
}

const fn registers(field: Field, family: Family) -> u32 {
    match (field, family) {
        (Field::Address, Family::V6) => 4,
        _ => 1,
    }
}
