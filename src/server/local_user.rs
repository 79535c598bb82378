//! The user of a client on this node that connects over TCP.
//!
//! The kernel lists each TCP socket of this network namespace with its user (`/proc/net/tcp`). With
//! it a session is restricted to processes of its user over loopback too.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tokio::sync::OnceCell;

/// Both ends of a connection over loopback, and the user of the other end once it was looked up.
#[derive(Debug)]
pub(super) struct Loopback {
    ours: SocketAddr,
    theirs: SocketAddr,
    user: OnceCell<Option<u32>>,
}

impl Loopback {
    /// Gives `None` if the peer is on another node.
    pub(super) fn new(ours: SocketAddr, theirs: SocketAddr) -> Option<Self> {
        let (ours, theirs) = (canonical(ours), canonical(theirs));
        let here = theirs.ip().is_loopback() && ours.ip().is_loopback();
        here.then(|| Self { ours, theirs, user: OnceCell::new() })
    }

    /// The user of the other end, if the kernel lists it. Read once for each connection.
    pub(super) async fn user(&self) -> Option<u32> {
        let (ours, theirs) = (self.ours, self.theirs);
        let found = self.user.get_or_init(async || {
            let found = tokio::task::spawn_blocking(move || {
                let lists = ["/proc/net/tcp", "/proc/net/tcp6"].iter();
                let lists = lists.filter_map(|list| std::fs::read_to_string(list).ok());
                lists.filter_map(|list| user_in(&list, theirs, ours)).next()
            });
            found.await.ok().flatten()
        });
        *found.await
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The user of the established socket with these two ends.
fn user_in(list: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    list.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let ends = (address(fields.next()?)?, address(fields.next()?)?);
        let established = fields.next()? == "01";
        let user = fields.nth(3)?;
        (ends == (local, remote) && established).then(|| user.parse().ok())?
    })
}

/// An address as the kernel writes it: words of 32 bits in the order of this machine, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(four) => IpAddr::from(four),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_user_of_a_client_over_loopback_is_what_the_kernel_says() {
        for (listen, connect) in
            [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::1]:0", "::1")]
        {
            let Ok(listener) = std::net::TcpListener::bind(listen) else { continue };
            let port = listener.local_addr().unwrap().port();
            let address = SocketAddr::new(connect.parse().unwrap(), port);
            let client = std::net::TcpStream::connect(address).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let found = Loopback::new(server.local_addr().unwrap(), peer).unwrap().user().await;
            assert_eq!(found, Some(rustix::process::geteuid().as_raw()), "{listen}");
            drop(client);
        }
    }

    #[test]
    fn only_the_very_connection_counts() {
        let list = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
             0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000 0 1\n\
             1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001 0 2\n\
             2: 0100007F:C351 0100007F:1F90 06 00000000:00000000 00:00000000 00000000     0 0 3\n\
             3: damaged\n";
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let user = |local, remote| user_in(list, at(local), at(remote));
        assert_eq!(user("127.0.0.1:50000", "127.0.0.1:8080"), Some(1001));
        assert_eq!(user("127.0.0.1:8080", "127.0.0.1:50000"), Some(1000));
        // A closed socket is not listed as a connection of its user.
        assert_eq!(user("127.0.0.1:50001", "127.0.0.1:8080"), None);
        assert_eq!(user("127.0.0.1:50002", "127.0.0.1:8080"), None);
        assert!(Loopback::new(at("192.0.2.1:1"), at("192.0.2.2:1")).is_none());
    }
}
