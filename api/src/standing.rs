//! Whether somebody who was let in, and stays for longer than a request, may go on staying. The credential is
//! looked at again when its user's rights changed anywhere, and when its time is over; it costs nothing
//! meanwhile.

use std::{sync::Arc, time::Duration};

use shared::{
    access::{Access, Listener},
    principal::Principal,
    time::Timestamp,
};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use crate::{
    auth::{self, Verified},
    error::{ApiError, Code},
};

/// How old what is known of somebody may be when they are let in.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// How long to wait for a record that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// Somebody who stays.
pub struct Standing {
    access: Access,
    principal: Arc<Principal>,
    listener: Listener,
    /// The moment before the credential was last looked at.
    looked: std::time::Instant,
    /// Not before then is it looked at again.
    next_look: Option<Instant>,
    expires_at: Option<Timestamp>,
}

impl Standing {
    /// `principal`, who was let in just now, until `expires_at`.
    pub fn new(access: &Access, principal: Arc<Principal>, expires_at: Option<Timestamp>) -> Self {
        let now = std::time::Instant::now();
        let looked = now.checked_sub(KNOWN_FOR).unwrap_or(now);
        Self { access: access.clone(), listener: access.listen(principal.user_id()), principal, looked, next_look: None, expires_at }
    }

    /// Who it is, as they were when they were last looked at.
    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// Go on by another credential of the same user.
    pub fn replace(&mut self, verified: Verified) -> Result<(), ApiError> {
        if verified.principal.user_id() != self.principal.user_id() {
            return Err(ApiError::new(Code::InvalidCredentials, "these credentials are another user's"));
        }
        *self = Self::new(&self.access, Arc::new(verified.principal), verified.expires_at);
        Ok(())
    }

    /// Wait until there is reason to look at them again. Cancel-safe.
    pub async fn doubt(&mut self) {
        tokio::select! {
            () = self.listener.void(self.looked) => {}
            () = until(self.expires_at) => {}
        }
        if let Some(next) = self.next_look {
            sleep_until(next).await;
        }
    }

    /// Whether there is.
    pub fn is_doubted(&self) -> bool {
        let may_look = self.next_look.is_none_or(|next| next <= Instant::now());
        may_look && (self.listener.is_void(self.looked) || self.is_over())
    }

    /// Look at them again: they may stay, by the principal there is now, or must leave, as the error says. While
    /// the record does not answer they stay. To be waited for once it was begun: others who ask for the same
    /// credential wait for this look.
    pub async fn look(&mut self) -> Result<(), ApiError> {
        if self.principal.key().is_none() && self.is_over() {
            // A token says so itself: that holds whether the record answers or not.
            return Err(auth::expired());
        }
        let before = Instant::now();
        // Boxed: those who wait, as most do, need not hold room for this.
        match Box::pin(auth::renew(&self.access, &self.principal)).await {
            Ok(principal) => {
                (self.principal, self.looked) = (Arc::new(principal), before.into_std());
                // Where it should have ended, the record's clock is behind ours, and it is the one that counts.
                self.next_look = self.is_over().then(|| before + RETRY);
                Ok(())
            }
            // Of the credential that says nothing.
            Err(error) if error.code().status().is_server_error() => {
                debug!(cause = ?error.cause(), "Could not look at the credential of somebody who stays");
                self.next_look = Some(Instant::now() + RETRY);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn is_over(&self) -> bool {
        self.expires_at.is_some_and(|end| end <= Timestamp::now())
    }
}

/// Wait for a moment of the wall clock, or for ever.
async fn until(moment: Option<Timestamp>) {
    match moment {
        Some(moment) => Box::pin(sleep(Duration::from_millis(moment.ms_since(Timestamp::now())))).await,
        None => std::future::pending().await,
    }
}
