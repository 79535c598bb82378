//! The origin of a request, as far as the transport proves it.

use std::sync::Arc;

/// The sender of a request.
///
/// Sessions, and the timeframes and watermark of an active consumer, belong to the origin that
/// opened them: other origins cannot change them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Origin {
    /// The process that embeds the cache.
    #[default]
    Embedded,
    /// A client of the service.
    Client {
        /// Its user, if it came over a Unix socket (SO_PEERCRED).
        uid: Option<u32>,
        /// Its user, if it came over loopback and names a session. It may then use sessions of this
        /// user, and nothing else.
        tcp_uid: Option<u32>,
        /// The name of its token or certificate, if it presented one.
        key: Option<Arc<str>>,
        /// Whether it may administer: by its key, or without keys as the service's own user or
        /// root.
        administers: bool,
    },
}

/// The account of an origin, to which its quota is charged together with the consumer name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Account {
    Embedded,
    Key(Arc<str>),
    User(u32),
    /// The transport proves nothing.
    Unproven,
}

impl Origin {
    /// A process on this node that presents no key. The service's own user and root administer.
    pub fn process(uid: u32) -> Self {
        let administers = uid == 0 || uid == rustix::process::geteuid().as_raw();
        Self::Client { uid: Some(uid), tcp_uid: None, key: None, administers }
    }

    /// Whether this is a process of that user on this node, which may use the user's sessions.
    pub(crate) fn is_user(&self, owner: Option<u32>) -> bool {
        match self {
            Self::Embedded => true,
            Self::Client { uid, tcp_uid, .. } => {
                owner.is_some() && (*uid == owner || *tcp_uid == owner)
            }
        }
    }

    /// Adds a user that is proven over loopback.
    #[must_use]
    pub fn with_tcp_user(mut self, user: Option<u32>) -> Self {
        if let Self::Client { tcp_uid, .. } = &mut self {
            *tcp_uid = user;
        }
        self
    }

    /// Whether this may change state of `owner`: both have the same user or key, or this may
    /// administer.
    pub(crate) fn may_act_for(&self, owner: &Self) -> bool {
        match (self, owner) {
            (Self::Embedded | Self::Client { administers: true, .. }, _) => true,
            // A proof over loopback counts for sessions only: over TCP the process of a consumer
            // cannot be told from other processes of its user.
            (Self::Client { uid, key, .. }, Self::Client { uid: its_uid, key: its_key, .. }) => {
                (uid.is_some() && uid == its_uid) || (key.is_some() && key == its_key)
            }
            (Self::Client { .. }, Self::Embedded) => false,
        }
    }

    /// The user of the process, if it is known.
    pub(crate) fn uid(&self) -> Option<u32> {
        match self {
            Self::Embedded => None,
            Self::Client { uid, .. } => *uid,
        }
    }

    pub(crate) fn account(&self) -> Account {
        match self {
            Self::Embedded => Account::Embedded,
            Self::Client { key: Some(key), .. } => Account::Key(Arc::clone(key)),
            Self::Client { uid: Some(uid), .. } => Account::User(*uid),
            Self::Client { .. } => Account::Unproven,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(uid: Option<u32>, key: Option<&str>, administers: bool) -> Origin {
        Origin::Client { uid, tcp_uid: None, key: key.map(Into::into), administers }
    }

    #[test]
    fn only_the_same_user_or_key_or_an_administrator_acts_for_an_owner() {
        let owner = client(Some(7), Some("a"), false);
        assert!(client(Some(7), None, false).may_act_for(&owner));
        assert!(client(None, Some("a"), false).may_act_for(&owner));
        assert!(client(None, Some("b"), true).may_act_for(&owner));
        assert!(Origin::Embedded.may_act_for(&owner));
        for stranger in [client(Some(8), Some("b"), false), client(None, None, false)] {
            assert!(!stranger.may_act_for(&owner), "{stranger:?}");
            // Two unproven origins are not taken as equal.
            assert!(!stranger.may_act_for(&client(None, None, false)), "{stranger:?}");
            assert!(!stranger.may_act_for(&Origin::Embedded), "{stranger:?}");
        }
    }

    #[test]
    fn a_session_is_used_by_processes_of_its_user_alone() {
        assert!(client(Some(7), None, false).is_user(Some(7)));
        assert!(Origin::Embedded.is_user(Some(7)));
        assert!(!client(Some(0), Some("a"), true).is_user(Some(7)));
        assert!(!client(None, None, true).is_user(None));
        let near = client(None, None, false).with_tcp_user(Some(7));
        assert!(near.is_user(Some(7)) && !near.is_user(Some(8)));
        assert!(!near.may_act_for(&client(Some(7), None, false)));
        assert_eq!(near.account(), Account::Unproven);
    }
}
