//! From a credential to whom it acts for. What the record says is kept for less than a second, so that a
//! key that is revoked, a login that is ended and a user who is disabled are dead everywhere within one,
//! whatever becomes of Redis; a change that is heard of voids it at once. A key is proved anew each time.

use std::{
    hash::Hash,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use moka::future::Cache;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

pub use crate::changes::Listener;
use crate::{
    Error, Result,
    api_key::{ApiKey, KeyHash, KeyText},
    db::{api_keys, logins},
    id::{ApiKeyId, FamilyId, UserId},
    principal::{Credential, Principal},
    store::Store,
    user::User,
};

/// How old an answer may be when it is used, counted from the moment before it was asked for.
const FRESH: Duration = Duration::from_millis(800);
/// The most credentials of each kind to remember.
const MOST: u64 = 100_000;
/// How often an answer that is too old when it comes is asked for again.
const TRIES: u32 = 3;
/// The most keys whose use waits to be noted.
const USES: usize = 1_024;

/// Who may come in. Cheap to clone; one for each process.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

/// Why a credential lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such credential, or it was not proved.
    Unknown,
    /// The key has expired.
    Expired,
    /// The key was revoked, the login has ended.
    Revoked,
    /// The user may do nothing at all.
    Disabled,
    /// The key may not be used from there.
    Address,
}

struct Inner {
    store: Store,
    logins: Answers<(UserId, FamilyId), KnownLogin>,
    keys: Answers<Box<str>, KnownKey>,
    uses: mpsc::Sender<ApiKeyId>,
    _noting: AbortOnDropHandle<()>,
}

struct KnownLogin {
    user: Arc<User>,
    is_alive: bool,
}

struct KnownKey {
    key: Arc<ApiKey>,
    hash: KeyHash,
    user: Arc<User>,
    expires_in_ms: Option<i64>,
    is_use_due: AtomicBool,
}

impl Access {
    /// The door over `store`. To be called within the runtime: it notes the use of keys beside the
    /// requests.
    pub fn new(store: &Store) -> Self {
        let (uses, inbox) = mpsc::channel(USES);
        let noting = AbortOnDropHandle::new(tokio::spawn(note_uses(store.clone(), inbox)));
        Self(Arc::new(Inner { store: store.clone(), logins: Answers::new(), keys: Answers::new(), uses, _noting: noting }))
    }

    /// Whom an access token of this login acts for. Fails when the database is away.
    pub async fn login(&self, user: UserId, family: FamilyId) -> Result<Result<Principal, Refusal>> {
        let Inner { store, logins, .. } = &*self.0;
        let is_current = |answer: &Answer<KnownLogin>| store.changes().is_current(user, answer.asked);
        let answer = logins.get((user, family), is_current, || read_login(store, user, family)).await?;
        let Some(known) = &answer.known else { return Ok(Err(Refusal::Unknown)) };
        if !known.is_alive {
            return Ok(Err(Refusal::Revoked));
        }
        if known.user.disabled {
            return Ok(Err(Refusal::Disabled));
        }
        Ok(Ok(Principal { user: Arc::clone(&known.user), credential: Credential::Login(family) }))
    }

    /// Whom a key acts for that was shown `from` there. Fails when the database is away.
    pub async fn key(&self, shown: &KeyText, from: IpAddr) -> Result<Result<Principal, Refusal>> {
        let answer = self.known_key(shown.prefix()).await?;
        let Some(known) = &answer.known else { return Ok(Err(Refusal::Unknown)) };
        if let Err(refusal) = known.admits(shown, answer.asked.elapsed(), from) {
            return Ok(Err(refusal));
        }
        if known.is_use_due.swap(false, Ordering::Relaxed) {
            // Too many at once: the next use notes it.
            let _ = self.0.uses.try_send(known.key.id);
        }
        Ok(Ok(known.principal()))
    }

    /// How the credential of `principal`, who was let in before, stands now. Where it came from is not asked
    /// again. Fails when the database is away.
    pub async fn renew(&self, principal: &Principal) -> Result<Result<Principal, Refusal>> {
        let key = match &principal.credential {
            Credential::Login(family) => return self.login(principal.user_id(), *family).await,
            Credential::Key(key) => key,
        };
        let answer = self.known_key(&key.prefix).await?;
        let Some(known) = answer.known.as_ref().filter(|known| known.key.id == key.id) else { return Ok(Err(Refusal::Unknown)) };
        Ok(known.stands(answer.asked.elapsed()).map(|()| known.principal()))
    }

    /// Hear of it when the rights of `user` may have changed.
    pub fn listen(&self, user: UserId) -> Listener {
        self.0.store.changes().listen(user)
    }

    async fn known_key(&self, prefix: &str) -> Result<Arc<Answer<KnownKey>>> {
        let Inner { store, keys, .. } = &*self.0;
        let is_current = |answer: &Answer<KnownKey>| {
            let owner = answer.known.as_ref().map(|known| known.user.id);
            owner.is_none_or(|owner| store.changes().is_current(owner, answer.asked))
        };
        keys.get(prefix.into(), is_current, || read_key(store, prefix)).await
    }
}

impl KnownKey {
    /// Nobody learns anything of a key without its secret: the proof comes first.
    fn admits(&self, shown: &KeyText, age: Duration, from: IpAddr) -> Result<(), Refusal> {
        if !self.hash.matches(shown) {
            return Err(Refusal::Unknown);
        }
        self.stands(age)?;
        if self.key.admits(from) { Ok(()) } else { Err(Refusal::Address) }
    }

    /// Whether the key is still good, `age` after the look at it.
    fn stands(&self, age: Duration) -> Result<(), Refusal> {
        // The database's clock at the look, and this host's from there on: none are compared.
        let is_expired = self.expires_in_ms.is_some_and(|ms| i128::from(ms) <= i128::try_from(age.as_millis()).unwrap_or(i128::MAX));
        if self.key.revoked_at.is_some() {
            Err(Refusal::Revoked)
        } else if is_expired {
            Err(Refusal::Expired)
        } else if self.user.disabled {
            Err(Refusal::Disabled)
        } else {
            Ok(())
        }
    }

    fn principal(&self) -> Principal {
        Principal { user: Arc::clone(&self.user), credential: Credential::Key(Arc::clone(&self.key)) }
    }
}

async fn read_login(store: &Store, user: UserId, family: FamilyId) -> Result<Option<KnownLogin>> {
    let found = logins::standing(store.db(), user, family).await?;
    Ok(found.map(|(user, is_alive)| KnownLogin { user: Arc::new(user), is_alive }))
}

async fn read_key(store: &Store, prefix: &str) -> Result<Option<KnownKey>> {
    let found = api_keys::standing(store.db(), prefix).await?;
    Ok(found.map(|found| KnownKey {
        key: Arc::new(found.key),
        hash: found.hash,
        user: Arc::new(found.user),
        expires_in_ms: found.expires_in_ms,
        is_use_due: AtomicBool::new(found.is_use_due),
    }))
}

/// Note the use of keys, one after the other.
async fn note_uses(store: Store, mut inbox: mpsc::Receiver<ApiKeyId>) {
    while let Some(key) = inbox.recv().await {
        if let Err(error) = api_keys::note_use(store.db(), key).await {
            tracing::debug!(%error, api_key.id = %key, "Could not note that the key `{key}` is in use");
        }
    }
}

/// What the record said of a credential, and the moment before it was asked.
struct Answer<T> {
    asked: Instant,
    known: Option<T>,
}

/// What the record said lately.
struct Answers<K, T>(Cache<K, Result<Arc<Answer<T>>, Arc<Error>>>);

impl<K, T> Answers<K, T>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
{
    fn new() -> Self {
        Self(Cache::builder().max_capacity(MOST).time_to_live(FRESH).build())
    }

    /// The answer for `key`, asked for unless a current one is there. Who asks for the same at the same
    /// time gets the same answer.
    async fn get<F: Future<Output = Result<Option<T>>> + Send>(
        &self,
        key: K,
        is_current: impl Fn(&Answer<T>) -> bool + Send + Sync,
        read: impl Fn() -> F + Send + Sync,
    ) -> Result<Arc<Answer<T>>> {
        let is_usable = |answer: &Answer<T>| answer.asked.elapsed() < FRESH && is_current(answer);
        for _ in 0..TRIES {
            let asking = async {
                let asked = Instant::now();
                // Nobody could use what comes later.
                let known = tokio::time::timeout(FRESH, read()).await.map_err(too_slow).flatten().map_err(Arc::new)?;
                Ok(Arc::new(Answer { asked, known }))
            };
            let is_void = |held: &Result<Arc<Answer<T>>, Arc<Error>>| !held.as_ref().is_ok_and(|answer| is_usable(answer));
            match self.0.entry(key.clone()).or_insert_with_if(asking, is_void).await.into_value() {
                // It may have been asked for by somebody else, before a change or long ago.
                Ok(answer) if is_usable(&answer) => return Ok(answer),
                Ok(_) => {}
                Err(error) => return Err(Error::of_several(error, "could not look a credential up")),
            }
        }
        Err(too_slow("it was answered too late each time"))
    }
}

fn too_slow(source: impl Into<crate::error::Cause>) -> Error {
    Error::Unavailable { service: "database", source: source.into() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::sync::Notify;

    use super::*;
    use crate::changes::Changes;

    fn always(_: &Answer<u32>) -> bool {
        true
    }

    #[tokio::test]
    async fn who_asks_for_the_same_at_the_same_time_asks_once() {
        let (answers, asked) = (Answers::new(), AtomicU32::new(0));
        let read = async || {
            tokio::task::yield_now().await;
            Ok(Some(asked.fetch_add(1, Ordering::Relaxed)))
        };

        let ask = || answers.get("key", always, read);
        let (one, two, three) = tokio::join!(ask(), ask(), ask());
        let later = ask().await;

        assert_eq!([one, two, three, later].map(|answer| answer.expect("an answer").known), [Some(0); 4]);
    }

    #[tokio::test]
    async fn what_was_asked_before_a_change_is_asked_again() {
        let (answers, changes, user) = (Answers::new(), Changes::default(), UserId::new());
        let (begun, go_on, asked) = (Notify::new(), Notify::new(), AtomicU32::new(0));
        let is_current = |answer: &Answer<u32>| changes.is_current(user, answer.asked);
        let read = async || {
            let turn = asked.fetch_add(1, Ordering::Relaxed);
            if turn == 0 {
                begun.notify_one();
                go_on.notified().await;
            }
            Ok(Some(turn))
        };
        let change = async {
            begun.notified().await;
            changes.note(user);
            go_on.notify_one();
        };

        let ask = || answers.get("key", is_current, read);
        let (one, two, ()) = tokio::join!(ask(), ask(), change);

        assert_eq!([one, two].map(|answer| answer.expect("an answer").known), [Some(1); 2]);
    }

    #[tokio::test]
    async fn a_failure_is_not_remembered() {
        let answers = Answers::new();

        let first = answers.get("key", always, async || Err(too_slow("away"))).await;
        let second = answers.get("key", always, async || Ok(Some(1))).await;

        assert!(first.is_err_and(|error| error.is_unavailable()));
        assert_eq!(second.expect("an answer").known, Some(1));
    }
}
