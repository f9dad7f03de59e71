//! What everybody used and what it cost.

use poem::web::Data;
use poem_openapi::{OpenApi, param::Query, payload::Json};
use shared::{id::UserId, time::Timestamp, usage::UsageGroup};

use crate::{
    app::App,
    auth::{Admin, Authenticated},
    contract::Wire,
    error::ApiError,
    openapi::Tag,
    routes::usage::{self, UsageReport},
};

/// The operations on everybody's usage.
pub struct AllUsageApi;

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl AllUsageApi {
    /// Get what everybody used and what it cost.
    #[oai(path = "/usage", method = "get", operation_id = "get_all_usage")]
    async fn get_all_usage(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// Only what this account used.
        user_id: Query<Option<Wire<UserId>>>,
        /// Attempts that ended at this time or later; 30 days before `to` if absent.
        from: Query<Option<Wire<Timestamp>>>,
        /// Attempts that ended before this time, at most 366 days after `from`; now if absent.
        to: Query<Option<Wire<Timestamp>>>,
        /// What to add up by; `day` if absent.
        group_by: Query<Option<Wire<UsageGroup>>>,
    ) -> Result<Json<UsageReport>, ApiError> {
        let user = user_id.0.map(|Wire(user)| user);
        Ok(Json(usage::report(&app, user, from.0, to.0, group_by.0).await?))
    }
}
