//! TLS, certificates of the server and of clients, and what is refused without TLS.

use std::sync::Arc;
use std::time::{Duration, Instant};

use iovcache::Secret;
use iovcache::client::{Client, ClientOptions, TlsFiles};
use iovcache::error::{Coded as _, ErrorKind};
use iovcache::server::{Limits, Role};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore};

use crate::common::{PATIENCE, run};
use crate::files::{ALL_ROLES, Files, drift, until_told, why};

/// An authority that signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut of = CertificateParams::new(Vec::new()).unwrap();
        of.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(of, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for `name` and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let of = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = of.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Sends one request over a connection of its own.
async fn ask(
    url: &str,
    token: &str,
    authority: &Authority,
    identity: Option<&(String, String)>,
) -> Option<(ErrorKind, u16)> {
    let identity =
        identity.map(|(chain, key)| (chain.clone().into_bytes(), Secret::from(key.as_str())));
    let authority = Some(authority.pem().into_bytes());
    let tls = TlsFiles { authority, identity, domain: None };
    let options = ClientOptions { tls, ..crate::files::with_token(token) };
    match Client::connect_with(url, options).await {
        Ok(client) => why(client.table(drift()).await),
        Err(error) => Some((error.kind(), error.code().0)),
    }
}

const UNREACHABLE: Option<(ErrorKind, u16)> = Some((ErrorKind::Unavailable, 7002));

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_and_its_certificate_replaced_on_sighup() {
    let files = Files::new();
    let (first, second) = (Authority::new(), Authority::new());
    let write = |authority: &Authority| {
        let (chain, key) = authority.sign("localhost");
        (files.write("chain.pem", &chain), files.write("key.pem", &key))
    };
    let (chain, key) = write(&first);
    let keys = files.keys(&ALL_ROLES);
    let service = files.serve(&["--tls-cert", &chain, "--tls-key", &key, "--tokens", &keys]);
    let url = service.tcp();
    assert!(url.starts_with("grpc+tls://127.0.0.1:"), "{url}");
    let url = url.replace("127.0.0.1", "localhost");
    assert_eq!(ask(&url, "reader", &first, None).await, None);
    assert_eq!(ask(&url, "wrong", &first, None).await.unwrap().1, 6002);
    assert_eq!(ask(&url, "reader", &second, None).await, UNREACHABLE);
    // A client without TLS is refused.
    let plain = url.replace("grpc+tls", "grpc");
    assert_ne!(ask(&plain, "reader", &first, None).await, None);
    // So is a client that expects another name than the certificate's.
    let by_address = url.replace("localhost", "127.0.0.1");
    assert_eq!(ask(&by_address, "reader", &first, None).await, UNREACHABLE);

    write(&second);
    service.signal("HUP");
    until_told(None, async || ask(&url, "reader", &second, None).await).await;
    assert_eq!(ask(&url, "reader", &first, None).await, UNREACHABLE);
    // A certificate without its matching key changes nothing.
    files.write("key.pem", &first.sign("localhost").1);
    service.signal("HUP");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(ask(&url, "reader", &second, None).await, None);
    // The Unix socket needs no TLS, but it needs a token.
    let unix = crate::files::client(&service.unix(), "reader").await;
    assert_eq!(why(unix.table(drift()).await), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_certificate_has_the_role_of_its_name() {
    let files = Files::new();
    let (authority, other) = (Authority::new(), Authority::new());
    let (chain, key) = authority.sign("localhost");
    let keys = std::fs::read_to_string(files.keys(&[("reader", Role::Read, None)])).unwrap();
    let certificate = "[[certificate]]\nname = \"device.example\"\nrole = \"register\"\n";
    let arguments = [
        "--tls-cert",
        &files.write("chain.pem", &chain),
        "--tls-key",
        &files.write("key.pem", &key),
        "--tls-client-ca",
        &files.write("ca.pem", &authority.pem()),
        "--tokens",
        &files.write("keys", &(keys + certificate)),
    ];
    let service = files.serve(&arguments);
    let url = service.tcp().replace("127.0.0.1", "localhost");
    let (device, stranger) = (authority.sign("device.example"), authority.sign("b.example"));
    let forged = other.sign("device.example");
    assert_eq!(ask(&url, "", &authority, Some(&device)).await, None);
    let no_role = Some((ErrorKind::PermissionDenied, 6006));
    assert_eq!(ask(&url, "", &authority, Some(&stranger)).await, no_role);
    assert_eq!(ask(&url, "", &authority, None).await.unwrap().1, 6001);
    assert_eq!(ask(&url, "reader", &authority, None).await, None);
    // With a certificate of another authority the client cannot even connect.
    assert_ne!(ask(&url, "", &authority, Some(&forged)).await, None);
    assert_ne!(ask(&url, "reader", &authority, Some(&forged)).await, None);
}

/// A client's first message: its ClientHello.
fn client_hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_finish_the_handshake_is_disconnected_and_a_good_one_goes_on() {
    let files = Files::new();
    let authority = Authority::new();
    let (chain, key) = authority.sign("localhost");
    let (chain, key) = (files.write("chain.pem", &chain), files.write("key.pem", &key));
    let keys = files.keys(&ALL_ROLES);
    let limits = files.write("config.toml", "[limits]\nhandshake = \"1s\"\n");
    let tls = ["--tls-cert", &chain, "--tls-key", &key, "--tokens", &keys, "--config", &limits];
    let service = files.serve(&tls);
    let url = service.tcp().replace("127.0.0.1", "localhost");
    let address = service.tcp().replace("grpc+tls://", "");

    let hello = client_hello();
    assert!(hello.len() > 100 && hello.starts_with(b"\x16\x03"), "{hello:?}");
    // Nothing, a byte, the head of a record, half a ClientHello, and a complete one followed by
    // silence.
    let mut silent = JoinSet::new();
    for said in [0, 1, 5, hello.len() / 2, hello.len()] {
        let (first, address) = (hello[..said].to_owned(), address.clone());
        silent.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let start = Instant::now();
            stream.write_all(&first).await.unwrap();
            let mut answer = Vec::new();
            let end = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
            assert!(end.is_ok(), "after {said} bytes it is not hung up on");
            (said, start.elapsed(), answer.len())
        });
    }
    let (mut asked, mut hung_up) = (0, Vec::new());
    while !silent.is_empty() {
        assert_eq!(ask(&url, "reader", &authority, None).await, None);
        asked += 1;
        while let Some(ended) = silent.try_join_next() {
            hung_up.push(ended.unwrap());
        }
    }
    assert!(asked > 1, "the good client was held up");
    for (said, took, answered) in hung_up {
        // Not before the configured limit, and not only after the default of ten seconds.
        assert!(took > Duration::from_millis(500), "{said} bytes: {took:?}");
        assert!(took < Limits::default().handshake.duration(), "{said} bytes: {took:?}");
        assert_eq!(answered > 0, said == hello.len(), "{said} bytes: {answered} of an answer");
    }
}

#[test]
fn beyond_loopback_nothing_is_served_without_tls_and_keys() {
    let files = Files::new();
    let (chain, key) = Authority::new().sign("localhost");
    let (chain, key) = (files.write("chain.pem", &chain), files.write("key.pem", &key));
    let (keys, source) =
        (files.keys(&ALL_ROLES), format!("file://{}", files.repository().display()));
    // No host has this address (RFC 5737), so a start that is not refused fails at the socket.
    let tried = |more: &[&str]| {
        let sockets = files.path("sockets");
        let all = ["serve", "--source", &source, "--socket", sockets.to_str().unwrap()];
        let output = run(&[&all[..], more].concat());
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let far = ["--listen", "192.0.2.1:0"];
    let tls = ["--tls-cert", &chain, "--tls-key", &key];
    let with_keys = ["--tokens", &keys];
    for (more, word) in [(&[][..], "no TLS"), (&with_keys, "no TLS"), (&tls, "no keys")] {
        let (status, told) = tried(&[&far[..], more].concat());
        assert_eq!(status, Some(5), "{told}");
        assert!(told.contains(word) && told.contains("--insecure"), "{told}");
    }
    for more in [&[&tls[..], &with_keys].concat()[..], &["--insecure"]] {
        let (status, told) = tried(&[&far[..], more].concat());
        assert_eq!(status, Some(1), "{told}");
        assert!(told.contains("cannot listen on 192.0.2.1:0"), "{told}");
    }
    // The CCDB side checks no keys, so it is not opened beside keys.
    let near = ["--listen", "127.0.0.1:0", "--ccdb", "192.0.2.1:0"];
    let (status, told) = tried(&[&near[..], &with_keys].concat());
    assert!(status == Some(5) && told.contains("CCDB"), "{status:?} {told}");
    let (status, told) = tried(&near);
    assert!(status == Some(1) && told.contains("cannot listen"), "{status:?} {told}");
    // With an empty file of keys, or one that is world-writable, the service does not start.
    let empty = files.write("empty", "");
    assert_eq!(tried(&["--listen", "127.0.0.1:0", "--tokens", &empty]).0, Some(2));
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(tried(&["--listen", "127.0.0.1:0", "--tokens", &keys]).0, Some(5));
}
