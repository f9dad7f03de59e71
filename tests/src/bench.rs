//! What the service costs: one CLI, timed by ways that differ in one thing each. Every run is also held
//! to what was asked of it, since an answer that lost a piece was not faster.

pub mod admission;
pub mod direct;
pub mod figures;
pub mod past;
pub mod protocol;
pub mod service;
pub mod streams;
pub mod turns;
pub mod unserved;
