//! Who a job belongs to.

use uuid::Uuid;

use crate::id::UserId;

/// The seeded user that the bootstrap key of the environment acts for.
pub const BOOTSTRAP_USER: UserId = UserId::from_uuid(Uuid::from_u128(1));
