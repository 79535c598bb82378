//! A site's network on one machine: nodes as network namespaces, each with its own address and its
//! own wire (veth) to one bridge. Requires root and `ip` (iproute2).
//!
//! ```text
//!  node 0   198.18.n.2 ── veth ─┐
//!  node 1   198.18.n.3 ── veth ─┼─ bridge 198.18.n.1: the proxy
//!  …                            ┘
//! ```

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

/// Dropping it removes everything whose name begins with `name`.
pub(crate) struct Network {
    /// Contains the process id, so that two networks do not collide.
    name: String,
    /// 198.18.0.0/15 is reserved for tests of networks (RFC 2544).
    net: [u8; 3],
    nodes: usize,
}

/// Runs `ip`, which must succeed.
fn ip(words: &str) -> Result<String, String> {
    let output = Command::new("ip").args(words.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("ip: {error}"))?;
    if !output.status.success() {
        return Err(format!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Network {
    /// Makes the network, or returns what is missing.
    pub(crate) fn of(nodes: usize) -> Result<Self, String> {
        let process = std::process::id();
        let first = (process % 512) as u16;
        let net = (first..first + 512)
            .map(|n| [198, 18 + (n % 512 / 256) as u8, n as u8])
            .find(|[a, b, c]| ip(&format!("-o addr show to {a}.{b}.{c}.0/24")) == Ok(String::new()))
            .ok_or("`ip` shows no network that is free")?;
        // On any error from here on, dropping removes what was made.
        let network = Self { name: format!("iov{process}x"), net, nodes };
        network.make()?;
        Ok(network)
    }

    fn make(&self) -> Result<(), String> {
        let name = &self.name;
        ip(&format!("link add {name} type bridge"))?;
        ip(&format!("addr add {}/24 dev {name}", self.address()))?;
        ip(&format!("link set {name} up"))?;
        for node in 0..self.nodes {
            let (space, wire) = (self.space(node), self.wire(node));
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {wire} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {wire} master {name} up"))?;
            let address = self.host(u8::try_from(node + 2).map_err(|_| "too many nodes")?);
            ip(&format!("-n {space} addr add {address}/24 dev eth0"))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(())
    }

    fn host(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.net;
        Ipv4Addr::new(a, b, c, host)
    }

    /// The bridge's address: every node reaches a server that listens on it.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.host(1)
    }

    fn space(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    /// An interface name has at most 15 bytes.
    fn wire(&self, node: usize) -> String {
        format!("{}n{node}", self.name)
    }

    /// A command that starts `program` on a node: `ip` enters the namespace and executes it.
    pub(crate) fn on(&self, node: usize, program: &Command) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(node)]);
        command.arg(program.get_program()).args(program.get_args());
        command
    }

    /// Bytes sent to a node over its wire.
    pub(crate) fn carried_to(&self, node: usize) -> u64 {
        let counter = format!("/sys/class/net/{}/statistics/tx_bytes", self.wire(node));
        fs::read_to_string(counter).unwrap().trim().parse().unwrap()
    }

    /// Removes it, and checks that nothing is left.
    pub(crate) fn remove(self) {
        let name = self.name.clone();
        drop(self);
        for left in [ip("netns list").unwrap(), ip("-o link show").unwrap()] {
            assert!(!left.contains(&name), "{left}");
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Deleting one end of a wire deletes the other. Errors mean that it does not exist.
        for node in 0..self.nodes {
            let _ = ip(&format!("link del {}", self.wire(node)));
            let _ = ip(&format!("netns del {}", self.space(node)));
        }
        let _ = ip(&format!("link del {}", self.name));
    }
}
