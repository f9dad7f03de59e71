//! The hourly limit around a request: who is beyond it is refused, and everybody is told where they stand
//! (`RateLimit` and `RateLimit-Policy`, draft-ietf-httpapi-ratelimit-headers). A request that we could not
//! serve, or had served before, is not counted.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use poem::{
    Endpoint, Request, Response, Result,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode},
};
use shared::{
    id::{ApiKeyId, UserId},
    limits::{Allowance, Limits, Receipt, Verdict},
    principal::Principal,
};

use crate::error::{ApiError, Code};

/// What the limits are counted in.
pub const WINDOW_SECS: u32 = 3_600;

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STANDING: HeaderName = HeaderName::from_static("ratelimit");

/// On a request: what it was charged, which it may turn out not to owe.
#[derive(Clone, Debug, Default)]
pub struct Charge(Arc<AtomicBool>);

impl Charge {
    /// The request only repeats an earlier one: it is not to be counted.
    pub fn waive(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_waived(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Answer `request` of `principal` by `next`, if it counts only within the limits. A user without a limit of
/// their own has `default_per_hour`.
pub async fn enforce<E: Endpoint<Output = Response>>(
    limits: &Limits,
    default_per_hour: u32,
    principal: &Principal,
    next: &E,
    mut request: Request,
) -> Result<Response> {
    if !counts(request.method(), request.uri().path()) {
        return next.call(request).await;
    }
    let granted = admit(limits, default_per_hour, principal).await?;
    let charge = Charge::default();
    request.set_data(charge.clone());
    let answer = next.call(request).await.map_err(ApiError::from);
    let is_free = charge.is_waived() || is_free(answer.as_ref().map_or_else(|error| error.code().status(), Response::status));
    let headers = granted.settle(limits, is_free).await;
    let mut response = answer.map_err(|error| error.with_headers(headers.clone()))?;
    response.headers_mut().extend(headers);
    Ok(response)
}

/// Count a request of `principal`, or refuse it.
pub async fn admit(limits: &Limits, default_per_hour: u32, principal: &Principal) -> Result<Granted, ApiError> {
    let user = principal.user_id();
    let (per_user, key) = quotas(principal, default_per_hour);
    match limits.charge(user, per_user, key).await {
        Verdict::Refused { user, key, retry_after_secs, .. } => {
            let detail = "the limit of requests per hour is reached: try again after `Retry-After`";
            let refusal = ApiError::unavailable(Code::RateLimited, detail, retry_after_secs);
            Err(refusal.with_headers(headers(user, key)))
        }
        Verdict::Granted { user: of_user, key: of_key, receipt, .. } => {
            Ok(Granted { user, per_user, key, receipt, standing: (of_user, of_key) })
        }
    }
}

/// A request that was counted.
pub struct Granted {
    user: UserId,
    per_user: u32,
    key: Option<(ApiKeyId, u32)>,
    receipt: Receipt,
    standing: (Allowance, Option<Allowance>),
}

impl Granted {
    /// Count it no more if it `is_free`; what its answer says of where its caller stands.
    pub async fn settle(self, limits: &Limits, is_free: bool) -> HeaderMap {
        let mut standing = self.standing;
        if is_free {
            standing = limits.refund(self.user, self.per_user, self.key, self.receipt).await.unwrap_or(standing);
        }
        headers(standing.0, standing.1)
    }
}

/// The limits of a user, who has `default_per_hour` without one of their own, and of a key that has one.
pub fn quotas(principal: &Principal, default_per_hour: u32) -> (u32, Option<(ApiKeyId, u32)>) {
    let per_user = principal.user.limits.rate_limit_per_hour.unwrap_or(default_per_hour);
    (per_user, principal.key().and_then(|key| Some((key.id, key.rate_limit_per_hour?))))
}

/// Whether a request counts: those for work do, those for an account, for its quota and for the house do not.
fn counts(method: &Method, path: &str) -> bool {
    let Some(path) = path.strip_prefix("/api/") else { return false };
    let reads = matches!(*method, Method::GET | Method::HEAD);
    !(path.starts_with("auth/") || path.starts_with("admin/") || (path == "quota" && reads))
}

/// Whether such an answer costs nothing: there was no budget, or no room.
pub fn is_free(status: StatusCode) -> bool {
    matches!(status, StatusCode::PAYMENT_REQUIRED | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

fn headers(user: Allowance, key: Option<Allowance>) -> HeaderMap {
    let list = |item: fn(&str, Allowance) -> String| {
        let items: Vec<String> =
            [Some(("hour", user)), key.map(|key| ("key", key))].into_iter().flatten().map(|(name, one)| item(name, one)).collect();
        HeaderValue::try_from(items.join(", ")).expect("names and numbers are ASCII")
    };
    let policy = list(|name, allowance| format!("\"{name}\";q={};w={WINDOW_SECS}", allowance.limit));
    let standing = list(|name, allowance| format!("\"{name}\";r={};t={}", allowance.remaining, allowance.reset_secs));
    HeaderMap::from_iter([(POLICY, policy), (STANDING, standing)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_work() {
        for (method, path) in [
            (Method::POST, "/api/chat"),
            (Method::GET, "/api/jobs"),
            (Method::GET, "/api/nothing"),
            (Method::GET, "/api/quotas"),
            (Method::GET, "/api/authors"),
            (Method::POST, "/api/quota"),
        ] {
            assert!(counts(&method, path), "{method} {path}");
        }
        for (method, path) in [
            (Method::GET, "/api/quota"),
            (Method::HEAD, "/api/quota"),
            (Method::GET, "/api/auth/profile"),
            (Method::POST, "/api/auth/api-keys"),
            (Method::GET, "/api/admin/users"),
            (Method::GET, "/health"),
            (Method::GET, "/docs"),
        ] {
            assert!(!counts(&method, path), "{method} {path}");
        }
    }

    #[test]
    fn where_somebody_stands_is_said_as_the_draft_says_it() {
        let allowance = |limit, remaining, reset_secs| Allowance { limit, remaining, reset_secs };

        let alone = headers(allowance(1_000, 998, 3_517), None);
        assert_eq!(alone["ratelimit-policy"], r#""hour";q=1000;w=3600"#);
        assert_eq!(alone["ratelimit"], r#""hour";r=998;t=3517"#);

        let both = headers(allowance(1_000, 998, 3_517), Some(allowance(10, 0, 60)));
        assert_eq!(both["ratelimit-policy"], r#""hour";q=1000;w=3600, "key";q=10;w=3600"#);
        assert_eq!(both["ratelimit"], r#""hour";r=998;t=3517, "key";r=0;t=60"#);
    }
}
