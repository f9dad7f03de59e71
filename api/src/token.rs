//! Access tokens: JWTs (RFC 7519) signed with HMAC-SHA-256 and nothing else. They live for minutes, and what they
//! say of a user is a hint: whether the login behind one still stands is asked of the record.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use shared::{
    config::{ExposeSecret as _, SecretString},
    id::{FamilyId, UserId},
    time::Timestamp,
    user::{Role, User},
};
use uuid::Uuid;

/// How long an access token is good for.
pub const LIFETIME: Duration = Duration::from_mins(15);

/// How far the clocks of two servers may be apart.
const SKEW_SECS: i64 = 5;
const ISSUER: &str = "claude-api";
const AUDIENCE: &str = "claude-api";
const MIN_SECRET_BYTES: usize = 32;

/// The secrets that sign: the first for new tokens, all of them for those that are shown.
#[derive(Clone, Debug, Default)]
pub struct Secrets(Vec<SecretString>);

/// A secret that anybody could guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeakSecret {
    /// There is none.
    #[error("empty")]
    Missing,
    /// One is too short to withstand guessing.
    #[error("shorter than {MIN_SECRET_BYTES} bytes")]
    Short,
    /// One stands in somebody's documentation, or might as well.
    #[error("an example, or hardly varying")]
    Example,
}

impl Secrets {
    /// The secrets of a comma list.
    pub fn of(list: &SecretString) -> Result<Self, WeakSecret> {
        let entries = list.expose_secret().split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let secrets: Vec<SecretString> = entries.map(|entry| judge(entry).map(|()| entry.into())).collect::<Result<_, _>>()?;
        if secrets.is_empty() { Err(WeakSecret::Missing) } else { Ok(Self(secrets)) }
    }
}

fn judge(secret: &str) -> Result<(), WeakSecret> {
    const EXAMPLES: [&str; 8] = ["changeme", "replaceme", "your", "mysecret", "mysupersecret", "supersecret", "secret", "example"];
    let letters: String = secret.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let varies = secret.bytes().collect::<HashSet<_>>().len() >= 6;
    if secret.len() < MIN_SECRET_BYTES {
        Err(WeakSecret::Short)
    } else if !varies || EXAMPLES.iter().any(|example| letters.starts_with(example)) {
        Err(WeakSecret::Example)
    } else {
        Ok(())
    }
}

/// What a token says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// Whose it is.
    pub sub: UserId,
    /// This token and no other.
    pub jti: String,
    /// The login it grew out of.
    pub fam: FamilyId,
    /// What the user was when it was made.
    pub role: Role,
    /// When it was made, in seconds since the Unix epoch.
    pub iat: i64,
    /// When it ends, likewise.
    pub exp: i64,
    /// Who made it.
    pub iss: String,
    /// Whom it is for.
    pub aud: String,
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It is not one of ours.
    Invalid,
    /// It was, and its time is over.
    Expired,
}

/// Makes tokens, and tells its own from others.
#[derive(Clone)]
pub struct Tokens(Arc<Keys>);

struct Keys {
    signing: EncodingKey,
    accepted: Vec<DecodingKey>,
    validation: Validation,
}

impl Tokens {
    /// Tokens signed by the first of `secrets`.
    pub fn new(secrets: &Secrets) -> Self {
        let bytes = |secret: &SecretString| secret.expose_secret().as_bytes().to_vec();
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        // The times are judged below: the crate looks at neither `iat` nor a clock of ours.
        validation.validate_exp = false;
        Self(Arc::new(Keys {
            signing: EncodingKey::from_secret(&bytes(&secrets.0[0])),
            accepted: secrets.0.iter().map(|secret| DecodingKey::from_secret(&bytes(secret))).collect(),
            validation,
        }))
    }

    /// A token for `user`, who logged in as `family`.
    pub fn issue(&self, user: &User, family: FamilyId) -> SecretString {
        self.issue_at(user, family, now_secs())
    }

    fn issue_at(&self, user: &User, family: FamilyId, iat: i64) -> SecretString {
        let lifetime = i64::try_from(LIFETIME.as_secs()).expect("minutes");
        let claims = Claims {
            sub: user.id,
            jti: Uuid::now_v7().simple().to_string(),
            fam: family,
            role: user.role,
            iat,
            exp: iat + lifetime,
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.0.signing);
        token.expect("any secret can sign by HMAC").into()
    }

    /// What `token` says, if it is one of ours and its time is not over.
    pub fn verify(&self, token: &str) -> Result<Claims, Rejection> {
        self.verify_at(token, now_secs())
    }

    fn verify_at(&self, token: &str, now: i64) -> Result<Claims, Rejection> {
        let decode = |key| jsonwebtoken::decode::<Claims>(token, key, &self.0.validation).ok();
        let claims = self.0.accepted.iter().find_map(decode).ok_or(Rejection::Invalid)?.claims;
        if claims.iat > now + SKEW_SECS {
            return Err(Rejection::Invalid);
        }
        if claims.exp <= now { Err(Rejection::Expired) } else { Ok(claims) }
    }
}

fn now_secs() -> i64 {
    Timestamp::now().unix_ms().div_euclid(1000)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    use serde_json::{Value, json};
    use shared::user::UserLimits;

    use super::*;

    const SECRET: &str = "q7Jp0uYx3kVb8mNz5tRw2cLf6hDs9aGe";
    const OTHER: &str = "Z1x9C8v7B6n5M4a3S2d1F0g9H8j7K6l5";
    const NOW: i64 = 1_795_000_000;

    fn tokens(list: &str) -> Tokens {
        Tokens::new(&Secrets::of(&list.into()).expect("good secrets"))
    }

    fn user() -> User {
        User {
            id: UserId::new(),
            email: "a@example.com".into(),
            name: None,
            role: Role::User,
            disabled: false,
            limits: UserLimits::default(),
            created_at: Timestamp::from_unix_ms(0),
            last_login_at: None,
        }
    }

    fn issued(tokens: &Tokens) -> String {
        tokens.issue_at(&user(), FamilyId::new(), NOW).expose_secret().to_owned()
    }

    /// A token with these claims, signed by `secret` with `algorithm`.
    fn made(algorithm: Algorithm, secret: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = json!({
            "sub": UserId::new(), "jti": "1", "fam": FamilyId::new(), "role": "user",
            "iat": NOW, "exp": NOW + 900, "iss": ISSUER, "aud": AUDIENCE,
        });
        change(&mut claims);
        jsonwebtoken::encode(&Header::new(algorithm), &claims, &EncodingKey::from_secret(secret.as_bytes())).expect("signed")
    }

    fn verdict(token: &str) -> Result<(), Rejection> {
        tokens(SECRET).verify_at(token, NOW).map(|_| ())
    }

    #[test]
    fn a_token_says_whose_it_is_until_its_time_is_over() {
        let (tokens, user, family) = (tokens(SECRET), user(), FamilyId::new());
        let token = tokens.issue_at(&user, family, NOW);

        let claims = tokens.verify_at(token.expose_secret(), NOW + 899).expect("ours");

        assert_eq!((claims.sub, claims.fam, claims.role, claims.exp), (user.id, family, Role::User, NOW + 900));
        assert_eq!(tokens.verify_at(token.expose_secret(), NOW + 900).expect_err("over"), Rejection::Expired);
    }

    #[test]
    fn a_secret_may_be_rotated_without_logging_anybody_out() {
        let old = issued(&tokens(SECRET));
        let both = tokens(&format!("{OTHER}, {SECRET}"));

        assert!(both.verify_at(&old, NOW).is_ok());
        assert!(tokens(OTHER).verify_at(&issued(&both), NOW).is_ok(), "the first one signs");
        assert_eq!(tokens(OTHER).verify_at(&old, NOW).expect_err("retired"), Rejection::Invalid);
    }

    #[test]
    fn a_token_that_claims_something_else_is_none_of_ours() {
        assert_eq!(verdict(&made(Algorithm::HS256, SECRET, |_| {})), Ok(()));
        assert_eq!(verdict(&made(Algorithm::HS256, SECRET, |claims| claims["iat"] = json!(NOW + 5))), Ok(()));

        for (claim, value) in [
            ("aud", json!("others")),
            ("aud", json!(["claude-api"])),
            ("iss", json!("others")),
            ("iat", json!(NOW + 6)),
            ("sub", json!("user_1")),
            ("fam", json!(FamilyId::new().uuid())),
            ("exp", json!("never")),
            ("exp", Value::Null),
            ("role", json!("root")),
        ] {
            let token = made(Algorithm::HS256, SECRET, |claims| claims[claim] = value.clone());
            assert_eq!(verdict(&token), Err(Rejection::Invalid), "{claim}: {value}");
        }
        for claim in ["sub", "jti", "fam", "role", "iat", "exp", "iss", "aud"] {
            let token = made(Algorithm::HS256, SECRET, |claims| drop(claims.as_object_mut().expect("claims").remove(claim)));
            assert_eq!(verdict(&token), Err(Rejection::Invalid), "without {claim}");
        }
    }

    #[test]
    fn only_our_signature_by_our_algorithm_is_one() {
        let token = made(Algorithm::HS256, SECRET, |_| {});
        let (message, signature) = token.rsplit_once('.').expect("three parts");
        let payload = message.split_once('.').expect("two parts").1;
        let head = |alg: &str| BASE64_URL_SAFE_NO_PAD.encode(json!({"typ": "JWT", "alg": alg}).to_string());

        let mut wrong = vec![
            made(Algorithm::HS256, OTHER, |_| {}),
            made(Algorithm::HS384, SECRET, |_| {}),
            made(Algorithm::HS512, SECRET, |_| {}),
            format!("{message}."),
            message.to_owned(),
            format!("{message}.{}", &signature[1..]),
            format!("{token}.{signature}"),
            String::new(),
            "..".to_owned(),
        ];
        for alg in ["none", "None", "NONE", "", "RS256", "ES256", "PS256", "EdDSA", "HS384", "hs256"] {
            wrong.push(format!("{}.{payload}.", head(alg)));
            wrong.push(format!("{}.{payload}.{signature}", head(alg)));
        }
        for token in wrong {
            assert_eq!(verdict(&token), Err(Rejection::Invalid), "{token}");
        }
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused_and_not_shown() {
        let long = "x".repeat(40);
        for (secret, why) in [
            (",", WeakSecret::Missing),
            ("q7Jp0uYx3kVb8mNz5tRw2cLf6hDs9aG", WeakSecret::Short),
            (long.as_str(), WeakSecret::Example),
            ("abababababababababababababababababab", WeakSecret::Example),
            ("changeme-changeme-changeme-changeme-please", WeakSecret::Example),
            ("change_me_to_a_long_random_string_of_bytes", WeakSecret::Example),
            ("your-secret-key-with-at-least-32-characters", WeakSecret::Example),
            ("Your_JWT_Secret_That_Is_Long_Enough_For_This", WeakSecret::Example),
            ("q7Jp0uYx3kVb8mNz5tRw2cLf6hDs9aGe,changeme-changeme-changeme-changeme", WeakSecret::Example),
        ] {
            let error = Secrets::of(&secret.into()).expect_err(secret);
            assert_eq!(error, why, "{secret}");
            assert!(!error.to_string().contains(secret));
        }
        assert!(!format!("{:?}", Secrets::of(&SECRET.into()).expect("good")).contains(SECRET));
    }
}
