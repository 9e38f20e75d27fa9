//! Whose an address is, for the limits per address.

use std::net::{IpAddr, Ipv6Addr};

/// An IPv4 address, or the network of 64 bits that an IPv6 address is in. Such a network is the least that one site gets,
/// and a client that has one could otherwise come from a new address each time.
pub(crate) fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_stands_for_itself_and_an_ipv6_address_for_its_network() {
        for (address, whose) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2::", "2001:db8:1:2::"),
            ("2001:db8:1:3::6", "2001:db8:1:3::"),
        ] {
            let address = address.parse().expect("an address");
            assert_eq!(subscriber(address), whose.parse::<IpAddr>().expect("an address"), "{address}");
        }
    }
}
