//! The door to logins. Each is a family of refresh tokens, of which one can be used, once, for the next
//! one. A token that is shown again was stolen, from us or by us: its whole family ends (RFC 9700,
//! section 4.14).

use std::{str::FromStr, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    Error, Result,
    audit::{Action, By},
    changes,
    db::{self, audit, logins as table, users},
    id::FamilyId,
    random::push_random,
    store::Store,
    user::{PasswordHash, User},
};

const BRAND: &str = "crt_";
const SECRET: usize = 43;

/// How long a token is known after it expired: shown again, it still gives a thief away.
const KEPT: Duration = Duration::from_hours(24);
/// The most tokens that are forgotten at once.
const BATCH: u32 = 500;

/// A refresh token, as its holder shows it. Never kept, never logged.
#[derive(Clone, Debug)]
pub struct RefreshToken(SecretString);

/// A text that has not the form of a refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a refresh token")]
pub struct InvalidToken;

impl RefreshToken {
    /// A token that nobody has seen before.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut text = String::with_capacity(BRAND.len() + SECRET);
        text.push_str(BRAND);
        push_random(&mut text, SECRET)?;
        Ok(Self(text.into()))
    }

    /// Its SHA-256: what is kept of it, and finds it.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.expose_secret()).into()
    }

    /// The token itself, for the one answer that shows it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl FromStr for RefreshToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let secret = text.strip_prefix(BRAND).ok_or(InvalidToken)?;
        let right = secret.len() == SECRET && secret.bytes().all(|b| b.is_ascii_alphanumeric());
        if right { Ok(Self(text.into())) } else { Err(InvalidToken) }
    }
}

/// What became of a refresh token.
#[derive(Clone, Debug)]
pub enum Renewal {
    /// It was good, and is used up.
    Renewed {
        /// Whose login it is.
        user: User,
        /// The login.
        family: FamilyId,
        /// The next token.
        token: RefreshToken,
    },
    /// Nobody knows it, or it has expired.
    Refused,
    /// It was used or revoked before: its login has ended.
    Reused,
    /// Its user may do nothing at all.
    Disabled,
}

/// What can be done with logins.
#[derive(Clone)]
pub struct Logins {
    store: Store,
    lifetime: Duration,
}

impl Logins {
    /// The door over `store`; a token that is not used within `lifetime` expires.
    pub fn new(store: &Store, lifetime: Duration) -> Self {
        Self { store: store.clone(), lifetime }
    }

    /// Begin a login of a user who was just made.
    pub async fn begin(&self, user: &User, by: &By) -> Result<(FamilyId, RefreshToken)> {
        let gone = || Error::Internal { what: "a user was gone as soon as it was made", source: user.id.to_string().into() };
        self.try_begin(user, None, by).await?.ok_or_else(gone)
    }

    /// Begin a login of a user who showed the password behind `proof`. `None` when it has another one by
    /// now, or may do nothing: nobody gets in by what was true when they began to prove it.
    pub async fn begin_by(&self, user: &User, proof: &PasswordHash, by: &By) -> Result<Option<(FamilyId, RefreshToken)>> {
        self.try_begin(user, Some(proof), by).await
    }

    async fn try_begin(&self, user: &User, proof: Option<&PasswordHash>, by: &By) -> Result<Option<(FamilyId, RefreshToken)>> {
        let (family, token) = (FamilyId::new(), generate()?);
        let transaction = self.store.db().begin().await?;
        if !users::note_login(&transaction, user.id, proof).await? {
            return Ok(None);
        }
        table::insert(&transaction, user.id, family, &token.hash(), self.lifetime).await?;
        audit::insert(&transaction, &by.or(user.id), Action::Login, Some(family.to_string()), None).await?;
        db::commit(transaction).await?;
        Ok(Some((family, token)))
    }

    /// Use a token up for the next one. Of two who show the same, one gets it, and the login ends.
    pub async fn renew(&self, shown: &RefreshToken, by: &By) -> Result<Renewal> {
        let next = generate()?;
        let transaction = self.store.db().begin().await?;
        let Some(known) = table::find(&transaction, &shown.hash()).await? else { return Ok(Renewal::Refused) };
        // The second look is under the lock that every change of the user's credentials takes.
        let Some(user) = users::hold(&transaction, known.user).await? else { return Ok(Renewal::Refused) };
        let Some(token) = table::find(&transaction, &shown.hash()).await? else { return Ok(Renewal::Refused) };
        if token.is_spent {
            table::revoke(&transaction, token.family).await?;
            let detail = json!({ "login": token.family });
            audit::insert(&transaction, by, Action::TokenReused, Some(user.id.to_string()), Some(detail)).await?;
            db::commit(transaction).await?;
            changes::announce(&self.store, user.id).await;
            return Ok(Renewal::Reused);
        }
        if token.is_expired {
            return Ok(Renewal::Refused);
        }
        if user.disabled {
            return Ok(Renewal::Disabled);
        }
        table::mark_used(&transaction, token.id).await?;
        table::insert(&transaction, user.id, token.family, &next.hash(), self.lifetime).await?;
        db::commit(transaction).await?;
        Ok(Renewal::Renewed { user, family: token.family, token: next })
    }

    /// End a login. Idempotent.
    pub async fn end(&self, family: FamilyId, by: &By) -> Result<()> {
        let transaction = self.store.db().begin().await?;
        let Some(owner) = table::owner(&transaction, family).await? else { return Ok(()) };
        users::hold(&transaction, owner).await?;
        if table::revoke(&transaction, family).await? {
            audit::insert(&transaction, &by.or(owner), Action::Logout, Some(family.to_string()), None).await?;
        }
        db::commit(transaction).await?;
        changes::announce(&self.store, owner).await;
        Ok(())
    }
}

fn generate() -> Result<RefreshToken> {
    RefreshToken::generate().map_err(|source| Error::Internal { what: "could not make a refresh token", source: source.into() })
}

/// Forget tokens that expired long ago.
pub(crate) async fn forget_expired(store: &Store) -> Result<()> {
    table::forget_expired(store.db(), KEPT, BATCH).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_token_survives_its_text_and_shows_itself_to_no_log() {
        let token = RefreshToken::generate().expect("random bytes");
        let shown: RefreshToken = token.expose().parse().expect("a token");

        assert_eq!(token.expose().len(), 47);
        assert_eq!(shown.hash(), token.hash());
        assert_ne!(RefreshToken::generate().expect("random bytes").hash(), token.hash());
        assert!(!format!("{token:?}").contains(&token.expose()[4..]));
    }

    #[test]
    fn what_has_not_the_form_of_a_refresh_token_is_none() {
        let token = RefreshToken::generate().expect("random bytes");
        let token = token.expose();

        for wrong in ["", "crt_", &token[1..], &token[..46], &format!("{token}x"), &token.replace("crt_", "cak_")] {
            assert!(wrong.parse::<RefreshToken>().is_err(), "{wrong}");
        }
    }
}
