//! Identities of clients, and the users that may attach.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::error::Denied;
use super::keys::Keys;
use super::role::Role;
use crate::cache::{AttachGate, NotListed, Origin, PeerPolicy};
use crate::clock::Clock;
use crate::error::{Coded, coded};
use crate::secret::Secret;
use crate::shm::attach::PeerCredentials;

/// An identified client and its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name of the token or of the certificate; a placeholder if the client presented none.
    pub name: Arc<str>,
    /// The client's role.
    pub role: Role,
    /// Whether a key gave this role. `false` if the service has no keys.
    pub by_key: bool,
    /// The user of the client, if it is a process on this node.
    pub uid: Option<u32>,
}

impl Identity {
    /// The proven facts about the client. Without keys every client may administer, but only the
    /// service's own user and root can change the property of another consumer.
    pub(crate) fn origin(&self) -> Origin {
        let key = self.by_key.then(|| Arc::clone(&self.name));
        let trusted =
            |uid| matches!(Origin::process(uid), Origin::Client { administers: true, .. });
        let administers = match self.by_key {
            true => self.role >= Role::Administer,
            false => self.role >= Role::Administer && self.uid.is_some_and(trusted),
        };
        Origin::Client { uid: self.uid, tcp_uid: None, key, administers }
    }

    /// Checks that the client's role includes `needs`.
    ///
    /// # Errors
    /// [`Denied::Role`].
    pub(crate) fn check(&self, needs: Role, what: &str) -> Result<(), Denied> {
        match self.role >= needs {
            true => Ok(()),
            false => Err(Denied::Role {
                name: Arc::clone(&self.name),
                has: self.role,
                what: what.to_owned(),
                needs,
            }),
        }
    }
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// A process on this node, as the kernel says.
    Process(PeerCredentials),
    /// A client at a network address.
    Address {
        /// The address.
        address: SocketAddr,
        /// The names in its certificate, if the service's authority signed it.
        certificate: Option<Arc<[String]>>,
    },
}

/// The key under which connections of one peer are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum PeerKey {
    Uid(u32),
    Address(IpAddr),
    /// This node, over TCP: a process can bind any address of 127.0.0.0/8.
    Loopback,
}

impl Peer {
    pub(crate) fn key(&self) -> PeerKey {
        match self {
            Self::Process(peer) => PeerKey::Uid(peer.uid),
            Self::Address { address, .. } => match address.ip().to_canonical() {
                address if address.is_loopback() => PeerKey::Loopback,
                address => PeerKey::Address(address),
            },
        }
    }

    fn uid(&self) -> Option<u32> {
        match self {
            Self::Process(peer) => Some(peer.uid),
            Self::Address { .. } => None,
        }
    }
}

/// Access control. Clones share their state.
#[derive(Debug, Clone)]
pub struct Access(Arc<AccessInner>);

/// The rules of access, which can be replaced while requests use them.
#[derive(Debug)]
struct AccessInner {
    rules: ArcSwap<AccessRules>,
    clock: Clock,
}

/// Listed users and keys. They are replaced together.
#[derive(Debug)]
struct AccessRules {
    policy: PeerPolicy,
    keys: Keys,
}

impl Default for Access {
    /// The service's own user and root, on its sockets; no keys.
    fn default() -> Self {
        Self::new(PeerPolicy::default(), Keys::default(), Clock::system())
    }
}

impl Access {
    /// Admits the users that `policy` lists on the Unix sockets, and requires one of `keys` if
    /// there are any. `clock` decides when keys expire.
    pub fn new(policy: PeerPolicy, keys: Keys, clock: Clock) -> Self {
        let rules = ArcSwap::from_pointee(AccessRules { policy, keys });
        Self(Arc::new(AccessInner { rules, clock }))
    }

    /// Replaces the listed users and the keys by those of `other` for all later calls. Running
    /// streams are not ended.
    pub fn replace(&self, other: &Self) {
        self.0.rules.store(other.0.rules.load_full());
    }

    /// The listed users of `self` with the keys of `other`.
    #[must_use]
    pub fn with_keys_of(&self, other: &Self) -> Self {
        let (policy, keys) =
            (self.0.rules.load().policy.clone(), other.0.rules.load().keys.clone());
        Self::new(policy, keys, self.0.clock.clone())
    }

    /// Whether there are keys.
    pub fn has_keys(&self) -> bool {
        !self.0.rules.load().keys.is_empty()
    }

    /// Identifies a client.
    ///
    /// # Errors
    /// [`Denied`].
    pub(crate) fn identify(&self, peer: &Peer, token: Option<&Secret>) -> Result<Identity, Denied> {
        let rules = self.0.rules.load();
        let keys = &rules.keys;
        let (everything, certificate) = match peer {
            Peer::Process(peer) => {
                if !rules.policy.admits(peer.uid, &peer.gids) {
                    let (uid, gids) = (peer.uid, peer.gids.clone());
                    return Err(NotListed { uid, gids }.into());
                }
                (!keys.has_tokens(), None)
            }
            Peer::Address { certificate, .. } => (keys.is_empty(), certificate.as_ref()),
        };
        let uid = peer.uid();
        if everything {
            return Ok(Identity {
                name: "anybody".into(),
                role: Role::Administer,
                by_key: false,
                uid,
            });
        }
        let (name, role) = match (token, certificate) {
            (Some(token), _) => keys.bearer(token, self.0.clock.wall())?,
            (None, Some(names)) => keys
                .certified(names)
                .ok_or_else(|| Denied::Certificate { names: names.to_vec() })?,
            (None, None) => return Err(Denied::NoCredentials),
        };
        Ok(Identity { name, role, by_key: true, uid })
    }

    /// Identifies a client whose authorization header is malformed. Where no key is needed the
    /// header is ignored, because a proxy may have added it.
    ///
    /// # Errors
    /// `malformed` where a key is needed, or [`Denied`].
    pub(crate) fn identify_without_key(
        &self,
        peer: &Peer,
        malformed: Denied,
    ) -> Result<Identity, Denied> {
        match self.identify(peer, None) {
            Ok(identity) if !identity.by_key => Ok(identity),
            Ok(_) | Err(Denied::NoCredentials) => Err(malformed),
            Err(denied) => Err(denied),
        }
    }

    /// Checks whether Flight may listen at this address: beyond loopback only with TLS and keys.
    ///
    /// # Errors
    /// [`UnprotectedListener`] names the missing protection.
    pub fn check_exposed(&self, address: SocketAddr, tls: bool) -> Result<(), UnprotectedListener> {
        if is_loopback(address) {
            return Ok(());
        }
        match (tls, self.has_keys()) {
            (true, true) => Ok(()),
            (false, _) => {
                Err(UnprotectedListener { address, missing: "no TLS (--tls-cert, --tls-key)" })
            }
            (true, false) => Err(UnprotectedListener { address, missing: "no keys (--tokens)" }),
        }
    }

    /// Checks whether the CCDB side may listen at this address. Reads there need no key, so beyond
    /// loopback it would publish the data that keys protect.
    ///
    /// # Errors
    /// [`UnprotectedListener`].
    pub fn check_exposed_ccdb(
        &self,
        address: SocketAddr,
        writable: bool,
    ) -> Result<(), UnprotectedListener> {
        if writable && !is_loopback(address) {
            let missing = "a CCDB that takes changes (--ccdb-writable)";
            return Err(UnprotectedListener { address, missing });
        }
        let open = is_loopback(address) || !self.has_keys();
        let missing = "a CCDB that reads without a key, and this service has keys (--tokens)";
        if open { Ok(()) } else { Err(UnprotectedListener { address, missing }) }
    }
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

impl AttachGate for Access {
    fn admit(
        &self,
        peer: &PeerCredentials,
        token: Option<&Secret>,
    ) -> Result<Origin, Box<dyn Coded + Send + Sync>> {
        let identity = self.identify(&Peer::Process(peer.clone()), token);
        let checked = identity.and_then(|identity| {
            identity.check(Role::Read, "attaching").map(|()| identity.origin())
        });
        checked.map_err(|denied| {
            let denied: Box<dyn Coded + Send + Sync> = Box::new(denied);
            denied
        })
    }
}

/// An address can be reached from other nodes without the required protection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{address} can be reached from other nodes: {missing}; listen on loopback, or use --insecure"
)]
pub struct UnprotectedListener {
    /// The address of the listener.
    pub address: SocketAddr,
    /// The missing protection.
    pub missing: &'static str,
}

coded! { UnprotectedListener => PermissionDenied 6020 }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::interval::Timestamp;

    fn process(uid: u32, gids: &[u32]) -> Peer {
        Peer::Process(PeerCredentials { pid: 1, uid, gids: gids.to_vec() })
    }

    fn remote(names: Option<&[&str]>) -> Peer {
        let certificate = names.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        Peer::Address { address: "192.0.2.1:5".parse().unwrap(), certificate }
    }

    fn access(keys: &str) -> Access {
        let policy = PeerPolicy { uids: vec![100], gids: vec![20] };
        let clock = Clock::manual(Timestamp::from_millis(0));
        Access::new(policy, Keys::parse(keys).unwrap(), clock)
    }

    #[test]
    fn without_keys_listed_users_may_do_everything_and_others_nothing() {
        let access = access("");
        let role = |peer: &Peer| access.identify(peer, None).map(|identity| identity.role);
        assert_eq!(role(&process(100, &[1])), Ok(Role::Administer));
        assert_eq!(role(&process(7, &[1, 20])), Ok(Role::Administer));
        let denied = role(&process(0, &[0])).unwrap_err();
        assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
        assert_eq!(role(&remote(None)), Ok(Role::Administer));
    }

    #[test]
    fn with_keys_a_token_or_certificate_is_needed_on_every_transport() {
        let token = Secret::from("t");
        let certificate = "[[certificate]]\nname = \"a.org\"\nrole = \"read\"\n";
        let with_both = Keys::entry("t", &token, Role::Register, None) + certificate;
        let both = access(&with_both);
        for peer in [process(100, &[]), remote(None)] {
            assert_eq!(both.identify(&peer, None), Err(Denied::NoCredentials));
            assert_eq!(both.identify(&peer, Some(&"x".into())), Err(Denied::UnknownToken));
            assert_eq!(both.identify(&peer, Some(&token)).unwrap().role, Role::Register);
        }
        // A valid token does not replace a listed user.
        assert!(both.identify(&process(7, &[]), Some(&token)).is_err());
        assert_eq!(both.identify(&remote(Some(&["a.org"])), None).unwrap().role, Role::Read);
        assert!(both.identify(&remote(Some(&["b.org"])), None).is_err());
        // Certificates count only for clients without credentials from the kernel.
        let certificates = access(certificate);
        assert!(certificates.identify(&process(100, &[]), None).is_ok());
        assert_eq!(certificates.identify(&remote(None), None), Err(Denied::NoCredentials));
        // Keys and listed users are replaced together.
        let policy = PeerPolicy { uids: vec![7], gids: vec![] };
        both.replace(&Access::new(policy, Keys::default(), Clock::system()));
        assert!(both.identify(&remote(None), None).is_ok() && !both.has_keys());
        assert!(both.identify(&process(7, &[]), None).is_ok());
        assert!(both.identify(&process(100, &[]), None).is_err());
    }

    #[test]
    fn without_keys_only_the_services_user_and_root_administer_other_consumers() {
        let own = rustix::process::geteuid().as_raw();
        let policy = PeerPolicy { uids: vec![own, 0, own + 7], gids: vec![] };
        let open = Access::new(policy.clone(), Keys::default(), Clock::system());
        let origin = |access: &Access, peer, token: Option<&Secret>| {
            access.identify(&peer, token).unwrap().origin()
        };
        let administers =
            |origin: &Origin| matches!(origin, Origin::Client { administers: true, .. });
        assert!(administers(&origin(&open, process(own, &[]), None)));
        assert!(administers(&origin(&open, process(0, &[]), None)));
        assert!(!administers(&origin(&open, process(own + 7, &[]), None)));
        assert!(!administers(&origin(&open, remote(None), None)));
        let (low, high) = (Secret::from("low"), Secret::from("high"));
        let keys = Keys::entry("low", &low, Role::Register, None)
            + &Keys::entry("high", &high, Role::Administer, None);
        let keyed = Access::new(policy, Keys::parse(&keys).unwrap(), Clock::system());
        let of_low = origin(&keyed, process(own, &[]), Some(&low));
        assert_eq!(
            of_low,
            Origin::Client {
                uid: Some(own),
                tcp_uid: None,
                key: Some("low".into()),
                administers: false
            }
        );
        let of_high = origin(&keyed, remote(None), Some(&high));
        assert_eq!(
            of_high,
            Origin::Client {
                uid: None,
                tcp_uid: None,
                key: Some("high".into()),
                administers: true
            }
        );
    }

    #[test]
    fn a_foreign_authorization_header_is_ignored_where_no_key_is_needed() {
        let open = access("").identify_without_key(&remote(None), Denied::Malformed);
        assert!(open.is_ok());
        let certificate = "[[certificate]]\nname = \"a.org\"\nrole = \"read\"\n";
        let keyed = access(&(Keys::entry("t", &"t".into(), Role::Read, None) + certificate));
        for peer in [remote(None), remote(Some(&["a.org"])), process(100, &[])] {
            let denied = keyed.identify_without_key(&peer, Denied::Malformed);
            assert_eq!(denied, Err(Denied::Malformed), "{peer:?}");
        }
    }

    #[test]
    fn all_of_loopback_is_one_peer() {
        let key = |address: &str| {
            let address = address.parse().unwrap();
            Peer::Address { address, certificate: None }.key()
        };
        for near in ["127.0.0.1:1", "127.9.9.9:2", "[::1]:3", "[::ffff:127.0.0.2]:4"] {
            assert_eq!(key(near), PeerKey::Loopback, "{near}");
        }
        assert_ne!(key("192.0.2.1:1"), key("192.0.2.2:1"));
        assert_eq!(key("192.0.2.1:1"), key("[::ffff:192.0.2.1]:2"));
    }

    #[test]
    fn a_port_for_others_needs_tls_and_keys() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (open, keyed) = (access(""), access(&Keys::entry("t", &"t".into(), Role::Read, None)));
        for near in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(open.check_exposed(address(near), false), Ok(()), "{near}");
            for writable in [false, true] {
                assert_eq!(keyed.check_exposed_ccdb(address(near), writable), Ok(()), "{near}");
            }
        }
        for far in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            assert!(open.check_exposed(address(far), false).is_err(), "{far}");
            assert!(open.check_exposed(address(far), true).is_err(), "{far}");
            assert!(keyed.check_exposed(address(far), false).is_err(), "{far}");
            assert_eq!(keyed.check_exposed(address(far), true), Ok(()), "{far}");
            assert_eq!(open.check_exposed_ccdb(address(far), false), Ok(()), "{far}");
            assert!(open.check_exposed_ccdb(address(far), true).is_err(), "{far}");
            assert!(keyed.check_exposed_ccdb(address(far), false).is_err(), "{far}");
        }
    }
}
