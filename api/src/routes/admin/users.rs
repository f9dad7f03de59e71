//! Accounts, as an admin sees and changes them.

use std::collections::HashMap;

use poem::web::Data;
use poem_openapi::{
    ApiResponse, Object, OpenApi,
    param::{Path, Query},
    payload::Json,
    types::MaybeUndefined,
};
use serde::Deserialize;
use shared::{
    id::UserId,
    job::NanoUsd,
    stats::UserActivity,
    user::{self, Role, UserLimits},
    users::{NewUser, UserChange, UserFilter},
};

use crate::{
    app::App,
    auth::{Admin, AdminLogin, Authenticated, Right as _},
    body::{Check, Checked, Faults, present},
    contract::Wire,
    error::{ApiError, FieldError},
    openapi::Tag,
    page::{Limit, Page},
    password::Password,
    routes::auth::{User, check_email, check_name, check_password, parsed},
};

const MAX_RATE_LIMIT: u32 = 1_000_000;
const MAX_JOBS: u32 = 10_000;
const MAX_WEIGHT: u32 = 1_000;
const MAX_BUDGET_USD: f64 = 1_000_000.0;

/// The operations on accounts.
pub struct UsersApi;

/// An account to be.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct CreateUser {
    /// The address to log in with. Its case does not matter.
    #[oai(validator(max_length = 254, pattern = "^[^@]+@[^@]+$"))]
    email: String,
    /// The password to log in with.
    #[oai(write_only)]
    password: Wire<Password>,
    /// What they like to be called.
    #[oai(nullable, validator(min_length = 1, max_length = 100, pattern = r"^[^\x00]*$"))]
    name: Option<String>,
    /// What the account is for; `user` if absent.
    #[serde(default, deserialize_with = "present")]
    role: Option<Wire<Role>>,
    /// Requests in any 60 minutes; as many as the server gives everybody if absent.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "1000000")))]
    rate_limit_per_hour: Option<u32>,
    /// Jobs that have not ended, at a time; as many as the queue takes if absent.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "10000")))]
    max_concurrent_jobs: Option<u32>,
    /// What the jobs of one UTC day may cost; no end if absent.
    #[oai(nullable, validator(minimum(value = "0"), maximum(value = "1000000")))]
    daily_budget_usd: Option<f64>,
    /// Turns for one of the others while jobs wait for a worker; 1 if absent.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "1000")))]
    queue_weight: Option<u32>,
}

/// What to change of an account; what is absent stays.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct UpdateUser {
    /// The address to log in with.
    #[serde(default, deserialize_with = "present")]
    #[oai(validator(max_length = 254, pattern = "^[^@]+@[^@]+$"))]
    email: Option<String>,
    /// A password to log in with from now on. Ends all logins of the account.
    #[serde(default, deserialize_with = "present")]
    #[oai(write_only)]
    password: Option<Wire<Password>>,
    /// What they like to be called; null for nothing.
    #[serde(default)]
    #[oai(nullable, validator(min_length = 1, max_length = 100, pattern = r"^[^\x00]*$"))]
    name: MaybeUndefined<String>,
    /// What the account is for.
    #[serde(default, deserialize_with = "present")]
    role: Option<Wire<Role>>,
    /// Whether it may do nothing at all.
    #[serde(default, deserialize_with = "present")]
    disabled: Option<bool>,
    /// Requests in any 60 minutes; null: as many as the server gives everybody.
    #[serde(default)]
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "1000000")))]
    rate_limit_per_hour: MaybeUndefined<u32>,
    /// Jobs that have not ended, at a time; null: as many as the queue takes.
    #[serde(default)]
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "10000")))]
    max_concurrent_jobs: MaybeUndefined<u32>,
    /// What the jobs of one UTC day may cost; null: no end.
    #[serde(default)]
    #[oai(nullable, validator(minimum(value = "0"), maximum(value = "1000000")))]
    daily_budget_usd: MaybeUndefined<f64>,
    /// Turns for one of the others while jobs wait for a worker; null: 1.
    #[serde(default)]
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "1000")))]
    queue_weight: MaybeUndefined<u32>,
}

/// An account, and what it has and does.
#[derive(Debug, Object)]
struct UserDetails {
    #[oai(flatten)]
    user: User,
    /// Its keys that work.
    api_keys: u64,
    /// Its jobs that run.
    running_jobs: u64,
    /// What its jobs of this UTC day cost so far.
    spent_today_usd: f64,
}

/// A page of accounts, newest first.
#[derive(Debug, Object)]
struct UserList {
    /// The accounts.
    data: Vec<UserDetails>,
    /// The `cursor` of the next page; null on the last.
    #[oai(nullable)]
    next_cursor: Option<Wire<UserId>>,
}

#[derive(ApiResponse)]
enum CreateUserResponse {
    /// The account.
    #[oai(status = 201)]
    Created(
        Json<UserDetails>,
        /// Where it is.
        #[oai(header = "Location")]
        String,
    ),
}

#[derive(ApiResponse)]
enum DeleteUserResponse {
    /// The account is gone: its credentials are dead, its jobs are cancelled, its address is free.
    #[oai(status = 204)]
    Deleted,
}

#[OpenApi(prefix_path = "/api/admin", tag = "Tag::Admin")]
impl UsersApi {
    /// List the accounts, newest first.
    #[oai(path = "/users", method = "get", operation_id = "list_users")]
    async fn list_users(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// Only accounts with this in their address or name.
        #[oai(validator(max_length = 254))]
        query: Query<Option<String>>,
        /// The most accounts to answer; 20 if absent.
        limit: Query<Limit>,
        /// The `next_cursor` of the page before.
        cursor: Query<Option<Wire<UserId>>>,
    ) -> Result<Json<UserList>, ApiError> {
        let page = Page::of(limit.0);
        let filter = UserFilter { query: query.0, before: cursor.0.map(|Wire(id)| id), limit: page.rows() };
        let mut users = app.users.list(filter).await?;
        let next_cursor = page.cut(&mut users).map(|user| Wire(user.id));
        let ids: Vec<UserId> = users.iter().map(|user| user.id).collect();
        let activities = app.stats.of_users(&ids).await?;
        Ok(Json(UserList { data: users.iter().map(|user| UserDetails::of(user, &activities)).collect(), next_cursor }))
    }

    /// Make an account.
    ///
    /// An admin is made with an access token, not with a key.
    #[oai(path = "/users", method = "post", operation_id = "create_user")]
    async fn create_user(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        body: Checked<CreateUser>,
    ) -> Result<CreateUserResponse, ApiError> {
        let body = body.0;
        if body.role == Some(Wire(Role::Admin)) {
            AdminLogin::judge(auth.principal())?;
        }
        let new = NewUser {
            email: parsed(&body.email)?,
            name: body.name,
            password: app.passwords.hash(&body.password.0).await?,
            role: body.role.map_or(Role::User, |Wire(role)| role),
            limits: UserLimits {
                rate_limit_per_hour: body.rate_limit_per_hour,
                max_concurrent_jobs: body.max_concurrent_jobs,
                daily_budget: body.daily_budget_usd.map(NanoUsd::from_usd),
                queue_weight: body.queue_weight,
            },
        };
        let user = app.users.create(new, &auth.by()).await?;
        let location = format!("/api/admin/users/{}", user.id);
        Ok(CreateUserResponse::Created(Json(UserDetails::of(&user, &HashMap::new())), location))
    }

    /// Get an account.
    #[oai(path = "/users/:id", method = "get", operation_id = "get_user")]
    async fn get_user(
        &self,
        _auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The account.
        id: Path<Wire<UserId>>,
    ) -> Result<Json<UserDetails>, ApiError> {
        let user = find(&app, id.0.0).await?;
        Ok(Json(UserDetails::look_up(&app, &user).await?))
    }

    /// Change an account.
    ///
    /// What is absent stays as it is; a limit that is null is none. A role, a limit or `disabled` holds within
    /// a second on every server. The last admin who can log in stays one: `last_admin`. A role, an address or a
    /// password is set with an access token, not with a key.
    #[oai(path = "/users/:id", method = "patch", operation_id = "update_user")]
    async fn update_user(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The account.
        id: Path<Wire<UserId>>,
        body: Checked<UpdateUser>,
    ) -> Result<Json<UserDetails>, ApiError> {
        if body.0.decides_who_gets_in() {
            AdminLogin::judge(auth.principal())?;
        }
        let change = body.0.into_change(&app).await?;
        let user = app.users.update(id.0.0, change, &auth.by()).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json(UserDetails::look_up(&app, &user).await?))
    }

    /// Delete an account.
    ///
    /// What it used stays in the accounts, and what it did in the audit log.
    #[oai(path = "/users/:id", method = "delete", operation_id = "delete_user")]
    async fn delete_user(
        &self,
        auth: Authenticated<Admin>,
        app: Data<&App>,
        /// The account.
        id: Path<Wire<UserId>>,
    ) -> Result<DeleteUserResponse, ApiError> {
        let was_there = app.users.delete(id.0.0, &auth.by()).await?;
        if was_there { Ok(DeleteUserResponse::Deleted) } else { Err(ApiError::not_found()) }
    }
}

/// An account, whoever's it is.
pub async fn find(app: &App, id: UserId) -> Result<user::User, ApiError> {
    app.users.find(id).await?.ok_or_else(ApiError::not_found)
}

impl UserDetails {
    async fn look_up(app: &App, user: &user::User) -> Result<Self, ApiError> {
        Ok(Self::of(user, &app.stats.of_users(&[user.id]).await?))
    }

    fn of(user: &user::User, activities: &HashMap<UserId, UserActivity>) -> Self {
        let UserActivity { api_keys, running_jobs, spent_today } = activities.get(&user.id).copied().unwrap_or_default();
        Self { user: user.into(), api_keys, running_jobs, spent_today_usd: spent_today.usd() }
    }
}

impl UpdateUser {
    /// Whether it sets what a key, which may be taken away any time, must not: who may log in, and as what.
    fn decides_who_gets_in(&self) -> bool {
        self.email.is_some() || self.password.is_some() || self.role.is_some()
    }

    async fn into_change(self, app: &App) -> Result<UserChange, ApiError> {
        let password = match &self.password {
            Some(Wire(password)) => Some(app.passwords.hash(password).await?),
            None => None,
        };
        let budget: Option<Option<f64>> = self.daily_budget_usd.into();
        Ok(UserChange {
            email: self.email.as_deref().map(parsed).transpose()?,
            name: self.name.into(),
            role: self.role.map(|Wire(role)| role),
            disabled: self.disabled,
            rate_limit_per_hour: self.rate_limit_per_hour.into(),
            max_concurrent_jobs: self.max_concurrent_jobs.into(),
            queue_weight: self.queue_weight.into(),
            daily_budget: budget.map(|budget| budget.map(NanoUsd::from_usd)),
            password,
            proof: None,
            keep_family: None,
        })
    }
}

impl Check for CreateUser {
    fn check(&self) -> Vec<FieldError> {
        let mut faults = Faults::default();
        check_email(&mut faults, &self.email);
        check_password(&mut faults, &self.password.0);
        check_name(&mut faults, self.name.as_deref());
        check_limits(&mut faults, self.rate_limit_per_hour, self.max_concurrent_jobs, self.queue_weight, self.daily_budget_usd);
        faults.into()
    }
}

impl Check for UpdateUser {
    fn check(&self) -> Vec<FieldError> {
        let mut faults = Faults::default();
        if let Some(email) = &self.email {
            check_email(&mut faults, email);
        }
        if let Some(Wire(password)) = &self.password {
            check_password(&mut faults, password);
        }
        check_name(&mut faults, self.name.as_ref().take().map(String::as_str));
        let (rate, jobs) = (self.rate_limit_per_hour.as_ref().take(), self.max_concurrent_jobs.as_ref().take());
        let (weight, budget) = (self.queue_weight.as_ref().take(), self.daily_budget_usd.as_ref().take());
        check_limits(&mut faults, rate.copied(), jobs.copied(), weight.copied(), budget.copied());
        faults.into()
    }
}

fn check_limits(faults: &mut Faults, rate: Option<u32>, jobs: Option<u32>, weight: Option<u32>, budget: Option<f64>) {
    let counts =
        [("/rate_limit_per_hour", rate, MAX_RATE_LIMIT), ("/max_concurrent_jobs", jobs, MAX_JOBS), ("/queue_weight", weight, MAX_WEIGHT)];
    for (pointer, number, max) in counts {
        let is_within = number.is_none_or(|number| (1..=max).contains(&number));
        faults.unless(is_within, pointer, format!("must be from 1 to {max}"));
    }
    let is_within = budget.is_none_or(|budget| (0.0..=MAX_BUDGET_USD).contains(&budget));
    faults.unless(is_within, "/daily_budget_usd", format!("must be from 0 to {MAX_BUDGET_USD}"));
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{body::parse, error::Code};

    fn pointers(body: &Value) -> Vec<String> {
        match parse::<UpdateUser>(body.to_string().as_bytes()) {
            Ok(_) => Vec::new(),
            Err(error) => {
                assert_eq!(error.code(), Code::InvalidRequest);
                error.problem("r").errors.into_iter().map(|error| error.pointer).collect()
            }
        }
    }

    #[test]
    fn a_change_stays_within_the_bounds() {
        for (wrong, pointer) in [
            (json!({"role": null}), "/role"),
            (json!({"disabled": null}), "/disabled"),
            (json!({"email": null}), "/email"),
            (json!({"password": null}), "/password"),
            (json!({"rate_limit_per_hour": 0}), "/rate_limit_per_hour"),
            (json!({"rate_limit_per_hour": 1_000_001}), "/rate_limit_per_hour"),
            (json!({"max_concurrent_jobs": 10_001}), "/max_concurrent_jobs"),
            (json!({"queue_weight": 0}), "/queue_weight"),
            (json!({"queue_weight": 1_001}), "/queue_weight"),
            (json!({"daily_budget_usd": -0.01}), "/daily_budget_usd"),
            (json!({"daily_budget_usd": 1_000_000.01}), "/daily_budget_usd"),
            (json!({"name": ""}), "/name"),
            (json!({"email": "nobody"}), "/email"),
            (json!({"password": "short"}), "/password"),
            (json!({"role": "root"}), "/role"),
            (json!({"disabled": "yes"}), "/disabled"),
            (json!({"id": 1}), "/id"),
        ] {
            assert_eq!(pointers(&wrong), [pointer], "{wrong}");
        }
        for right in [
            json!({}),
            json!({"name": null}),
            json!({"daily_budget_usd": null}),
            json!({"daily_budget_usd": 0}),
            json!({"rate_limit_per_hour": 1_000_000, "max_concurrent_jobs": 1}),
            json!({"disabled": false}),
        ] {
            assert_eq!(pointers(&right), [] as [String; 0], "{right}");
        }
    }
}
