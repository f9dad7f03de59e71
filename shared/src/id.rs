//! Identifiers: a UUID inside, with a prefix at the edge (`job_0199…`), so that an id of the wrong kind
//! is refused where it enters and visible in a log.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// A text that is not an identifier of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an id of the form `{prefix}<32 hex digits>`")]
pub struct InvalidId {
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// What every id of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh id: UUIDv7 (RFC 9562), so ids sort by the time of their making.
            #[expect(clippy::new_without_default, reason = "each call makes another id: no default exists")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id around a UUID read back from a store.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The bare UUID, as stores keep it.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = InvalidId { prefix: $prefix };
                let hex = text.strip_prefix($prefix).ok_or_else(|| invalid.clone())?;
                // One id has one spelling: `Uuid` would also take braces, hyphens and capitals.
                if hex.len() != 32 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(invalid);
                }
                Uuid::try_parse(hex).map(Self).map_err(|_| invalid)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

id!(
    /// A chat job.
    JobId,
    "job_"
);
id!(
    /// A login: everything that grew out of one password shown once.
    FamilyId,
    "fam_"
);
id!(
    /// A conversation session.
    SessionId,
    "sess_"
);
id!(
    /// A user account.
    UserId,
    "user_"
);
id!(
    /// An API key.
    ApiKeyId,
    "key_"
);
id!(
    /// An entry of the audit log.
    AuditId,
    "audit_"
);
id!(
    /// One incarnation of a worker process: a restarted worker is another one.
    WorkerId,
    "worker_"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_its_text_form() {
        let id = JobId::new();

        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn other_spellings_of_an_id_are_refused() {
        let hex = "0199a1b2c3d47e5f8a9b0c1d2e3f4a5b";

        assert!(format!("job_{hex}").parse::<JobId>().is_ok());
        for wrong in
            [hex.to_owned(), format!("user_{hex}"), format!("job_{}", hex.to_uppercase()), "job_".to_owned(), format!("job_{hex}0")]
        {
            assert!(wrong.parse::<JobId>().is_err(), "{wrong}");
        }
    }
}
