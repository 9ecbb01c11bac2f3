//! Addresses and networks as `iptables-save` prints them, which is as glibc does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// An address. Of IPv6, one whose first 96 bits alone are zero ends like one of IPv4 (`inet_ntop_ipv6` in glibc's
/// `resolv/inet_ntop.c`).
pub(super) fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V6(v6) if ends_like_ipv4(v6) => {
            let [.., a, b, c, d] = v6.octets();
            format!("::{}", Ipv4Addr::new(a, b, c, d))
        }
        other => other.to_string(),
    }
}

fn ends_like_ipv4(address: Ipv6Addr) -> bool {
    let [head @ .., last_but_one, _] = address.segments();
    head == [0; 6] && last_but_one != 0
}

/// What goes before a network's match (`-s` or `-d`), the network, and a space; nothing if it has everybody, which is
/// how that is listed.
pub(super) fn network(option: &str, network: IpNetwork) -> String {
    if network.prefix() == 0 {
        return String::new();
    }
    format!(
        "{option} {}/{} ",
        address(network.network()),
        network.prefix()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_printed_as_glibc_prints_them() {
        let cases = [
            ("10.96.0.1", "10.96.0.1"),
            ("::", "::"),
            ("::1", "::1"),
            ("::1:0", "::0.1.0.0"),
            ("::102:304", "::1.2.3.4"),
            ("::ffff:1.2.3.4", "::ffff:1.2.3.4"),
            ("::1:102:304", "::1:102:304"),
            ("2001:db8:0:0:1::1", "2001:db8::1:0:0:1"),
            ("2001:0:1:0:1:0:1:0", "2001:0:1:0:1:0:1:0"),
        ];
        for (given, printed) in cases {
            assert_eq!(address(given.parse().unwrap()), printed, "{given}");
        }
        assert_eq!(network("-s", "0.0.0.0/0".parse().unwrap()), "");
        assert_eq!(network("-d", "::/96".parse().unwrap()), "-d ::/96 ");
    }
}
