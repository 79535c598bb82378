//! The name of a client in the memory budget: one name for all connections of a process, as far as
//! a connection reveals the process.
//!
//! | connection | name |
//! |---|---|
//! | Unix socket | process and user, from `SO_PEERCRED` |
//! | Unix socket, process in a foreign PID namespace (pid 0) | user |
//! | TCP, loopback | address and port: clients of one node share the address |
//! | TCP | address; for IPv6 its first 64 bits, which belong to one host |

use std::net::IpAddr;

use super::auth::Peer;

/// The client at the other end of a connection.
pub(super) fn name(peer: &Peer) -> String {
    match peer {
        Peer::Process(process) if process.pid > 0 => {
            format!("uid {}, pid {}", process.uid, process.pid)
        }
        Peer::Process(process) => format!("uid {}", process.uid),
        Peer::Address { address, .. } => match address.ip().to_canonical() {
            ip if ip.is_loopback() => address.to_string(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::attach::PeerCredentials;

    #[test]
    fn connections_of_one_process_or_one_remote_host_have_one_name() {
        let address =
            |text: &str| name(&Peer::Address { address: text.parse().unwrap(), certificate: None });
        assert_eq!(address("10.1.2.3:4000"), address("10.1.2.3:4001"));
        assert_eq!(address("[::ffff:10.1.2.3]:1"), address("10.1.2.3:4001"));
        assert_ne!(address("127.0.0.1:4000"), address("127.0.0.1:4001"));
        assert_eq!(address("[2001:db8::1]:1"), address("[2001:db8::ffff:2]:1"));
        assert_ne!(address("[2001:db8::1]:1"), address("[2001:db8:0:1::1]:1"));
        let process = |pid| name(&Peer::Process(PeerCredentials { pid, uid: 7, gids: vec![] }));
        assert_eq!(process(12), "uid 7, pid 12");
        assert_eq!(process(0), "uid 7");
    }
}
