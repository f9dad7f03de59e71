//! How often somebody may try a password, make an account or renew a login: by the client's address, and
//! for a login by the account as well, so that many addresses cannot guess at one. Counted in this process
//! alone and in bounded memory.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use governor::{
    DefaultKeyedRateLimiter, Quota,
    clock::{Clock as _, DefaultClock, Reference as _},
};

use crate::{
    client_address::ClientAddress,
    error::{ApiError, Code},
};

/// Logins to one account in a minute, whoever tries.
const PER_ACCOUNT: NonZeroU32 = NonZeroU32::new(10).expect("ten");
/// The most that one limiter keeps apart.
const APART: usize = 50_000;
/// What comes beyond shares this many places, so that a flood of addresses costs no memory and lets
/// nobody through for free.
const SHARED: u64 = 256;
/// How often those who have not tried for a while are forgotten.
const SWEEP: Duration = Duration::from_mins(1);

/// The limits on what strangers may try. Cheap to clone.
#[derive(Clone)]
pub struct Throttle(Arc<Limiters>);

struct Limiters {
    logins: Limiter<IpAddr>,
    accounts: Limiter<u64>,
    registrations: Limiter<IpAddr>,
    renewals: Limiter<IpAddr>,
    /// Makes a number of an account's name that nobody outside can foresee.
    names: RandomState,
}

impl Throttle {
    /// Let each address try each thing `per_minute` times a minute.
    pub fn new(per_minute: NonZeroU32) -> Self {
        let by_address = || Limiter::new(per_minute);
        let (logins, registrations, renewals) = (by_address(), by_address(), by_address());
        Self(Arc::new(Limiters { logins, accounts: Limiter::new(PER_ACCOUNT), registrations, renewals, names: RandomState::new() }))
    }

    /// Let `from` try to log in as `email`.
    pub fn admit_login(&self, from: ClientAddress, email: &str) -> Result<(), ApiError> {
        self.0.logins.admit(from.network())?;
        self.0.accounts.admit(self.0.names.hash_one(email.trim().to_lowercase()))
    }

    /// Let `from` try to make an account.
    pub fn admit_register(&self, from: ClientAddress) -> Result<(), ApiError> {
        self.0.registrations.admit(from.network())
    }

    /// Let `from` try to renew a login.
    pub fn admit_refresh(&self, from: ClientAddress) -> Result<(), ApiError> {
        self.0.renewals.admit(from.network())
    }
}

/// Whose tries are counted together.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place<K> {
    Own(K),
    Shared(u64),
}

/// So many tries a minute for each `K`.
struct Limiter<K: Hash + Eq + Clone> {
    tries: DefaultKeyedRateLimiter<Place<K>>,
    clock: DefaultClock,
    began: <DefaultClock as governor::clock::Clock>::Instant,
    /// When, in milliseconds from the beginning, the next sweep is due.
    sweep_at: AtomicU64,
    places: RandomState,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    fn new(per_minute: NonZeroU32) -> Self {
        let clock = DefaultClock::default();
        let tries = DefaultKeyedRateLimiter::keyed(Quota::per_minute(per_minute));
        Self { tries, began: clock.now(), clock, sweep_at: AtomicU64::new(0), places: RandomState::new() }
    }

    fn admit(&self, key: K) -> Result<(), ApiError> {
        self.sweep();
        let place = if self.tries.len() < APART { Place::Own(key) } else { Place::Shared(self.places.hash_one(&key) % SHARED) };
        self.tries.check_key(&place).map_err(|refusal| {
            let wait = refusal.wait_time_from(self.clock.now());
            // A part of a second counts as a whole one: who comes back then is let in.
            let secs = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            let detail = "too many attempts: wait before the next one";
            ApiError::unavailable(Code::TooManyAttempts, detail, u32::try_from(secs).unwrap_or(u32::MAX).max(1))
        })
    }

    /// Forget who has all tries again, once a minute at most: whoever comes first after that does it.
    fn sweep(&self) {
        let now = self.clock.now().duration_since(self.began).as_u64() / 1_000_000;
        let due = self.sweep_at.load(Ordering::Relaxed);
        let next = now + u64::try_from(SWEEP.as_millis()).unwrap_or(u64::MAX);
        if now >= due && self.sweep_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.tries.retain_recent();
            self.tries.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(per_minute: u32) -> Throttle {
        Throttle::new(NonZeroU32::new(per_minute).expect("not zero"))
    }

    fn from(address: &str) -> ClientAddress {
        ClientAddress(address.parse().expect("an address"))
    }

    /// How many of `tries` are let in.
    fn admitted(tries: u32, attempt: impl Fn() -> Result<(), ApiError>) -> usize {
        (0..tries).filter(|_| attempt().is_ok()).count()
    }

    #[test]
    fn an_address_may_try_so_often_and_is_told_when_to_come_back() {
        let throttle = throttle(3);

        assert_eq!(admitted(5, || throttle.admit_register(from("203.0.113.1"))), 3);

        let refusal = throttle.admit_register(from("203.0.113.1")).expect_err("refused");
        assert_eq!(refusal.code(), Code::TooManyAttempts);
        assert!(refusal.retry_after_secs().is_some_and(|secs| (19..=20).contains(&secs)), "{:?}", refusal.retry_after_secs());
    }

    #[test]
    fn addresses_and_things_tried_are_counted_apart() {
        let throttle = throttle(1);

        assert!(throttle.admit_register(from("203.0.113.1")).is_ok());
        assert!(throttle.admit_register(from("203.0.113.2")).is_ok());
        assert!(throttle.admit_refresh(from("203.0.113.1")).is_ok());
        assert!(throttle.admit_login(from("203.0.113.1"), "a@example.com").is_ok());
        assert!(throttle.admit_login(from("203.0.113.1"), "b@example.com").is_err());
    }

    #[test]
    fn one_ipv6_host_is_one_address() {
        let throttle = throttle(1);

        assert!(throttle.admit_refresh(from("2001:db8::1")).is_ok());
        assert!(throttle.admit_refresh(from("2001:db8::2")).is_err());
        assert!(throttle.admit_refresh(from("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn one_account_is_not_guessed_at_from_many_addresses() {
        let throttle = throttle(20);
        let addresses: Vec<ClientAddress> = (1..=30).map(|n| from(&format!("203.0.113.{n}"))).collect();

        let tries = addresses.iter().zip(["Ann@example.com", "ann@example.com", " ann@EXAMPLE.com"].iter().cycle());

        assert_eq!(tries.filter(|(from, email)| throttle.admit_login(**from, email).is_ok()).count(), 10);
        assert!(throttle.admit_login(addresses[0], "bob@example.com").is_ok());
    }

    #[test]
    fn a_flood_of_addresses_is_bounded() {
        let throttle = throttle(1);
        let address = |n: usize| ClientAddress(IpAddr::V4(u32::try_from(n).expect("few").into()));

        let admitted = (0..2 * APART).filter(|n| throttle.admit_refresh(address(*n)).is_ok()).count();

        let most = APART + usize::try_from(SHARED).expect("few");
        assert!(throttle.0.renewals.tries.len() <= most);
        assert!((APART..=most).contains(&admitted), "{admitted}");
    }
}
