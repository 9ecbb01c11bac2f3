//! Elements as the kernel lists them are read back as what they were written from.

use proptest::prelude::*;

use super::*;
use crate::ir::SourcePolicy;

fn read_back(entry: &Entry) -> Option<Vec<Entry>> {
    let mut bytes = Vec::new();
    put_entry(&mut bytes, entry);
    assert!(
        bytes.len() <= ELEMENT_MAX,
        "{} bytes: {entry:?}",
        bytes.len()
    );
    let family = entry.family();
    let set = SetId::of(entry);
    let elements: Vec<Element<'_>> = Attributes(&bytes)
        .map(|(kind, element)| {
            assert_eq!(kind, NFTA_LIST_ELEM);
            Element::read(element).unwrap()
        })
        .collect();
    if set == SetId::ServiceCidrs {
        let bounds = elements
            .iter()
            .map(|element| element.interval_bound(family))
            .collect::<Option<Vec<_>>>()?;
        return service_cidrs(bounds);
    }
    elements
        .iter()
        .map(|element| element.entry(set, family))
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

fn any_route() -> impl Strategy<Value = Route> {
    let policy = prop_oneof![
        Just(SourcePolicy::ClusterIp),
        Just(SourcePolicy::External),
        Just(SourcePolicy::ExternalLocal),
    ];
    prop_oneof![
        Just(Route::Drop),
        (policy, 2u32..32, proptest::option::of(any::<u32>())).prop_map(
            |(policy, bits, affinity)| Route::Balance {
                policy,
                places: 1 << bits,
                affinity
            }
        ),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let label = "[a-z/:-]{0,200}".prop_map(|text| Label::new(&text));
    prop_oneof![
        (any_destination(), any_route(), label.clone()).prop_map(|(destination, route, label)| {
            Entry::Route {
                destination,
                route,
                label,
            }
        }),
        (any_destination(), any_route()).prop_map(|(destination, route)| {
            let route = match route {
                Route::Balance {
                    places, affinity, ..
                } => Route::Balance {
                    policy: SourcePolicy::ExternalLocal,
                    places,
                    affinity,
                },
                Route::Drop => Route::Drop,
            };
            Entry::ExternalRoute { destination, route }
        }),
        (
            any_destination(),
            any::<bool>(),
            0u32..1 << 24,
            any::<u128>(),
            any::<u16>()
        )
            .prop_map(|(destination, primary, index, bits, port)| Entry::Slot {
                destination,
                list: if primary {
                    List::Primary
                } else {
                    List::External
                },
                index,
                endpoint: Endpoint::new(address_like(destination, bits), port),
            }),
        (any_destination(), label)
            .prop_map(|(destination, label)| Entry::NoEndpoints { destination, label }),
        (any_destination(), any::<u32>()).prop_map(|(destination, timeout_seconds)| {
            Entry::Remember {
                destination,
                timeout_seconds,
            }
        }),
        (any_address(), any_protocol(), any::<u16>()).prop_map(|(address, protocol, port)| {
            Entry::Guarded {
                destination: Destination {
                    host: Host::Address(address),
                    protocol,
                    port,
                },
            }
        }),
        (any_address(), any_protocol(), any::<u16>(), any_network()).prop_map(
            |(address, protocol, port, (bits, prefix))| {
                let destination = Destination {
                    host: Host::Address(address),
                    protocol,
                    port,
                };
                Entry::AllowedSource {
                    destination,
                    network: network_of(address_like(destination, bits), prefix),
                }
            }
        ),
        any_address().prop_map(|address| Entry::Shared(Shared::ClusterIp(address))),
        any_address().prop_map(|address| Entry::Shared(Shared::NodePortAddress(address))),
        (any_address(), any::<u8>()).prop_map(|(address, prefix)| {
            Entry::Shared(Shared::ServiceCidr(network_of(address, prefix)))
        }),
        (any_address(), any::<u16>(), any_protocol()).prop_map(|(address, port, protocol)| {
            Entry::Shared(Shared::Hairpin {
                protocol,
                endpoint: Endpoint::new(address, port),
            })
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn an_entry_is_read_back_from_its_element(entry in any_entry()) {
        prop_assert_eq!(read_back(&entry), Some(vec![entry]));
    }

    #[test]
    fn no_bytes_from_the_kernel_can_cause_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        for element in listed(&bytes).chain([&bytes[..]]) {
            if let Some(element) = Element::read(element) {
                for set in crate::backend::nftables::sets::FIXED_SETS {
                    for family in Family::BOTH {
                        let _ = (element.entry(set, family), element.interval_bound(family), element.remembered(family));
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
        let entry = Entry::Slot {
            destination: Destination {
                host: Host::Address(address),
                protocol: Protocol::Tcp,
                port: 80,
            },
            list: List::Primary,
            index: 0,
            endpoint: Endpoint::new(address, 80),
        };
        let mut bytes = Vec::new();
        put_entry(&mut bytes, &entry);
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
    let entries = service_cidrs(bounds(&[
        ("0.0.0.0", true),
        ("10.1.0.0", false),
        ("10.1.0.0", true),
        ("10.0.0.0", false),
        ("10.2.0.0", true),
    ]))
    .unwrap();
    let expected = ["10.0.0.0/16", "10.1.0.0/16"]
        .map(|cidr| Entry::Shared(Shared::ServiceCidr(cidr.parse().unwrap())));
    assert_eq!(entries, expected);
    for odd in [
        &[("10.0.0.0", false), ("10.0.0.5", true)][..],
        &[("10.0.0.0", false), ("10.1.0.0", false)],
        &[("10.0.0.0", true)],
    ] {
        assert_eq!(service_cidrs(bounds(odd)), None, "{odd:?}");
    }
}
