//! One's own API keys. The text of a key is in one answer and nowhere else.

use std::net::IpAddr;

use ipnet::IpNet;
use poem::web::Data;
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
};
use serde::Deserialize;
use shared::{
    api_key::{self, Scope},
    api_keys::NewApiKey,
    id::{ApiKeyId, UserId},
    job,
    time::Timestamp,
    user::{Role, User},
};

use crate::{
    app::App,
    auth::{Account, Authenticated},
    body::{Check, Checked, Faults},
    contract::{Bounded, Network, ToolName, Wire},
    error::{ApiError, FieldError},
    openapi::Tag,
    routes::auth::{NO_STORE, check_name},
};

const MAX_RATE_LIMIT: u32 = 1_000_000;
const MAX_JOBS: u32 = 10_000;
const MAX_LISTED: usize = 64;

/// The operations on keys.
pub struct ApiKeysApi;

/// A key to be. What it is not given, its owner's limits decide; it never has more than its owner.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub struct CreateApiKey {
    /// What you call it.
    #[oai(validator(min_length = 1, max_length = 100, pattern = r"^[^\x00]*$"))]
    name: String,
    /// What it may be used for: `chat` and `read` if absent. `admin` only for admins.
    #[oai(nullable, validator(min_items = 1, max_items = 3, unique_items))]
    scopes: Option<Vec<Wire<Scope>>>,
    /// When it stops to work; never if absent.
    #[oai(nullable)]
    expires_at: Option<Wire<Timestamp>>,
    /// Requests in any 60 minutes.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "1000000")))]
    rate_limit_per_hour: Option<u32>,
    /// Jobs that have not ended, at a time.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "10000")))]
    max_concurrent_jobs: Option<u32>,
    /// The tools its jobs may use.
    #[oai(nullable, validator(max_items = 64))]
    allowed_tools: Option<Vec<Wire<ToolName>>>,
    /// Where it may be used from: addresses, and networks such as `10.0.0.0/8`.
    #[oai(nullable, validator(max_items = 64))]
    allowed_ips: Option<Vec<Wire<Network>>>,
}

/// A key, without what proves it.
#[derive(Clone, Debug, Object)]
pub struct ApiKey {
    /// Its id.
    id: Wire<ApiKeyId>,
    /// What its owner calls it.
    name: String,
    /// What it begins with: to know it again.
    prefix: String,
    /// What it may be used for.
    scopes: Vec<Wire<Scope>>,
    /// The tools its jobs may use; null: those of its owner.
    #[oai(nullable)]
    allowed_tools: Option<Vec<String>>,
    /// Where it may be used from; null: anywhere.
    #[oai(nullable)]
    allowed_ips: Option<Vec<String>>,
    /// Requests in any 60 minutes; null: those of its owner.
    #[oai(nullable)]
    rate_limit_per_hour: Option<u32>,
    /// Jobs that have not ended, at a time; null: those of its owner.
    #[oai(nullable)]
    max_concurrent_jobs: Option<u32>,
    /// When it stops to work.
    #[oai(nullable)]
    expires_at: Option<Wire<Timestamp>>,
    /// When it was revoked.
    #[oai(nullable)]
    revoked_at: Option<Wire<Timestamp>>,
    /// When it was last used, to the minute.
    #[oai(nullable)]
    last_used_at: Option<Wire<Timestamp>>,
    /// When it was made.
    created_at: Wire<Timestamp>,
}

/// A key that was just made.
#[derive(Object)]
pub struct CreatedApiKey {
    /// The key itself. Keep it: it is never shown again.
    key: String,
    /// What is known of it from now on.
    api_key: ApiKey,
}

/// A page of keys, newest first.
#[derive(Debug, Object)]
pub struct ApiKeyList {
    /// The keys.
    data: Vec<ApiKey>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<Wire<ApiKeyId>>,
}

/// The answer to the making of a key.
#[derive(ApiResponse)]
pub enum CreateApiKeyResponse {
    /// The key, this once.
    #[oai(status = 201)]
    Created(
        Json<CreatedApiKey>,
        /// Always `no-store`.
        #[oai(header = "Cache-Control")]
        String,
    ),
}

/// The answer to the end of a key.
#[derive(ApiResponse)]
pub enum RevokeApiKeyResponse {
    /// The key works no more, within a second on every server.
    #[oai(status = 204)]
    Revoked,
}

#[OpenApi(prefix_path = "/api/auth", tag = "Tag::Accounts")]
impl ApiKeysApi {
    /// List your API keys, newest first.
    #[oai(path = "/api-keys", method = "get", operation_id = "list_api_keys")]
    async fn list_api_keys(
        &self,
        auth: Authenticated<Account>,
        app: Data<&App>,
        /// The most keys to answer; 20 if absent.
        limit: Query<Option<Wire<Bounded<1, 100>>>>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<ApiKeyId>>>,
    ) -> Result<Json<ApiKeyList>, ApiError> {
        Ok(Json(list(&app, auth.user_id(), limit.0, cursor.0).await?))
    }

    /// Make an API key.
    #[oai(path = "/api-keys", method = "post", operation_id = "create_api_key")]
    async fn create_api_key(
        &self,
        auth: Authenticated<Account>,
        app: Data<&App>,
        body: Checked<CreateApiKey>,
    ) -> Result<CreateApiKeyResponse, ApiError> {
        let (key, text) = app.api_keys.create(body.0.into_new(&auth.user)?, &auth.by()).await?;
        Ok(CreateApiKeyResponse::of(&key, &text))
    }

    /// Revoke one of your API keys.
    ///
    /// To revoke it again changes nothing.
    #[oai(path = "/api-keys/:id", method = "delete", operation_id = "revoke_api_key")]
    async fn revoke_api_key(
        &self,
        auth: Authenticated<Account>,
        app: Data<&App>,
        /// The key.
        id: Path<Wire<ApiKeyId>>,
    ) -> Result<RevokeApiKeyResponse, ApiError> {
        let was_there = app.api_keys.revoke(id.0.0, Some(auth.user_id()), &auth.by()).await?;
        if was_there { Ok(RevokeApiKeyResponse::Revoked) } else { Err(ApiError::not_found()) }
    }
}

/// A page of the keys of `owner`.
pub async fn list(
    app: &App,
    owner: UserId,
    limit: Option<Wire<Bounded<1, 100>>>,
    cursor: Option<Wire<ApiKeyId>>,
) -> Result<ApiKeyList, ApiError> {
    let limit = limit.map_or(20, |Wire(Bounded(limit))| limit);
    // One more than asked for tells whether there is another page.
    let mut keys = app.api_keys.list(owner, cursor.map(|Wire(id)| id), limit + 1).await?;
    let size = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = keys.len() > size;
    keys.truncate(size);
    let next_cursor = keys.last().filter(|_| more).map(|key| Wire(key.id));
    Ok(ApiKeyList { data: keys.iter().map(ApiKey::from).collect(), next_cursor })
}

impl CreateApiKey {
    /// The key as the record wants it, for `owner`.
    pub fn into_new(self, owner: &User) -> Result<NewApiKey, ApiError> {
        let scopes =
            self.scopes.map_or_else(|| vec![Scope::Chat, Scope::Read], |scopes| scopes.into_iter().map(|Wire(scope)| scope).collect());
        // Not a [`Check`]: it depends on whose key it is.
        if owner.role != Role::Admin
            && let Some(index) = scopes.iter().position(|scope| *scope == Scope::Admin)
        {
            let detail = "is for keys of admins";
            return Err(ApiError::invalid(vec![FieldError::new(format!("/scopes/{index}"), detail)]));
        }
        Ok(NewApiKey {
            user_id: owner.id,
            name: self.name,
            scopes,
            allowed_tools: self.allowed_tools.map(|tools| tools.into_iter().map(|Wire(ToolName(name))| name).collect()),
            allowed_ips: self.allowed_ips.map(|networks| networks.iter().filter_map(|Wire(Network(text))| network(text)).collect()),
            rate_limit_per_hour: self.rate_limit_per_hour,
            max_concurrent_jobs: self.max_concurrent_jobs,
            expires_at: self.expires_at.map(|Wire(at)| at),
        })
    }
}

impl Check for CreateApiKey {
    fn check(&self) -> Vec<FieldError> {
        let mut faults = Faults::default();
        check_name(&mut faults, Some(&self.name));
        if let Some(scopes) = &self.scopes {
            let differ = scopes.iter().enumerate().all(|(index, scope)| !scopes[..index].contains(scope));
            faults.unless(!scopes.is_empty() && differ, "/scopes", "must be some of `chat`, `read` and `admin`, each once");
        }
        let is_future = self.expires_at.is_none_or(|Wire(at)| at > Timestamp::now());
        faults.unless(is_future, "/expires_at", "must be in the future");
        for (pointer, number, max) in [
            ("/rate_limit_per_hour", self.rate_limit_per_hour, MAX_RATE_LIMIT),
            ("/max_concurrent_jobs", self.max_concurrent_jobs, MAX_JOBS),
        ] {
            let is_within = number.is_none_or(|number| (1..=max).contains(&number));
            faults.unless(is_within, pointer, format!("must be from 1 to {max}"));
        }
        let tools = self.allowed_tools.as_deref().unwrap_or_default();
        faults.unless(tools.len() <= MAX_LISTED, "/allowed_tools", format!("must be at most {MAX_LISTED} names"));
        for (index, Wire(ToolName(name))) in tools.iter().enumerate().take(MAX_LISTED) {
            let detail = "must be a tool that jobs may use: 1 to 64 letters, digits or `_`, beginning with a letter";
            faults.unless(job::may_be_offered(name), format!("/allowed_tools/{index}"), detail);
        }
        let networks = self.allowed_ips.as_deref().unwrap_or_default();
        faults.unless(networks.len() <= MAX_LISTED, "/allowed_ips", format!("must be at most {MAX_LISTED} addresses or networks"));
        for (index, Wire(Network(text))) in networks.iter().enumerate().take(MAX_LISTED) {
            let detail = "must be an address or a network such as `10.0.0.0/8`";
            faults.unless(network(text).is_some(), format!("/allowed_ips/{index}"), detail);
        }
        faults.into()
    }
}

/// A network, or an address alone. One of IPv4 in the clothes of IPv6 is that of IPv4.
fn network(text: &str) -> Option<IpNet> {
    let address = || text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    text.parse::<IpNet>().ok().map(|net| net.trunc()).or_else(address)
}

impl CreateApiKeyResponse {
    /// The answer with `text`, the key itself.
    pub fn of(key: &api_key::ApiKey, text: &api_key::KeyText) -> Self {
        let created = CreatedApiKey { key: text.expose().to_owned(), api_key: key.into() };
        Self::Created(Json(created), NO_STORE.to_owned())
    }
}

impl From<&api_key::ApiKey> for ApiKey {
    fn from(key: &api_key::ApiKey) -> Self {
        Self {
            id: Wire(key.id),
            name: key.name.clone(),
            prefix: key.prefix.clone(),
            scopes: key.scopes.iter().copied().map(Wire).collect(),
            allowed_tools: key.allowed_tools.clone(),
            allowed_ips: key.allowed_ips.as_ref().map(|nets| nets.iter().map(ToString::to_string).collect()),
            rate_limit_per_hour: key.rate_limit_per_hour,
            max_concurrent_jobs: key.max_concurrent_jobs,
            expires_at: key.expires_at.map(Wire),
            revoked_at: key.revoked_at.map(Wire),
            last_used_at: key.last_used_at.map(Wire),
            created_at: Wire(key.created_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::body::parse;

    fn pointers(field: &str, value: Value) -> Vec<String> {
        let mut body = json!({"name": "k"});
        body[field] = value;
        match parse::<CreateApiKey>(body.to_string().as_bytes()) {
            Ok(_) => Vec::new(),
            Err(error) => error.problem("r").errors.into_iter().map(|error| error.pointer).collect(),
        }
    }

    #[test]
    fn every_wrong_field_is_pointed_at() {
        for (field, value, pointer) in [
            ("name", json!(""), "/name"),
            ("name", json!("é".repeat(101)), "/name"),
            ("name", Value::Null, "/name"),
            ("scopes", json!([]), "/scopes"),
            ("scopes", json!(["read", "chat", "read"]), "/scopes"),
            ("scopes", json!(["read", "write"]), "/scopes/1"),
            ("expires_at", json!("2020-01-01T00:00:00Z"), "/expires_at"),
            ("expires_at", json!("tomorrow"), "/expires_at"),
            ("rate_limit_per_hour", json!(0), "/rate_limit_per_hour"),
            ("rate_limit_per_hour", json!(1_000_001), "/rate_limit_per_hour"),
            ("max_concurrent_jobs", json!(0), "/max_concurrent_jobs"),
            ("max_concurrent_jobs", json!(10_001), "/max_concurrent_jobs"),
            ("allowed_tools", json!(["Read", "CronCreate"]), "/allowed_tools/1"),
            ("allowed_tools", json!(vec!["Read"; 65]), "/allowed_tools"),
            ("allowed_ips", json!(["10.0.0.1", "10.0.0.0/33"]), "/allowed_ips/1"),
            ("allowed_ips", json!(["example.com"]), "/allowed_ips/0"),
            ("allowed_ips", json!(vec!["10.0.0.1"; 65]), "/allowed_ips"),
            ("limit", json!(1), "/limit"),
        ] {
            assert_eq!(pointers(field, value.clone()), [pointer], "{field}: {value}");
        }
    }

    #[test]
    fn what_is_at_its_limit_is_taken() {
        for (field, value) in [
            ("name", json!("é".repeat(100))),
            ("scopes", json!(["read", "chat", "admin"])),
            ("scopes", Value::Null),
            ("expires_at", json!("2999-01-01T00:00:00+02:00")),
            ("rate_limit_per_hour", json!(1_000_000)),
            ("max_concurrent_jobs", json!(10_000)),
            ("allowed_tools", json!([])),
            ("allowed_tools", json!(vec!["mcp__files__read"; 64])),
            ("allowed_ips", json!(["10.0.0.7", "10.0.0.0/8", "::1", "2001:db8::/32"])),
        ] {
            assert_eq!(pointers(field, value.clone()), [""; 0], "{field}: {value}");
        }
    }

    #[test]
    fn an_address_is_a_network_of_one() {
        let shown = |text| network(text).map(|net| net.to_string());

        assert_eq!(shown("10.0.0.7").as_deref(), Some("10.0.0.7/32"));
        assert_eq!(shown("10.1.2.3/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(shown("::ffff:10.0.0.7").as_deref(), Some("10.0.0.7/32"));
        assert_eq!(shown("2001:db8::7").as_deref(), Some("2001:db8::7/128"));
    }
}
