//! Everybody's API keys: made for an account, and revoked, by an admin.

use poem::web::Data;
use poem_openapi::{
    OpenApi,
    param::{Path, Query},
    payload::Json,
};
use shared::id::{ApiKeyId, UserId};

use super::users;
use crate::{
    app::App,
    auth::{Admin, AdminLogin, Authenticated},
    body::Checked,
    contract::Wire,
    error::ApiError,
    openapi::Tag,
    page::Limit,
    routes::api_keys::{self, ApiKeyList, CreateApiKey, CreateApiKeyResponse, RevokeApiKeyResponse},
};

/// The operations on everybody's keys.
pub struct UserKeysApi;

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl UserKeysApi {
    /// List the API keys of an account, newest first.
    #[oai(path = "/users/:id/api-keys", method = "get", operation_id = "list_user_api_keys")]
    async fn list_user_api_keys(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The account.
        id: Path<Wire<UserId>>,
        /// The most keys to answer; 20 if absent.
        limit: Query<Limit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<ApiKeyId>>>,
    ) -> Result<Json<ApiKeyList>, ApiError> {
        let user = users::find(&app, id.0.0).await?;
        Ok(Json(api_keys::list(&app, user.id, limit.0, cursor.0).await?))
    }

    /// Make an API key for an account.
    #[oai(path = "/users/:id/api-keys", method = "post", operation_id = "create_user_api_key")]
    async fn create_user_api_key(
        &self,
        auth: Authenticated<AdminLogin>,
        app: Data<&App>,
        /// The account.
        id: Path<Wire<UserId>>,
        body: Checked<CreateApiKey>,
    ) -> Result<CreateApiKeyResponse, ApiError> {
        let owner = users::find(&app, id.0.0).await?;
        let (key, text) = app.api_keys.create(body.0.into_new(&owner)?, &auth.by()).await?;
        Ok(CreateApiKeyResponse::of(&key, &text))
    }

    /// Revoke any API key.
    ///
    /// To revoke it again changes nothing.
    #[oai(path = "/api-keys/:id", method = "delete", operation_id = "revoke_any_api_key")]
    async fn revoke_any_api_key(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The key.
        id: Path<Wire<ApiKeyId>>,
    ) -> Result<RevokeApiKeyResponse, ApiError> {
        let was_there = app.api_keys.revoke(id.0.0, None, &auth.by()).await?;
        if was_there { Ok(RevokeApiKeyResponse::Revoked) } else { Err(ApiError::not_found()) }
    }
}
