//! Proxies from the environment (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`), so that
//! errors can name the proxy of a request.

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{ClientBuilder, Url};

/// Proxies of the environment; `None` if `no_proxy` contains a `*`.
#[derive(Debug)]
pub(super) struct Proxies(Option<Matcher>);

impl Proxies {
    pub(super) fn from_environment() -> Self {
        let exceptions = std::env::var_os("NO_PROXY").or_else(|| std::env::var_os("no_proxy"));
        Self::new(&exceptions.unwrap_or_default().to_string_lossy(), Matcher::from_env())
    }

    fn new(exceptions: &str, proxies: Matcher) -> Self {
        // The libraries apply `*` to names but not to addresses.
        let is_off = exceptions.split(',').any(|exception| exception.trim() == "*");
        Self((!is_off).then_some(proxies))
    }

    /// Makes a client use these proxies and no others.
    pub(super) fn apply(&self, client: ClientBuilder) -> ClientBuilder {
        match self.0 {
            None => client.no_proxy(),
            // The client reads these variables itself.
            Some(_) => client,
        }
    }

    /// Name of a server in errors: `label`, and the proxy if one is used.
    pub(super) fn name(&self, label: &str, url: &Url) -> String {
        let proxy = (|| self.0.as_ref()?.intercept(&url.as_str().parse().ok()?))();
        match proxy {
            // The URI of a proxy is without its user and password.
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
