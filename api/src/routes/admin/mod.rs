//! What admins see and do, over everybody's accounts and jobs. Who acts is written to the audit log with
//! what they change.

pub mod api_keys;
pub mod audit_log;
pub mod jobs;
pub mod sessions;
pub mod stats;
pub mod tools;
pub mod usage;
pub mod users;
pub mod workers;

use self::{
    api_keys::UserKeysApi, audit_log::AuditLogApi, jobs::AllJobsApi, sessions::AllSessionsApi, stats::StatsApi, tools::SwitchesApi,
    usage::AllUsageApi, users::UsersApi, workers::WorkersApi,
};

/// The operations for admins.
pub type Operations = (UsersApi, UserKeysApi, AllJobsApi, AllSessionsApi, WorkersApi, StatsApi, AllUsageApi, SwitchesApi, AuditLogApi);

/// Every one of them.
pub const OPERATIONS: Operations =
    (UsersApi, UserKeysApi, AllJobsApi, AllSessionsApi, WorkersApi, StatsApi, AllUsageApi, SwitchesApi, AuditLogApi);
