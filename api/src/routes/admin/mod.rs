//! What admins see and do, over everybody's accounts and jobs. Who acts is written to the audit log with
//! what they change.

pub mod tools;
