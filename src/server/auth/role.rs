//! Roles, and the role that each call needs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The permissions of a client; each role includes the previous ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Request tables, attach, report consumed timeframes, and read the status.
    Read,
    /// Also register timeframes.
    Register,
    /// Also prefetch, invalidate, drop timeframes of other clients, and check.
    Administer,
}

impl Role {
    /// The name in files and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Register => "register",
            Self::Administer => "administer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Read, Self::Register, Self::Administer];
        let found = all.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| format!("{text:?}, expected read, register or administer"))
    }
}

/// The role needed for the call with this HTTP/2 path; `None` if every client may call it.
pub(in crate::server) fn needed_for_call(path: &str) -> Option<Role> {
    match path.trim_start_matches('/').split_once('/') {
        // Health and reflection are open to every client.
        Some(("grpc.health.v1.Health", _)) => None,
        Some(("grpc.reflection.v1.ServerReflection", _)) => None,
        Some(("grpc.reflection.v1alpha.ServerReflection", _)) => None,
        Some(("arrow.flight.protocol.FlightService", "DoPut")) => Some(Role::Register),
        _ => Some(Role::Read),
    }
}

/// Actions that only read, or that concern the client's own leases and sessions.
const READING: [&str; 7] = [
    "consumed",
    "release",
    "segments",
    "status",
    "timeline",
    "CancelFlightInfo",
    "RenewFlightEndpoint",
];

/// The role needed for an action of DoAction. Unknown actions need the highest role.
pub(in crate::server) fn needed_for_action(name: &str) -> Role {
    if READING.contains(&name) { Role::Read } else { Role::Administer }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::action_types;

    #[test]
    fn every_call_and_action_needs_what_it_should() {
        let flight = |method| format!("/arrow.flight.protocol.FlightService/{method}");
        assert_eq!(needed_for_call(&flight("DoGet")), Some(Role::Read));
        assert_eq!(needed_for_call(&flight("DoPut")), Some(Role::Register));
        assert_eq!(needed_for_call("/grpc.health.v1.Health/Check"), None);
        assert_eq!(needed_for_call("/something.Else/Call"), Some(Role::Read));
        assert_eq!(needed_for_call(""), Some(Role::Read));
        let administer = ["prefetch", "invalidate", "drop_timeframe", "check"];
        for (name, _) in action_types() {
            let right = if administer.contains(name) { Role::Administer } else { Role::Read };
            assert_eq!(needed_for_action(name), right, "{name}");
        }
        assert!(Role::Read < Role::Register && Role::Register < Role::Administer);
        assert_eq!("register".parse(), Ok(Role::Register));
        assert!("root".parse::<Role>().is_err());
    }
}
