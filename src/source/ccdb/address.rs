//! Addresses of servers, and the places that they may redirect to.
//!
//! ```text
//!  http://user:pw@a:8080,b:8081/base , https://c
//!         └ only for a ┘    └ for a, b ┘   └ no base path
//! ```

use std::net::IpAddr;

use reqwest::Url;

use crate::source::SourceError;

/// One server of a source, with the credentials for it.
#[derive(Clone)]
pub(super) struct Address {
    /// Scheme, host, port and base path, without credentials and without a final slash.
    base: Url,
    /// User and password, sent to this origin only.
    credentials: Option<(String, Option<String>)>,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Credentials must not reach a log.
        f.write_str(&self.label())
    }
}

impl Address {
    /// Parses `http(s)://host:port[/base]`. More hosts may follow after commas: full URLs, or bare
    /// `host:port`, which share scheme and base path with the full URL before them.
    ///
    /// # Errors
    /// [`SourceError::Configuration`] with the fault.
    pub(super) fn parse_list(text: &str) -> Result<Vec<Self>, SourceError> {
        let mut addresses = Vec::new();
        let mut group: Vec<&str> = Vec::new();
        for entry in text.split(',').map(str::trim) {
            if entry.contains("://") && !group.is_empty() {
                addresses.extend(Self::parse_group(&group)?);
                group.clear();
            }
            group.push(entry);
        }
        addresses.extend(Self::parse_group(&group)?);
        Ok(addresses)
    }

    fn parse_group(entries: &[&str]) -> Result<Vec<Self>, SourceError> {
        let scheme = entries[0].split_once("://").map_or("", |(scheme, _)| scheme);
        let mut urls = Vec::with_capacity(entries.len());
        for entry in entries {
            let full = if entry.contains("://") {
                (*entry).to_owned()
            } else {
                format!("{scheme}://{entry}")
            };
            let wrong = |reason: String| SourceError::Configuration {
                url: without_credentials(entry),
                reason,
            };
            let url = Url::parse(&full)
                .map_err(|e| wrong(format!("{e}; expected http(s)://host:port[/base]")))?;
            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                return Err(wrong("expected http(s)://host:port[/base]".into()));
            }
            if url.query().is_some() || url.fragment().is_some() {
                return Err(wrong("a query or a fragment has no place here".into()));
            }
            urls.push(url);
        }
        // One base path for the whole group, whichever entry has it.
        let shared = urls.iter().map(|u| u.path().to_owned()).find(|p| p != "/");
        Ok(urls
            .into_iter()
            .map(|mut url| {
                let path = match (url.path(), &shared) {
                    ("/", Some(shared)) => shared.clone(),
                    (own, _) => own.to_owned(),
                };
                url.set_path(path.trim_end_matches('/'));
                let user = decoded(url.username());
                let password = url.password().map(decoded);
                let credentials =
                    (!user.is_empty() || password.is_some()).then_some((user, password));
                strip_credentials(&mut url);
                Self { base: url, credentials }
            })
            .collect())
    }

    /// The address without credentials, for messages.
    pub(super) fn label(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// The URL of `tail` at this server. `tail` begins with `/` and is percent-encoded.
    pub(super) fn url(&self, tail: &str) -> Option<Url> {
        Url::parse(&format!("{}{tail}", self.base.as_str().trim_end_matches('/'))).ok()
    }

    /// The base path without its final slash; empty for most servers.
    pub(super) fn base_path(&self) -> &str {
        self.base.path().trim_end_matches('/')
    }

    /// Whether `url` has the same scheme, host and port.
    pub(super) fn is_origin_of(&self, url: &Url) -> bool {
        self.base.origin() == url.origin()
    }

    /// Whether `url` is on this server, possibly with https instead of http: servers redirect from
    /// http to https.
    pub(super) fn is_same_place(&self, url: &Url) -> bool {
        let by_https = url.scheme() == "https" && url.port_or_known_default() == Some(443);
        self.is_origin_of(url) || (by_https && self.base.host_str() == url.host_str())
    }

    /// User and password for `url`, if it has the same origin.
    pub(super) fn credentials_for(&self, url: &Url) -> Option<&(String, Option<String>)> {
        self.credentials.as_ref().filter(|_| self.is_origin_of(url))
    }

    /// Address of a server reached by a redirect.
    pub(super) fn foreign(url: &Url) -> Self {
        let mut base = url.clone();
        strip_credentials(&mut base);
        base.set_path("");
        base.set_query(None);
        base.set_fragment(None);
        Self { base, credentials: None }
    }
}

/// Removes user and password from `url`.
pub(super) fn strip_credentials(url: &mut Url) {
    // Both fail only for URLs that cannot have credentials, such as file:, which are not used here.
    let _ = url.set_username("");
    let _ = url.set_password(None);
}

fn without_credentials(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => {
            format!("{}{}", &text[..scheme + 3], &text[at + 1..])
        }
        (None, Some(at)) => text[at + 1..].to_owned(),
        _ => text.to_owned(),
    }
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                plain.push(byte);
                rest = &after[2..];
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Places besides the source's own hosts that redirects and replicas may lead to.
#[derive(Debug, Default)]
pub(super) struct AllowedPlaces(Vec<AllowedPlace>);

#[derive(Debug)]
enum AllowedPlace {
    Host { name: String, port: Option<u16> },
    Domain { suffix: String },
    Network { address: IpAddr, prefix_bits: u8 },
}

impl AllowedPlaces {
    /// Parses the entries of [`allowed_redirects`](super::CcdbOptions::allowed_redirects).
    pub(super) fn parse(entries: &[String]) -> Result<Self, String> {
        entries.iter().map(|entry| AllowedPlace::parse(entry)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether a source with these `own` hosts may follow `url`.
    pub(super) fn admit<'a>(&self, url: &Url, mut own: impl Iterator<Item = &'a Address>) -> bool {
        if !matches!(url.scheme(), "http" | "https") {
            return false;
        }
        let Some(host) = url.host_str() else { return false };
        own.any(|address| address.is_same_place(url))
            || self.0.iter().any(|place| place.holds(host, url.port_or_known_default()))
    }
}

impl AllowedPlace {
    fn parse(entry: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "allowed_redirects has {entry:?}, expected host, host:port, *.domain or 10.0.0.0/8"
            )
        };
        if let Some((address, bits)) = entry.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let widest = if address.is_ipv4() { 32 } else { 128 };
            let prefix_bits = bits.parse().ok().filter(|n| *n <= widest).ok_or_else(wrong)?;
            return Ok(Self::Network { address, prefix_bits });
        }
        if let Some(domain) = entry.strip_prefix("*.").filter(|domain| !domain.is_empty()) {
            return Ok(Self::Domain { suffix: format!(".{}", domain.to_ascii_lowercase()) });
        }
        // The URL parser handles IPv6 in brackets, IDNA and the case of names.
        let url = Url::parse(&format!("http://{entry}/")).map_err(|_| wrong())?;
        let plain =
            url.path() == "/" && url.username().is_empty() && !entry.contains(['?', '#', '*']);
        let name = url.host_str().filter(|_| plain).ok_or_else(wrong)?.to_owned();
        let port_text = entry.rsplit_once(':').map(|(_, port)| port);
        // `url.port()` hides 80, the default of http, even if the entry names it.
        let port = url.port().or_else(|| port_text.filter(|p| *p == "80").map(|_| 80));
        Ok(Self::Host { name, port })
    }

    fn holds(&self, host: &str, port: Option<u16>) -> bool {
        match self {
            Self::Host { name, port: only } => name == host && (only.is_none() || *only == port),
            Self::Domain { suffix } => host.to_ascii_lowercase().ends_with(suffix.as_str()),
            Self::Network { address, prefix_bits } => {
                let host = host.trim_start_matches('[').trim_end_matches(']');
                match (address, host.parse::<IpAddr>()) {
                    (IpAddr::V4(net), Ok(IpAddr::V4(ip))) => {
                        let mask = u32::MAX.checked_shl(32 - u32::from(*prefix_bits)).unwrap_or(0);
                        net.to_bits() & mask == ip.to_bits() & mask
                    }
                    (IpAddr::V6(net), Ok(IpAddr::V6(ip))) => {
                        let mask =
                            u128::MAX.checked_shl(128 - u32::from(*prefix_bits)).unwrap_or(0);
                        net.to_bits() & mask == ip.to_bits() & mask
                    }
                    _ => false,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Vec<String> {
        Address::parse_list(text).unwrap().iter().map(Address::label).collect()
    }

    fn admits(entries: &[&str], url: &str) -> bool {
        let entries: Vec<_> = entries.iter().map(|&e| e.to_owned()).collect();
        let own = Address::parse_list("http://ccdb:8080").unwrap();
        AllowedPlaces::parse(&entries).unwrap().admit(&Url::parse(url).unwrap(), own.iter())
    }

    #[test]
    fn hosts_after_commas_share_scheme_and_base() {
        assert_eq!(labels("http://a:1"), ["http://a:1"]);
        assert_eq!(labels("http://a:1,b:2/base/"), ["http://a:1/base", "http://b:2/base"]);
        assert_eq!(labels("http://a:1/x, b:2"), ["http://a:1/x", "http://b:2/x"]);
        assert_eq!(labels("http://a:1/x,https://b"), ["http://a:1/x", "https://b"]);
    }

    #[test]
    fn a_text_that_is_no_address_is_refused_without_showing_the_password() {
        for text in ["", "ftp://a", "http://", "http://a?q=1", "http://a,,b", "file:///etc"] {
            assert!(Address::parse_list(text).is_err(), "{text:?}");
        }
        let error = Address::parse_list("http://me:secret@a:1?q").unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn credentials_go_to_their_own_origin_only() {
        let address = &Address::parse_list("http://me:p%40ss@a:1/base").unwrap()[0];
        assert_eq!(address.label(), "http://a:1/base");
        assert!(!format!("{address:?}").contains("p@ss"));
        let url = |text: &str| Url::parse(text).unwrap();
        let ours = Some(("me".to_owned(), Some("p@ss".to_owned())));
        assert_eq!(address.credentials_for(&url("http://a:1/x")).cloned(), ours);
        for other in ["http://a:2/x", "https://a:1/x", "http://b:1/x"] {
            assert_eq!(address.credentials_for(&url(other)), None, "{other}");
        }
    }

    #[test]
    fn redirects_lead_to_our_own_hosts_unless_others_are_listed() {
        assert!(admits(&[], "http://ccdb:8080/download/x"));
        assert!(admits(&[], "https://ccdb/download/x"));
        for url in
            ["http://ccdb:8081/x", "http://other:8080/x", "alien:///x", "file:///x", "ftp://ccdb/x"]
        {
            assert!(!admits(&[], url), "{url}");
        }
        assert!(admits(&["other"], "http://other:8080/x"));
        assert!(admits(&["other:8080"], "http://other:8080/x"));
        assert!(!admits(&["other:80"], "http://other:8080/x"));
        assert!(admits(&["*.cern.ch"], "https://eos.CERN.ch/x"));
        assert!(!admits(&["*.cern.ch"], "https://notcern.ch/x"));
        assert!(!admits(&["other"], "file://other/x"));
    }

    #[test]
    fn networks_hold_addresses_and_no_names() {
        assert!(admits(&["10.1.0.0/16"], "http://10.1.255.3/x"));
        assert!(!admits(&["10.1.0.0/16"], "http://10.2.0.1/x"));
        assert!(!admits(&["10.1.0.0/16"], "http://ten.example/x"));
        assert!(admits(&["0.0.0.0/0"], "http://8.8.8.8/x"));
        assert!(admits(&["fd00::/8"], "http://[fd12::1]:80/x"));
        for wrong in ["10.0.0.0/33", "a/8", "a b", "*.", "http://x/", "x/y"] {
            assert!(AllowedPlaces::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
