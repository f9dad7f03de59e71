//! Where a request comes from. What a header says about it is believed only of a proxy that the operator
//! named: anybody can write `X-Forwarded-For`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use poem::{Addr, Request, http::header};
use shared::metrics::is_of_a_proxy;

/// Which peers speak for others: `TRUSTED_PROXIES`.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }

    /// These, and this machine.
    pub fn and_this_machine(&self) -> Self {
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(|address: IpAddr| match address {
            IpAddr::V4(_) => IpNet::new_assert(address, 8),
            IpAddr::V6(_) => IpNet::new_assert(address, 128),
        });
        Self(self.0.iter().copied().chain(loopback).collect())
    }
}

/// A text that names no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a list of addresses and networks")]
pub struct InvalidNetwork;

impl FromStr for TrustedProxies {
    type Err = InvalidNetwork;

    fn from_str(list: &str) -> Result<Self, InvalidNetwork> {
        let network = |entry: &str| entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from)).map_err(|_| InvalidNetwork);
        list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(network).collect::<Result<_, _>>().map(Self)
    }
}

/// The address of the client that a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// Of the peer; of the client it speaks for, if it is a trusted proxy.
    pub fn of(request: &Request, proxies: &TrustedProxies) -> Self {
        let mut client = peer(request);
        let mut hops = hops(request);
        // From the nearest hop outwards, each word is as good as the one before whom it comes from.
        while proxies.contains(client) {
            let Some(Some(before)) = hops.next() else { break };
            client = before;
        }
        Self(client)
    }

    /// What one client can choose freely within: an IPv6 host has a whole /64.
    pub fn network(self) -> IpAddr {
        match self.0 {
            IpAddr::V4(_) => self.0,
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & (u128::MAX << 64))),
        }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Whether somebody on this machine asks, and nobody speaks for somebody else: a loopback peer, no header
/// of a proxy, and a `Host` that is this machine (a page whose name was made to point here has another).
pub fn is_direct_loopback(request: &Request) -> bool {
    let headers = request.headers();
    let named = headers.get_all(header::HOST).iter().all(|host| host.to_str().is_ok_and(is_this_machine));
    peer(request).is_loopback() && named && !headers.keys().any(|name| is_of_a_proxy(name.as_str()))
}

/// Whether the client spoke TLS to a proxy of ours.
pub fn is_behind_tls(request: &Request, proxies: &TrustedProxies) -> bool {
    let said = request.header("x-forwarded-proto").is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    said && proxies.contains(peer(request))
}

/// The other end of the connection. One that has no address is nobody's: no list holds it.
fn peer(request: &Request) -> IpAddr {
    match request.remote_addr().0 {
        Addr::SocketAddr(address) => address.ip().to_canonical(),
        Addr::Unix(_) | Addr::Custom(..) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

/// What proxies say of whom they speak for, the nearest first; `None` where it is no address.
fn hops(request: &Request) -> impl Iterator<Item = Option<IpAddr>> {
    let values = request.headers().get_all("x-forwarded-for").iter().rev();
    // A value that is not text is one word that is no address.
    values.flat_map(|value| value.to_str().unwrap_or("?").rsplit(',').map(address))
}

/// An address, as proxies write it: some with a port, IPv6 then in brackets.
fn address(word: &str) -> Option<IpAddr> {
    let word = word.trim();
    let bare = || word.parse::<IpAddr>().ok();
    let with_port = || word.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || word.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    bare().or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical())
}

/// Whether a `Host` is a name of this machine for itself.
fn is_this_machine(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
    name.eq_ignore_ascii_case("localhost") || address(name).is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use poem::{
        Body, RequestParts,
        http::{self, uri::Scheme},
        web::{LocalAddr, RemoteAddr},
    };

    use super::*;

    const PROXIES: &str = "10.0.0.0/8, 192.0.2.7, 2001:db8::/32";

    fn request(peer: &str, headers: &[(&str, &str)]) -> Request {
        let builder = headers.iter().fold(http::Request::builder(), |builder, (name, value)| builder.header(*name, *value));
        let (parts, ()) = builder.body(()).expect("a request").into_parts();
        let peer = RemoteAddr(SocketAddr::new(peer.parse().expect("an address"), 5_000).into());
        let parts = RequestParts::from((parts, LocalAddr::default(), peer, Scheme::HTTP));
        Request::from_parts(parts, Body::empty())
    }

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let headers: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
        ClientAddress::of(&request(peer, &headers), &PROXIES.parse().expect("networks")).to_string()
    }

    #[test]
    fn what_a_stranger_says_of_itself_is_not_believed() {
        assert_eq!(client("198.51.100.9", &[]), "198.51.100.9");
        assert_eq!(client("198.51.100.9", &["203.0.113.1"]), "198.51.100.9");
        assert_eq!(client("127.0.0.1", &["203.0.113.1"]), "127.0.0.1");
    }

    #[test]
    fn the_last_address_that_a_trusted_proxy_saw_is_the_client() {
        assert_eq!(client("10.0.0.1", &["203.0.113.1"]), "203.0.113.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 203.0.113.1"]), "203.0.113.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 203.0.113.1, 10.9.9.9"]), "203.0.113.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 203.0.113.1", "192.0.2.7,10.9.9.9"]), "203.0.113.1");
        assert_eq!(client("10.0.0.1", &["10.3.3.3, 10.2.2.2"]), "10.3.3.3");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn an_address_is_understood_however_it_is_written() {
        assert_eq!(client("10.0.0.1", &["203.0.113.1:4711"]), "203.0.113.1");
        assert_eq!(client("2001:db8::1", &["[2001:470::5]:4711"]), "2001:470::5");
        assert_eq!(client("2001:db8::1", &["[2001:470::5]"]), "2001:470::5");
        assert_eq!(client("::ffff:10.0.0.1", &["::ffff:203.0.113.1"]), "203.0.113.1");
    }

    #[test]
    fn where_the_list_is_malformed_it_ends() {
        for (forwarded, expected) in [
            ("203.0.113.1, unknown", "10.0.0.1"),
            ("203.0.113.1, , 10.2.2.2", "10.2.2.2"),
            ("203.0.113.1, _hidden, 10.2.2.2", "10.2.2.2"),
            ("evil, 203.0.113.1", "203.0.113.1"),
            ("203.0.113.1 10.2.2.2", "10.0.0.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", &[forwarded]), expected, "{forwarded}");
        }
    }

    #[test]
    fn a_request_without_a_peer_is_nobodys() {
        let trusting = "0.0.0.0/8".parse().expect("a network");

        assert_eq!(ClientAddress::of(&Request::default(), &TrustedProxies::default()).0, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert_eq!(ClientAddress::of(&Request::default(), &trusting).0, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        assert!(!is_direct_loopback(&Request::default()));
    }

    #[test]
    fn only_this_machine_is_direct() {
        assert!(is_direct_loopback(&request("127.0.0.1", &[("host", "localhost:3001")])));
        assert!(is_direct_loopback(&request("::1", &[("host", "[::1]:3001")])));
        assert!(is_direct_loopback(&request("::ffff:127.0.0.1", &[])));
        assert!(!is_direct_loopback(&request("198.51.100.9", &[("host", "localhost")])));
        for header in ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded", "via", "x-real-ip"] {
            assert!(!is_direct_loopback(&request("127.0.0.1", &[(header, "127.0.0.1")])), "{header}");
        }
        for host in ["evil.example.com", "evil.example.com:3001", "10.0.0.1", "localhost.evil.example.com", ""] {
            assert!(!is_direct_loopback(&request("127.0.0.1", &[("host", host)])), "{host}");
        }
    }

    #[test]
    fn only_a_trusted_proxy_can_say_that_there_was_tls() {
        let proxies = PROXIES.parse().expect("networks");
        let said = [("x-forwarded-proto", "https")];

        assert!(is_behind_tls(&request("10.0.0.1", &said), &proxies));
        assert!(!is_behind_tls(&request("198.51.100.9", &said), &proxies));
        assert!(!is_behind_tls(&request("10.0.0.1", &[("x-forwarded-proto", "http")]), &proxies));
        assert!(!is_behind_tls(&request("10.0.0.1", &[]), &proxies));
    }

    #[test]
    fn the_addresses_of_one_ipv6_host_are_one_network() {
        let network = |address: &str| ClientAddress(address.parse().expect("an address")).network().to_string();

        assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(network("203.0.113.1"), "203.0.113.1");
    }

    #[test]
    fn a_network_that_is_none_is_refused() {
        for wrong in ["proxy", "10.0.0.0/33", "10.0.0.0/8;10.1.1.1"] {
            assert!(wrong.parse::<TrustedProxies>().is_err(), "{wrong}");
        }
        assert!("".parse::<TrustedProxies>().is_ok());
    }
}
