//! The proxy that the environment names for a server (`http_proxy`, `https_proxy`, `all_proxy`,
//! `no_proxy`), so that errors can say that a request went through it.

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{ClientBuilder, Url};

/// The proxies of the environment; `None` where `no_proxy` has a `*`.
#[derive(Debug)]
pub(super) struct Proxies(Option<Matcher>);

impl Proxies {
    pub(super) fn from_environment() -> Self {
        let exceptions = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy"));
        Self::new(&exceptions.unwrap_or_default(), Matcher::from_env())
    }

    fn new(exceptions: &str, proxies: Matcher) -> Self {
        // The libraries apply `*` to names and not to addresses.
        let is_off = exceptions.split(',').any(|exception| exception.trim() == "*");
        Self((!is_off).then_some(proxies))
    }

    /// A client that uses these and no others.
    pub(super) fn apply(&self, client: ClientBuilder) -> ClientBuilder {
        match self.0 {
            None => client.no_proxy(),
            // The same variables are read there.
            Some(_) => client,
        }
    }

    /// What an error calls a server: `label`, and the proxy on the way to it.
    pub(super) fn name(&self, label: &str, url: &Url) -> String {
        let proxy = (|| self.0.as_ref()?.intercept(&url.as_str().parse().ok()?))();
        match proxy {
            // Its user and password stand elsewhere.
            Some(proxy) => format!("{label} (through the proxy {})", proxy.uri()),
            None => label.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_named_where_one_is_used_and_a_star_turns_all_of_them_off() {
        let matcher = || Matcher::builder().http("http://me:secret@proxy:3128").build();
        let url = Url::parse("http://10.0.0.7:8080/A").unwrap();
        let name = |exceptions: &str| Proxies::new(exceptions, matcher()).name("ccdb", &url);
        assert_eq!(name(""), "ccdb (through the proxy http://proxy:3128/)");
        assert_eq!(name("localhost"), "ccdb (through the proxy http://proxy:3128/)");
        assert_eq!(name("*"), "ccdb");
        assert_eq!(name("localhost, *"), "ccdb");
    }
}
