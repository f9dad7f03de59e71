//! `api` turns HTTP into jobs and events into HTTP. A request passes, from the outside in: the connection
//! (`serve`), the envelope every answer has (`envelope`), the caller (`auth`), and an operation (`routes`).
//! What watches a job reads from its feed (`feed`, `ring`, `watch`), as a stream (`sse`) or over a socket with
//! much else (`socket`); who stays may go on staying while their `standing` is good.

pub mod app;
pub mod auth;
pub mod body;
pub mod client_address;
pub mod config;
pub mod contract;
pub mod cors;
pub mod dashboard;
pub mod deadline;
pub mod envelope;
pub mod error;
pub mod feed;
pub mod glance;
pub mod handover;
pub mod job_news;
pub mod limit;
pub mod metrics;
pub mod models;
pub mod openapi;
pub mod operator;
pub mod page;
pub mod password;
pub mod places;
pub mod ring;
pub mod routes;
pub mod serve;
pub mod shutdown;
pub mod socket;
pub mod sse;
pub mod standing;
pub mod throttle;
pub mod token;
pub mod upload;
pub mod watch;

use std::sync::Arc;

use poem::{Endpoint, EndpointExt as _, Response};

use crate::{app::App, envelope::Envelope, openapi::AllowedMethods, routes::files};

/// Everything this server answers.
pub fn endpoint(app: App) -> impl Endpoint<Output = Response> {
    let config = &app.config;
    let (origins, proxies) = (config.origins.clone(), config.trusted_proxies.clone());
    let envelope = Arc::new(Envelope::new(origins, AllowedMethods::of_contract(), proxies, app.metrics.traffic.clone()));
    openapi::routes().around(deadline::bound).around(auth::authenticate).data(app).around(move |next, mut request| {
        let envelope = envelope.clone();
        files::join_path(&mut request);
        async move { Box::pin(envelope.wrap(next, request)).await }
    })
}
