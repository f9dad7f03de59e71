//! Accounts: to make one, to log in and out, to change one's own. A login is a pair of tokens: one for minutes that
//! every request shows, and one for days that makes the next pair, once.

use std::sync::Arc;

use poem::{Request, web::Data};
use poem_openapi::{ApiResponse, Object, OpenApi, payload::Json, types::MaybeUndefined};
use serde::Deserialize;
use serde_json::json;
use shared::{
    audit::{Action, By},
    config::{ExposeSecret as _, SecretString},
    id::{FamilyId, UserId},
    job::NanoUsd,
    logins::{RefreshToken, Renewal},
    principal::{Credential, Principal},
    time::Timestamp,
    user::{self, Email, PasswordHash, Role, UserLimits},
    users::{NewUser, UserChange},
};

use crate::{
    app::App,
    auth::{self, Account, Anyone, Authenticated},
    body::{Check, Checked, Faults, present},
    client_address::{self, ClientAddress},
    config::{Bootstrap, Registration},
    contract::{Secret, Wire},
    error::{ApiError, Code, FieldError},
    openapi::Tag,
    password::{self, MAX_CHARS, MIN_CHARS, Password},
    token,
};

/// The most characters of a name.
const MAX_NAME_CHARS: usize = 100;

/// The operations on one's own account.
pub struct AuthApi;

/// Somebody to make an account for.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct Register {
    /// The address to log in with. Its case does not matter.
    #[oai(validator(max_length = 254, pattern = "^[^@]+@[^@]+$"))]
    email: String,
    /// The password to log in with.
    #[oai(write_only)]
    password: Wire<Password>,
    /// What they like to be called.
    #[oai(nullable, validator(min_length = 1, max_length = 100, pattern = r"^[^\x00]*$"))]
    name: Option<String>,
    /// `admin`: for admins to give, and for the first one to take. `user` if absent.
    #[serde(default, deserialize_with = "present")]
    role: Option<Wire<Role>>,
}

/// Somebody who comes back.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct Login {
    /// The address of the account.
    #[oai(validator(max_length = 254, pattern = "^[^@]+@[^@]+$"))]
    email: String,
    /// Its password.
    #[oai(write_only)]
    password: Wire<Password>,
}

/// A login to go on with.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct Refresh {
    /// The refresh token of the last answer.
    #[oai(write_only)]
    refresh_token: Wire<Secret>,
}

/// What to change; what is absent stays.
#[derive(Debug, Deserialize, Object)]
#[serde(deny_unknown_fields)]
struct UpdateProfile {
    /// What you like to be called; null for nothing.
    #[serde(default)]
    #[oai(nullable, validator(min_length = 1, max_length = 100, pattern = r"^[^\x00]*$"))]
    name: MaybeUndefined<String>,
    /// The address to log in with. Needs `current_password`.
    #[oai(nullable, validator(max_length = 254, pattern = "^[^@]+@[^@]+$"))]
    email: Option<String>,
    /// The password to log in with. Needs `current_password`, and ends all other logins.
    #[oai(nullable, write_only)]
    password: Option<Wire<Password>>,
    /// The password until now.
    #[oai(nullable, write_only)]
    current_password: Option<Wire<Password>>,
}

/// An account.
#[derive(Clone, Debug, Object)]
pub struct User {
    /// Its id.
    pub id: Wire<UserId>,
    /// The address it logs in with.
    pub email: String,
    /// What its owner likes to be called.
    #[oai(nullable)]
    pub name: Option<String>,
    /// What it is for.
    pub role: Wire<Role>,
    /// Whether it may do nothing at all.
    pub disabled: bool,
    /// Requests in any 60 minutes; null: as many as the server gives everybody.
    #[oai(nullable)]
    pub rate_limit_per_hour: Option<u32>,
    /// Jobs that have not ended, at a time; null: as many as the queue takes.
    #[oai(nullable)]
    pub max_concurrent_jobs: Option<u32>,
    /// What its jobs of one UTC day may cost; null: no end.
    #[oai(nullable)]
    pub daily_budget_usd: Option<f64>,
    /// Turns for one of the others while jobs wait for a worker; null: 1.
    #[oai(nullable)]
    pub queue_weight: Option<u32>,
    /// When it was made.
    pub created_at: Wire<Timestamp>,
    /// When it last logged in.
    #[oai(nullable)]
    pub last_login_at: Option<Wire<Timestamp>>,
}

/// A login.
#[derive(Object)]
struct LoggedIn {
    /// Who logged in.
    user: User,
    /// Shows who you are: `Authorization: Bearer <access_token>`.
    access_token: String,
    /// Makes the next pair of tokens, once. Shown again, it ends the login: somebody has a copy.
    refresh_token: String,
    /// Always `Bearer`.
    token_type: String,
    /// For how many seconds the access token is good.
    expires_in: u64,
}

#[derive(ApiResponse)]
enum RegisterResponse {
    /// The account, logged in.
    #[oai(status = 201)]
    Created(
        Json<LoggedIn>,
        /// Always `no-store`.
        #[oai(header = "Cache-Control")]
        String,
    ),
}

#[derive(ApiResponse)]
enum LoginResponse {
    /// The login.
    #[oai(status = 200)]
    LoggedIn(
        Json<LoggedIn>,
        /// Always `no-store`.
        #[oai(header = "Cache-Control")]
        String,
    ),
}

#[derive(ApiResponse)]
enum LogoutResponse {
    /// The login is over.
    #[oai(status = 204)]
    LoggedOut,
}

/// For answers that nobody on the way may keep.
pub const NO_STORE: &str = "no-store";

#[OpenApi(prefix_path = "/api/auth", tag = "Tag::Accounts")]
impl AuthApi {
    /// Make an account.
    ///
    /// With `role: admin` only while there is no admin and from the server's own machine, or by an admin, whose access
    /// token is shown then. `403` says why not: `admin_exists`, `not_local`, `registration_closed`.
    #[oai(path = "/register", method = "post", operation_id = "register")]
    async fn register(&self, app: Data<&App>, request: &Request, body: Checked<Register>) -> Result<RegisterResponse, ApiError> {
        let (body, caller) = (body.0, Caller::of(request));
        app.throttle.admit_register(caller.from)?;
        let email = parsed(&body.email)?;
        let role = body.role.map_or(Role::User, |Wire(role)| role);
        let entry = admit(&app, &caller, role, request).await?;
        let limits = match entry {
            Entry::Guest => UserLimits { daily_budget: Some(app.config.default_daily_budget), ..UserLimits::default() },
            Entry::FirstAdmin | Entry::ByAdmin => UserLimits::default(),
        };
        let password = app.passwords.hash(&body.password.0).await?;
        let new = NewUser { email, name: body.name, password, role, limits };
        let user = match entry {
            Entry::FirstAdmin => app.users.create_first_admin(new, &caller.by).await?.ok_or_else(admin_exists)?,
            Entry::Guest | Entry::ByAdmin => app.users.create(new, &caller.by).await?,
        };
        let login = LoggedIn::begin(&app, &user, &caller.by).await?;
        Ok(RegisterResponse::Created(Json(login), NO_STORE.to_owned()))
    }

    /// Log in.
    ///
    /// One answer, `invalid_login`, for an account that does not exist and for a wrong password.
    #[oai(path = "/login", method = "post", operation_id = "login")]
    async fn login(&self, app: Data<&App>, request: &Request, body: Checked<Login>) -> Result<LoginResponse, ApiError> {
        let (body, caller) = (body.0, Caller::of(request));
        app.throttle.admit_login(caller.from, &body.email)?;
        let password = &body.password.0;
        let known = app.users.password_of(&parsed(&body.email)?).await?;
        let is_right = app.passwords.verify(password, known.as_ref().map(|(_, hash)| hash)).await?;
        let (user, hash) = match known {
            Some(known) if is_right => known,
            known => {
                note_failure(&app, &caller.by, known.map(|(user, _)| user.id), "password").await?;
                return Err(invalid_login());
            }
        };
        if user.disabled {
            note_failure(&app, &caller.by, Some(user.id), "disabled").await?;
            return Err(auth::disabled());
        }
        let Some((family, token)) = app.logins.begin_by(&user, &hash, &caller.by).await? else { return Err(invalid_login()) };
        if password::is_outdated(&hash) {
            app.users.rehash(user.id, &hash, &app.passwords.hash(password).await?).await?;
        }
        let login = LoggedIn::of(&app, &user, family, &token);
        Ok(LoginResponse::LoggedIn(Json(login), NO_STORE.to_owned()))
    }

    /// Go on with a login.
    ///
    /// Answers with the next pair of tokens. A refresh token works once: shown again, it ends the login with
    /// `token_reused`.
    #[oai(path = "/refresh", method = "post", operation_id = "refresh")]
    async fn refresh(&self, app: Data<&App>, request: &Request, body: Checked<Refresh>) -> Result<LoginResponse, ApiError> {
        let caller = Caller::of(request);
        app.throttle.admit_refresh(caller.from)?;
        let refused = || ApiError::new(Code::InvalidCredentials, "this refresh token is not valid: log in");
        let token: RefreshToken = body.0.refresh_token.0.expose().parse().map_err(|_| refused())?;
        match app.logins.renew(&token, &caller.by).await? {
            Renewal::Renewed { user, family, token } => {
                let login = LoggedIn::of(&app, &user, family, &token);
                Ok(LoginResponse::LoggedIn(Json(login), NO_STORE.to_owned()))
            }
            Renewal::Refused => Err(refused()),
            Renewal::Reused => Err(ApiError::new(Code::TokenReused, "this refresh token was used before: its login is over, log in")),
            Renewal::Disabled => Err(auth::disabled()),
        }
    }

    /// Log out.
    ///
    /// The login of the access token is over: neither of its tokens works any more, within a second on every server.
    #[oai(path = "/logout", method = "post", operation_id = "logout")]
    async fn logout(&self, auth: Authenticated<Account>, app: Data<&App>) -> Result<LogoutResponse, ApiError> {
        app.logins.end(auth.family()?, &auth.by()).await?;
        Ok(LogoutResponse::LoggedOut)
    }

    /// Get your account.
    #[oai(path = "/profile", method = "get", operation_id = "get_profile")]
    async fn get_profile(&self, auth: Authenticated<Anyone>, app: Data<&App>) -> Result<Json<User>, ApiError> {
        // Not the principal's user, which may be a moment old: who has just changed it wants to see that.
        let user = app.users.find(auth.user_id()).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json((&user).into()))
    }

    /// Change your account.
    ///
    /// What is absent stays as it is. A new password ends all your other logins.
    #[oai(path = "/profile", method = "put", operation_id = "update_profile")]
    async fn update_profile(
        &self,
        auth: Authenticated<Account>,
        app: Data<&App>,
        body: Checked<UpdateProfile>,
    ) -> Result<Json<User>, ApiError> {
        let body = body.0;
        let proof = match &body.current_password {
            Some(Wire(current)) => Some(prove(&app, &auth, current).await?),
            None => None,
        };
        let password = match &body.password {
            Some(Wire(password)) => Some(app.passwords.hash(password).await?),
            None => None,
        };
        let change = UserChange {
            email: body.email.as_deref().map(parsed).transpose()?,
            name: body.name.into(),
            password,
            proof,
            keep_family: Some(auth.family()?),
            ..UserChange::default()
        };
        let user = app.users.update(auth.user_id(), change, &auth.by()).await?.ok_or_else(ApiError::not_found)?;
        Ok(Json((&user).into()))
    }
}

/// Who asks for an account, or for a login.
struct Caller {
    by: By,
    from: ClientAddress,
    is_admin: bool,
}

impl Caller {
    fn of(request: &Request) -> Self {
        // A key makes nobody: it is as if it were not shown.
        let is_login = |principal: &&Arc<Principal>| matches!(principal.credential, Credential::Login(_));
        let admin = request.data::<Arc<Principal>>().filter(is_login).filter(|principal| principal.user.role == Role::Admin);
        let from = auth::client(request);
        let by = By { actor: admin.map(|principal| principal.user_id()), api_key: None, address: Some(from.0) };
        Self { by, from, is_admin: admin.is_some() }
    }
}

/// By what right somebody gets an account.
#[derive(Clone, Copy)]
enum Entry {
    /// Registration is open.
    Guest,
    /// There is no admin yet.
    FirstAdmin,
    /// An admin wants it.
    ByAdmin,
}

async fn admit(app: &App, caller: &Caller, role: Role, request: &Request) -> Result<Entry, ApiError> {
    if caller.is_admin {
        return Ok(Entry::ByAdmin);
    }
    match role {
        Role::Admin if app.users.has_admin().await? => Err(admin_exists()),
        Role::Admin if app.config.bootstrap == Bootstrap::Local && !client_address::is_direct_loopback(request) => {
            let detail = "the first admin registers on the server's own machine, or where `BOOTSTRAP_ADMIN` is `open`";
            Err(ApiError::new(Code::NotLocal, detail))
        }
        Role::Admin => Ok(Entry::FirstAdmin),
        Role::User => match app.config.registration {
            Registration::Open => Ok(Entry::Guest),
            Registration::Closed => Err(ApiError::new(Code::RegistrationClosed, "ask an admin for an account")),
        },
    }
}

fn invalid_login() -> ApiError {
    ApiError::new(Code::InvalidLogin, "there is no account with this email and this password")
}

fn admin_exists() -> ApiError {
    ApiError::new(Code::AdminExists, "there is an admin: ask them")
}

/// See that `current` is the caller's password: a token alone, perhaps stolen, changes neither it nor the address.
async fn prove(app: &App, auth: &Authenticated<Account>, current: &Password) -> Result<PasswordHash, ApiError> {
    app.throttle.admit_login(auth.from(), &auth.user.email)?;
    let known = app.users.password_of(&parsed(&auth.user.email)?).await?;
    let own = known.filter(|(user, _)| user.id == auth.user_id()).map(|(_, hash)| hash);
    if app.passwords.verify(current, own.as_ref()).await?
        && let Some(proof) = own
    {
        return Ok(proof);
    }
    note_failure(app, &auth.by(), Some(auth.user_id()), "current_password").await?;
    Err(shared::Error::WrongPassword.into())
}

/// Note that somebody tried to log in. What they typed for an email stays unsaid: it may be a password.
async fn note_failure(app: &App, by: &By, whose: Option<UserId>, reason: &str) -> Result<(), ApiError> {
    let target = whose.map(|id| id.to_string());
    Ok(app.audit.note(by.clone(), Action::LoginFailed, target, Some(json!({"reason": reason}))).await?)
}

impl LoggedIn {
    async fn begin(app: &App, user: &user::User, by: &By) -> Result<Self, ApiError> {
        let (family, token) = app.logins.begin(user, by).await?;
        Ok(Self::of(app, user, family, &token))
    }

    fn of(app: &App, user: &user::User, family: FamilyId, refresh_token: &RefreshToken) -> Self {
        let access_token: SecretString = app.tokens.issue(user, family);
        Self {
            user: user.into(),
            access_token: access_token.expose_secret().to_owned(),
            refresh_token: refresh_token.expose().to_owned(),
            token_type: "Bearer".to_owned(),
            expires_in: token::LIFETIME.as_secs(),
        }
    }
}

impl From<&user::User> for User {
    fn from(user: &user::User) -> Self {
        let UserLimits { rate_limit_per_hour, max_concurrent_jobs, daily_budget, queue_weight } = user.limits;
        Self {
            id: Wire(user.id),
            email: user.email.clone(),
            name: user.name.clone(),
            role: Wire(user.role),
            disabled: user.disabled,
            rate_limit_per_hour,
            max_concurrent_jobs,
            daily_budget_usd: daily_budget.map(NanoUsd::usd),
            queue_weight,
            created_at: Wire(user.created_at),
            last_login_at: user.last_login_at.map(Wire),
        }
    }
}

impl Check for Register {
    fn check(&self) -> Vec<FieldError> {
        let mut faults = Faults::default();
        check_email(&mut faults, &self.email);
        check_password(&mut faults, &self.password.0);
        check_name(&mut faults, self.name.as_deref());
        faults.into()
    }
}

impl Check for Login {
    fn check(&self) -> Vec<FieldError> {
        let mut faults = Faults::default();
        check_email(&mut faults, &self.email);
        check_length(&mut faults, "/password", &self.password.0);
        faults.into()
    }
}

impl Check for Refresh {
    fn check(&self) -> Vec<FieldError> {
        Vec::new()
    }
}

impl Check for UpdateProfile {
    fn check(&self) -> Vec<FieldError> {
        let mut faults = Faults::default();
        check_name(&mut faults, self.name.as_ref().take().map(String::as_str));
        if let Some(email) = &self.email {
            check_email(&mut faults, email);
        }
        if let Some(Wire(password)) = &self.password {
            check_password(&mut faults, password);
        }
        if let Some(Wire(current)) = &self.current_password {
            check_length(&mut faults, "/current_password", current);
        } else {
            let is_needed = self.email.is_some() || self.password.is_some();
            faults.unless(!is_needed, "/current_password", "is needed to change the email or the password");
        }
        faults.into()
    }
}

/// See that `email` is an address to log in with.
pub fn check_email(faults: &mut Faults, email: &str) {
    faults.unless(email.parse::<Email>().is_ok(), "/email", "must be an email address of at most 254 ASCII characters");
}

/// See that an account may have `password`.
pub fn check_password(faults: &mut Faults, password: &Password) {
    faults.unless(password.may_be_chosen(), "/password", format!("must be {MIN_CHARS} to {MAX_CHARS} characters long"));
}

/// See that `name` is one.
pub fn check_name(faults: &mut Faults, name: Option<&str>) {
    let fits = name.is_none_or(|name| (1..=MAX_NAME_CHARS).contains(&name.chars().count()));
    faults.unless(fits, "/name", format!("must be 1 to {MAX_NAME_CHARS} characters long"));
}

fn check_length(faults: &mut Faults, pointer: &str, password: &Password) {
    faults.unless(password.may_be_right(), pointer, format!("must be at most {MAX_CHARS} characters long"));
}

/// An address that was checked, or comes from the record.
pub fn parsed(email: &str) -> Result<Email, ApiError> {
    email.parse().map_err(ApiError::internal)
}
