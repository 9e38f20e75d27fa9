//! Lists of networks, in CIDR notation.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// IP networks. Parsed from a text such as `"10.0.0.0/8, 2001:db8::/32, 192.0.2.7"`; an address alone is a network of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An IPv4 address that is written as IPv6 counts as IPv4.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Reads one network. Bits behind the prefix are a mistake, because whoever wrote them meant something else.
fn network(text: &str) -> Option<IpNet> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().ok()?,
    };
    // No address is compared in this form.
    let is_mapped = matches!(network, IpNet::V6(network) if network.addr().to_ipv4_mapped().is_some());
    (network == network.trunc() && !is_mapped).then_some(network)
}

impl FromStr for Networks {
    /// The entry that is not valid.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(|entry| network(entry).ok_or_else(|| entry.to_owned())).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<_> = self.0.iter().map(IpNet::to_string).collect();
        f.write_str(&networks.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_network_of_its_own_kind_and_mapped_ipv4_is_ipv4() {
        let networks: Networks = "10.0.0.0/8, 2001:db8::/32, 192.0.2.7, ::1".parse().expect("valid");
        let contains = |address: &str| networks.contains(address.parse().expect(address));
        for inside in ["10.255.0.1", "2001:db8:1::", "192.0.2.7", "::1", "::ffff:10.0.0.1"] {
            assert!(contains(inside), "{inside}");
        }
        for outside in ["11.0.0.1", "2001:db9::", "192.0.2.8", "127.0.0.1", "::ffff:11.0.0.1"] {
            assert!(!contains(outside), "{outside}");
        }
        assert!(!Networks::default().contains(IpAddr::from([0, 0, 0, 0])));
    }

    #[test]
    fn what_is_not_a_network_is_named() {
        for bad in ["10.0.0.0/33", "10.0.0.1/8", "2001:db8::1/32", "proxy.example.com", "10.0.0", "::ffff:10.0.0.0/104"]
        {
            assert_eq!(format!("127.0.0.1, {bad}").parse::<Networks>(), Err(bad.to_owned()));
        }
    }
}
