//! Elements as the kernel lists them are read back as what they were written from.

use proptest::prelude::*;

use super::*;
use crate::core::ir::{Draw, SourcePolicy};
use crate::dataplane::nftables::program::lots::{LANES, Lot};
use crate::dataplane::nftables::program::numbers::{self, CLASSES};
use crate::dataplane::nftables::program::sets::SETS;
use crate::dataplane::nftables::program::sizes::Size;
use crate::dataplane::nftables::wire::intervals::service_cidrs;
use ipnetwork::IpNetwork;

fn read_back(element: &Element<'_>, family: Family) -> Option<Vec<Element<'static>>> {
    let mut bytes = Vec::new();
    put(&mut bytes, element);
    assert!(
        bytes.len() <= ELEMENT_MAX,
        "{} bytes: {element:?}",
        bytes.len()
    );
    let set = element.set();
    let listed: Vec<Listed<'_>> = Attributes(&bytes)
        .map(|(kind, element)| {
            assert_eq!(kind, NFTA_LIST_ELEM);
            Listed::read(element).unwrap()
        })
        .collect();
    if set == SetId::ServiceCidrs {
        let bounds = listed
            .iter()
            .map(|listed| listed.interval_bound(family))
            .collect::<Option<Vec<_>>>()?;
        let ranges = service_cidrs(bounds)?.into_iter();
        return Some(ranges.map(Element::Shared).collect());
    }
    if set.is_of_the_program() {
        let verdicts = listed.iter().map(|listed| {
            let (number, verdict) = listed.number_verdict()?;
            let verdict = verdict.into();
            Some(Element::Verdict {
                map: set,
                number,
                verdict,
            })
        });
        return verdicts.collect();
    }
    let elements = listed.iter().map(|listed| listed.element(set, family));
    elements
        .map(|element| element.map(Element::into_owned))
        .collect()
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
    ]
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    (0usize..3).prop_map(|index| Protocol::ALL[index])
}

fn any_destination() -> impl Strategy<Value = Destination> {
    let host = prop_oneof![
        any_address().prop_map(Host::Address),
        Just(Host::Node(Family::V4)),
        Just(Host::Node(Family::V6)),
    ];
    (host, any_protocol(), any::<u16>()).prop_map(|(host, protocol, port)| Destination {
        host,
        protocol,
        port,
    })
}

/// An address of a destination's family.
fn address_like(destination: Destination, bits: u128) -> IpAddr {
    match destination.family() {
        Family::V4 => IpAddr::V4((bits as u32).into()),
        Family::V6 => IpAddr::V6(bits.into()),
    }
}

fn any_network() -> impl Strategy<Value = (u128, u8)> {
    (any::<u128>(), 0u8..=128)
}

fn network_of(address: IpAddr, prefix: u8) -> IpNetwork {
    let most = if address.is_ipv4() { 32 } else { 128 };
    networks::canonical(IpNetwork::new(address, prefix % (most + 1)).unwrap())
}

fn any_shape(node_port: bool) -> impl Strategy<Value = Shape> {
    let policy = prop_oneof![
        Just(SourcePolicy::ClusterIp),
        Just(SourcePolicy::External),
        Just(SourcePolicy::ExternalLocal),
    ];
    let draw = proptest::sample::select(Draw::ALL.to_vec());
    let balance = (policy, 0..200_000u32, 0..=CLASSES, draw, 0..LANES);
    prop_oneof![
        Just(Shape::Drop),
        balance.prop_map(
            move |(policy, endpoints, class, draw, lane)| Shape::Balance {
                node_port,
                policy,
                class,
                lot: Lot::new(draw, Size::of(endpoints), lane),
            }
        ),
    ]
}

/// An element, and the family of its table.
fn any_element() -> impl Strategy<Value = (Element<'static>, Family)> {
    let of_destination = (any_destination(), any::<(bool, u128, u16)>()).prop_flat_map(
        |(destination, (primary, bits, port))| {
            let list = if primary {
                List::Primary
            } else {
                List::External
            };
            let endpoint = Endpoint::new(address_like(destination, bits), port);
            let number = numbers::place(list, u32::from(port));
            let node_port = matches!(destination.host, Host::Node(_));
            let label = ("[a-z/:-]{0,128}", proptest::option::of(1u32..86_400));
            let shape = (any_shape(node_port), label.clone()).prop_map(
                move |(shape, (label, wanted_seconds))| Element::Shape {
                    destination,
                    list,
                    shape,
                    comment: primary.then(|| Comment {
                        // What does not fit is cut off.
                        wanted_seconds: wanted_seconds.filter(|_| label.len() < 100),
                        label: label.into(),
                    }),
                },
            );
            prop_oneof![
                shape,
                Just(Element::Endpoint {
                    destination,
                    number,
                    endpoint
                }),
                Just(Element::Id {
                    destination,
                    number,
                    id: bits as u32
                }),
                label.0.prop_map(move |label| Element::NoEndpoints {
                    destination,
                    label: label.into(),
                }),
            ]
        },
    );
    let at_address = (any_address(), any_protocol(), any::<u16>(), any_network()).prop_flat_map(
        |(address, protocol, port, (bits, prefix))| {
            let host = Host::Address(address);
            let destination = Destination {
                host,
                protocol,
                port,
            };
            let network = network_of(address_like(destination, bits), prefix);
            let endpoint = Endpoint::new(address, port);
            prop_oneof![
                Just(Element::Guarded { destination }),
                Just(Element::AllowedSource {
                    destination,
                    network
                }),
                Just(Element::Shared(Shared::ClusterIp(address))),
                Just(Element::Shared(Shared::NodePortAddress(address))),
                Just(Element::Shared(Shared::ServiceCidr(network))),
                Just(Element::Shared(Shared::Hairpin { protocol, endpoint })),
            ]
        },
    );
    let verdict = prop_oneof![
        Just(Verdict::Drop),
        "[a-z0-9-]{1,20}".prop_map(Verdict::Jump),
        "[a-z0-9-]{1,20}".prop_map(Verdict::Goto),
    ];
    let verdict = (any::<u32>(), verdict).prop_map(|(number, verdict)| Element::Verdict {
        map: SetId::Draws,
        number,
        verdict: verdict.into(),
    });
    prop_oneof![of_destination, at_address, verdict].prop_map(|element| {
        let family = element.family().unwrap_or(Family::V4);
        (element, family)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_element_is_read_back_as_it_was_written((element, family) in any_element()) {
        prop_assert_eq!(read_back(&element, family), Some(vec![element]));
    }

    #[test]
    fn no_bytes_from_the_kernel_can_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for element in listed(&bytes).chain([&bytes[..]]) {
            if let Some(listed) = Listed::read(element) {
                for set in SETS {
                    for family in Family::BOTH {
                        let _ = (listed.element(set, family), listed.interval_bound(family), listed.number_verdict());
                    }
                }
            }
        }
    }
}

#[test]
fn an_endpoint_is_44_bytes_of_ipv4_and_68_of_ipv6() {
    for (address, length) in [("10.0.0.1", 44), ("fd00::1", 68)] {
        let address: IpAddr = address.parse().unwrap();
        let element = Element::Endpoint {
            destination: Destination {
                host: Host::Address(address),
                protocol: Protocol::Tcp,
                port: 80,
            },
            number: numbers::place(List::Primary, 0),
            endpoint: Endpoint::new(address, 80),
        };
        let mut bytes = Vec::new();
        put(&mut bytes, &element);
        assert_eq!(bytes.len(), length);
    }
}

#[test]
fn neighbouring_service_ranges_stay_apart() {
    let bounds = |texts: &[(&str, bool)]| {
        texts
            .iter()
            .map(|(text, end)| (text.parse().unwrap(), *end))
            .collect::<Vec<(IpAddr, bool)>>()
    };
    let ranges = service_cidrs(bounds(&[
        ("0.0.0.0", true),
        ("10.1.0.0", false),
        ("10.1.0.0", true),
        ("10.0.0.0", false),
        ("10.2.0.0", true),
    ]))
    .unwrap();
    let expected =
        ["10.0.0.0/16", "10.1.0.0/16"].map(|cidr| Shared::ServiceCidr(cidr.parse().unwrap()));
    assert_eq!(ranges, expected);
    for odd in [
        &[("10.0.0.0", false), ("10.0.0.5", true)][..],
        &[("10.0.0.0", false), ("10.1.0.0", false)],
        &[("10.0.0.0", true)],
    ] {
        assert_eq!(service_cidrs(bounds(odd)), None, "{odd:?}");
    }
}
