//! Memory that requests may hold outside of the segments, charged before it is taken.
//!
//! ```text
//!  Budget (total_bytes) ──client(name)──▶ ClientBudget (a quarter of it) ──charge(bytes)──▶ Charge
//! ```
//!
//! A [`Charge`] returns its bytes when it is dropped, so it lives in the value whose memory it pays
//! for: a parsed request, a queued answer, a watermark. A charge that does not fit is an
//! [`OverBudget`] for the client that asks; it does not affect the memory of other clients.
//!
//! ```
//! use iovcache::budget::Budget;
//!
//! let budget = Budget::new(4096);
//! let client = budget.client("uid 1000, pid 17");
//! let request = client.charge(1000, "request")?;
//! assert!(client.charge(100, "answer").is_err()); // a quarter of 4,096 is 1,024
//! assert_eq!(budget.used_bytes(), 1000);
//! drop(request);
//! assert_eq!(budget.used_bytes(), 0);
//! # Ok::<(), iovcache::budget::OverBudget>(())
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crate::error::coded;
use crate::sync::Mutex;

/// Share of the total (one part in this many) that one client may have.
const CLIENT_SHARE: u64 = 4;
/// Share of the total (one part in this many) that is reserved for clients that hold little.
const RESERVE_SHARE: u64 = 4;
/// A client holds little if it has at most this share of the total (one part in this many).
const LITTLE_SHARE: u64 = 64;

/// A request would hold more memory than its client, or all clients together, may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} needs {wanted_bytes} bytes of request memory, and {holder} hold {used_bytes} of \
     {limit_bytes} (limit: request-memory)"
)]
pub struct OverBudget {
    /// Use of the memory.
    pub what: &'static str,
    /// Bytes needed.
    pub wanted_bytes: u64,
    /// Bytes already charged, to the client or to all clients.
    pub used_bytes: u64,
    /// The limit that would be exceeded, in bytes.
    pub limit_bytes: u64,
    /// The holder of the limit.
    pub holder: LimitHolder,
}

/// The holder of the limit that a charge would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitHolder {
    /// The client that asks.
    Client,
    /// All clients together.
    Total,
}

impl std::fmt::Display for LimitHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client => "requests of this client",
            Self::Total => "requests of all clients",
        })
    }
}

coded! { OverBudget => ResourceExhausted 1070 }

/// Bytes in use of a limit.
#[derive(Debug)]
struct LimitAccount {
    used: AtomicU64,
    limit: u64,
}

impl LimitAccount {
    fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
    }

    /// # Errors
    /// The bytes in use, if `bytes` more would exceed the limit.
    fn take(&self, bytes: u64) -> Result<(), u64> {
        self.take_below(bytes, self.limit)
    }

    /// Like [`take`](Self::take), with a limit of its own.
    fn take_below(&self, bytes: u64, limit: u64) -> Result<(), u64> {
        let fits = |used: u64| used.checked_add(bytes).filter(|after| *after <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map(|_| ())
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// The account of all clients, and the accounts of single clients by name.
#[derive(Debug)]
struct BudgetShared {
    total: LimitAccount,
    /// Bytes charged since the last [`Budget::take_charged_bytes`].
    charged: AtomicU64,
    clients: Mutex<HashMap<Arc<str>, Weak<ClientAccount>>>,
}

/// The account of one client. It lasts as long as a handle or a charge of the client exists.
#[derive(Debug)]
struct ClientAccount {
    name: Arc<str>,
    account: LimitAccount,
    shared: Arc<BudgetShared>,
    /// Number of handles of the account without charges: those of connections and requests.
    handles: AtomicUsize,
}

impl Drop for ClientAccount {
    fn drop(&mut self) {
        let mut clients = self.shared.clients.lock();
        // A client of the same name may have been added since this one's last handle was dropped.
        if clients.get(&self.name).is_some_and(|client| client.strong_count() == 0) {
            clients.remove(&self.name);
        }
    }
}

/// The memory that all requests together may hold. Clones share it.
///
/// ```
/// use iovcache::budget::Budget;
/// let budget = Budget::new(4_000);
/// let client = budget.client("one");
/// let charge = client.charge(900, "a request").unwrap();
/// assert_eq!(budget.used_bytes(), 900);
/// // One client may have a quarter of the budget.
/// assert!(client.charge(900, "another request").is_err());
/// drop(charge);
/// assert_eq!(budget.used_bytes(), 0);
/// ```
#[derive(Debug, Clone)]
pub struct Budget(Arc<BudgetShared>);

impl Budget {
    /// The default of `serve --request-memory`: 256 MiB.
    pub const DEFAULT_BYTES: u64 = 256 << 20;

    /// A budget of `total_bytes`, of which one client may have a quarter.
    pub fn new(total_bytes: u64) -> Self {
        let total = LimitAccount::new(total_bytes);
        Self(Arc::new(BudgetShared {
            total,
            charged: AtomicU64::new(0),
            clients: Mutex::default(),
        }))
    }

    /// A budget without a limit: it only counts the bytes in use.
    pub(crate) fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// The account of the client with this name. All handles with one name share one account, as
    /// long as one of its handles or charges exists.
    pub fn client(&self, name: &str) -> ClientBudget {
        let mut clients = self.0.clients.lock();
        if let Some(client) = clients.get(name).and_then(Weak::upgrade) {
            client.handles.fetch_add(1, Ordering::Relaxed);
            return ClientBudget(client);
        }
        let name: Arc<str> = name.into();
        let account = LimitAccount::new(match self.0.total.limit {
            u64::MAX => u64::MAX,
            limit => limit / CLIENT_SHARE,
        });
        let handles = AtomicUsize::new(1);
        let client = Arc::new(ClientAccount {
            name: Arc::clone(&name),
            account,
            shared: self.0.clone(),
            handles,
        });
        clients.insert(name, Arc::downgrade(&client));
        ClientBudget(client)
    }

    /// Bytes charged now.
    pub fn used_bytes(&self) -> u64 {
        self.0.total.used()
    }

    /// Bytes charged since the last call.
    #[doc(hidden)]
    pub fn take_charged_bytes(&self) -> u64 {
        self.0.charged.swap(0, Ordering::Relaxed)
    }

    /// The limit in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.0.total.limit
    }
}

/// One client's account in a [`Budget`]. Clones are the same account.
#[derive(Debug)]
pub struct ClientBudget(Arc<ClientAccount>);

impl Clone for ClientBudget {
    fn clone(&self) -> Self {
        self.0.handles.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for ClientBudget {
    fn drop(&mut self) {
        self.0.handles.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ClientBudget {
    /// Charges `bytes`; `what` names their use in the error.
    ///
    /// # Errors
    /// [`OverBudget`]; nothing is charged then.
    pub fn charge(&self, bytes: u64, what: &'static str) -> Result<Charge, OverBudget> {
        let mut charge = Charge { client: Arc::clone(&self.0), bytes: 0, what };
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Bytes charged to this client now.
    pub fn used_bytes(&self) -> u64 {
        self.0.account.used()
    }

    /// The limit of this client, in bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.0.account.limit
    }

    /// The client's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }
}

impl Default for ClientBudget {
    /// A new account without a limit, for an embedded cache, whose caller is trusted.
    fn default() -> Self {
        Budget::unlimited().client("embedded")
    }
}

/// Bytes charged to a client until this is dropped.
#[derive(Debug)]
#[must_use = "the bytes are returned when this is dropped"]
pub struct Charge {
    client: Arc<ClientAccount>,
    bytes: u64,
    what: &'static str,
}

impl Charge {
    /// Charges `more` bytes.
    ///
    /// # Errors
    /// [`OverBudget`]; the charge is then unchanged.
    pub fn grow(&mut self, more: u64) -> Result<(), OverBudget> {
        let over = |used_bytes, account: &LimitAccount, holder| OverBudget {
            what: self.what,
            wanted_bytes: more,
            used_bytes,
            limit_bytes: account.limit,
            holder,
        };
        let (own, total) = (&self.client.account, &self.client.shared.total);
        own.take(more).map_err(|used| over(used, own, LimitHolder::Client))?;
        let is_little = own.used() <= total.limit / LITTLE_SHARE;
        let reserve = if is_little { 0 } else { total.limit / RESERVE_SHARE };
        if let Err(used) = total.take_below(more, total.limit - reserve) {
            own.give_back(more);
            return Err(over(used, total, LimitHolder::Total));
        }
        self.client.shared.charged.fetch_add(more, Ordering::Relaxed);
        self.bytes += more;
        Ok(())
    }

    /// Charges `bytes` for another use of the same client.
    ///
    /// # Errors
    /// [`OverBudget`]; nothing is charged then.
    #[cfg(feature = "cache")]
    pub(crate) fn sibling(&self, bytes: u64, what: &'static str) -> Result<Self, OverBudget> {
        let mut charge = Self { client: Arc::clone(&self.client), bytes: 0, what };
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Returns all charged bytes beyond `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.client.account.give_back(surplus);
        self.client.shared.total.give_back(surplus);
        self.bytes -= surplus;
    }

    /// Whether the client has no connection and no request any more.
    #[doc(hidden)]
    pub fn client_is_gone(&self) -> bool {
        self.client.handles.load(Ordering::Relaxed) == 0
    }

    /// Bytes charged.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_a_quarter_and_the_last_quarter_is_for_those_that_hold_little() {
        let budget = Budget::new(6_400);
        let clients: Vec<_> = (0..30).map(|n| budget.client(&format!("client {n}"))).collect();
        let held: Vec<_> = clients[..3].iter().map(|one| one.charge(1_600, "test")).collect();
        assert!(held.iter().all(Result::is_ok));
        let over = clients[0].charge(1, "test").unwrap_err();
        assert_eq!(
            (over.holder, over.used_bytes, over.limit_bytes),
            (LimitHolder::Client, 1_600, 1_600)
        );
        let over = clients[4].charge(101, "test").unwrap_err();
        assert_eq!((over.holder, over.used_bytes), (LimitHolder::Total, 4_800));
        assert_eq!(clients[4].used_bytes(), 0, "a refused charge is not counted");
        let little: Vec<_> = clients[4..20].iter().map(|one| one.charge(100, "test")).collect();
        assert!(little.iter().all(Result::is_ok));
        let over = clients[20].charge(1, "test").unwrap_err();
        assert_eq!(
            (over.holder, over.used_bytes, over.limit_bytes),
            (LimitHolder::Total, 6_400, 6_400)
        );
        drop(little);
        drop(held);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn a_charge_that_cannot_grow_stays_as_it_was() {
        let budget = Budget::new(400);
        let mut charge = budget.client("one").charge(60, "test").unwrap();
        assert!(charge.grow(41).is_err() && charge.grow(u64::MAX).is_err());
        assert_eq!((charge.bytes(), budget.used_bytes()), (60, 60));
        charge.grow(40).unwrap();
        charge.shrink_to(10);
        assert_eq!((charge.bytes(), budget.used_bytes()), (10, 10));
    }

    #[test]
    fn one_name_is_one_account_and_is_forgotten_when_nothing_is_held() {
        let budget = Budget::new(400);
        let charge = budget.client("one").charge(100, "test").unwrap();
        assert!(budget.client("one").charge(1, "test").is_err(), "the charge keeps the account");
        drop(charge);
        assert!(budget.0.clients.lock().is_empty());
        assert!(budget.client("one").charge(100, "test").is_ok());
    }

    #[test]
    fn a_client_is_gone_when_only_charges_are_left() {
        let budget = Budget::new(400);
        let (one, other) = (budget.client("one"), budget.client("one"));
        let charge = one.charge(1, "test").unwrap();
        drop(one);
        assert!(!charge.client_is_gone());
        drop(other.clone());
        drop(other);
        assert!(charge.client_is_gone());
        let again = budget.client("one");
        assert!(!charge.client_is_gone());
        drop(again);
    }

    #[test]
    fn threads_never_pass_the_limit() {
        let budget = Budget::new(1 << 12);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let client = budget.client(&format!("client {}", n % 3));
                let budget = &budget;
                scope.spawn(move || {
                    for bytes in 0..2_000 {
                        let held = client.charge(bytes % 700, "test");
                        assert!(budget.used_bytes() <= budget.limit_bytes());
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(budget.used_bytes(), 0);
    }
}
