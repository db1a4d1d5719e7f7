//! Where events may be posted: the config's address, and never where a cloud keeps its credentials.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;

use crate::secret::Secret;

pub(super) const REFUSED_ADDRESS: &str = "link-local or metadata address";

fn refused(address: IpAddr) -> String {
    format!("{address} is a {REFUSED_ADDRESS}, to which nothing is sent")
}

/// What an address says of itself.
#[derive(Debug)]
pub struct Target {
    pub(in crate::sink) url: Url,
    pub host: String,
    pub is_encrypted: bool,
}

/// Reads an address; what is wrong with it is told with the remedy, and without the address, which may hold a token.
pub fn target(url: &Secret, allow_link_local: bool) -> Result<Target, (String, &'static str)> {
    const SHAPE: &str = "write https://host:port/path, or http://";
    let url = Url::parse(url.reveal()).map_err(|error| (format!("this is not an address: {error}"), SHAPE))?;
    let is_encrypted = match url.scheme() {
        "https" => true,
        "http" => false,
        _ => return Err(("this is not an address of HTTP".into(), SHAPE)),
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(("a user in the address is not sent".into(), "write `authorization` instead"));
    }
    let Some(host) = url.host_str().map(str::to_owned) else { return Err(("there is no host in it".into(), SHAPE)) };
    let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    match literal.filter(|address| !allow_link_local && is_forbidden(*address)) {
        Some(address) => Err((refused(address), "write another address, or allow_link_local = true")),
        None => Ok(Target { url, host, is_encrypted }),
    }
}

/// Where a cloud keeps its credentials, and what is no one host.
fn is_forbidden(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4 == Ipv4Addr::new(100, 100, 100, 200)
        }
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6 == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
        }
    }
}

pub(super) struct Resolver {
    pub(super) allow_link_local: bool,
}

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let allow_link_local = self.allow_link_local;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            match found.iter().find(|address| !allow_link_local && is_forbidden(address.ip())) {
                Some(address) => Err(format!("{}; allow_link_local = true allows it", refused(address.ip())).into()),
                None => Ok(Box::new(found.into_iter()) as reqwest::dns::Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_clouds_keep_their_secrets_nothing_is_sent() {
        for address in
            ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254", "0.0.0.0", "100.100.100.200"]
        {
            assert!(is_forbidden(address.parse().unwrap()), "{address}");
        }
        for address in ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "93.184.216.34"] {
            assert!(!is_forbidden(address.parse().unwrap()), "{address}");
        }
    }
}
