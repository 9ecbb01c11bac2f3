//! From the program's statements to nftables expressions.
//!
//! Each function says which `nft --debug=netlink` lines it produces: nft's own encoding of the
//! same rule is the reference, so that `nft list ruleset` prints what the dry run says. No
//! unsafe code: building the C objects is `libnftnl`'s business.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nftnl::nftnl_sys as sys;
use sys::libc;

use super::libnftnl::{Expression, Value};
use super::operands::*;
use crate::core::model::Family;
use crate::dataplane::nftables::program::sets::{Field, SetId};
use crate::dataplane::nftables::program::statement::{Load, Priority, Rule, Statement};

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

impl Encoder {
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
            Statement::ProtocolIs(protocol) => {
                self.meta(META_L4PROTO);
                self.compare(false, &[protocol.number()]);
            }
            Statement::Counter => self.push(c"counter", Vec::new()),
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
            Priority::Random { modulus, offset } => {
                self.number(libc::NFT_NG_RANDOM as u32, *modulus, *offset);
            }
            Priority::Turn { modulus, offset } => {
                self.number(libc::NFT_NG_INCREMENTAL as u32, *modulus, *offset);
            }
            Priority::Hash {
                load,
                modulus,
                offset,
            } => self.hash(*load, *modulus, *offset),
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

    /// `[ numgen reg 1 = random mod 10 offset 3221225472 ]`
    fn number(&mut self, kind: u32, modulus: u32, offset: u32) {
        let attributes = [
            (sys::NFTNL_EXPR_NG_DREG, Register::FIRST.number()),
            (sys::NFTNL_EXPR_NG_MODULUS, modulus),
            (sys::NFTNL_EXPR_NG_TYPE, kind),
            (sys::NFTNL_EXPR_NG_OFFSET, offset),
        ];
        let attributes = attributes.map(|(attribute, value)| (attribute, Value::U32(value)));
        self.push(c"numgen", attributes.to_vec());
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
}
