//! The way into a WebSocket: the handshake (RFC 6455, section 4.2). A browser cannot set headers, so a token
//! may also come as a subprotocol, or in the first message.

use std::sync::Arc;

use poem::{
    Request,
    http::{HeaderMap, HeaderValue, header},
    web::Data,
};
use poem_openapi::{ApiResponse, OpenApi};
use shared::principal::Principal;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::{
    app::App,
    auth::{self, Expiry, Verified},
    cors::Caller,
    error::{ApiError, Code},
    handover::Handover,
    openapi::Tag,
    serve::Wire,
    socket::Socket,
};

/// Where sockets are opened.
pub const PATH: &str = "/api/ws";
/// The subprotocol we speak.
const PROTOCOL: &str = "claude.v1";
/// What a token begins with that comes as a subprotocol.
const BEARER: &str = "bearer.";

/// The operation that opens a socket.
pub struct SocketApi;

#[derive(ApiResponse)]
enum OpenSocketResponse {
    /// The connection is a WebSocket from here on.
    #[oai(status = 101)]
    Switching(
        /// `websocket`.
        #[oai(header = "Upgrade")]
        String,
        /// `Upgrade`.
        #[oai(header = "Connection")]
        String,
        /// That the handshake was understood.
        #[oai(header = "Sec-WebSocket-Accept")]
        String,
        /// `claude.v1`, where it was offered.
        #[oai(header = "Sec-WebSocket-Protocol")]
        Option<String>,
    ),
}

#[OpenApi(prefix_path = "/api", tag = "Tag::Jobs")]
impl SocketApi {
    /// Open a WebSocket.
    ///
    /// For many jobs over one connection, and news of all of them. Say who you are by the usual headers; by
    /// offering the subprotocols `claude.v1` and `bearer.<access token or key>`, of which `claude.v1` is selected; or within
    /// 5 seconds by the message `{"type": "auth", "token": …}`, which may be sent again before a token expires.
    ///
    /// Messages are JSON objects, one a frame, with a `type`. Yours, each with a `request_id` if you like:
    /// `subscribe {job_id, after?}`, `unsubscribe {job_id}`, `chat {…}` with the fields of `POST /api/chat` and
    /// `idempotency_key`, `cancel {job_id}`, `watch {what}` and `unwatch {what}` with `jobs` or, for admins,
    /// `system`, `ping`. Ours: `ack {request_id, …}` or `error {request_id, code, detail, errors?}` for each of them,
    /// `event {job_id, event}`, `job {job}`, `system {workers, queue}`, `pong`.
    ///
    /// Closed with 4401 when credentials are missing, wrong or no longer good, with 4429 when its user has too
    /// many sockets, with 1009 after a message of more than a megabyte, and with 1012 when the server is about to stop.
    #[oai(path = "/ws", method = "get", operation_id = "open_socket")]
    #[expect(clippy::unused_async, reason = "operations are asynchronous")]
    async fn open_socket(&self, app: Data<&App>, request: &Request) -> Result<OpenSocketResponse, ApiError> {
        if Caller::of(request, &app.config.origins) == Caller::Stranger {
            return Err(ApiError::new(Code::OriginNotAllowed, "this origin is not in `FRONTEND_URL`"));
        }
        let headers = request.headers();
        let key = key(headers).ok_or_else(|| upgrade_required("this is a WebSocket (version 13) and nothing else"))?;
        let protocol = protocol(headers)?;
        let handover = request.data::<Handover<Wire>>().ok_or_else(|| upgrade_required("WebSockets need HTTP/1.1"))?;

        let caller = request.data::<Arc<Principal>>().map(|principal| Verified {
            principal: Principal::clone(principal),
            expires_at: request.data::<Expiry>().and_then(|Expiry(end)| *end),
        });
        let (app, from) = (app.0.clone(), auth::client(request));
        handover.to(move |wire| Box::pin(Socket::open(app, wire, from, caller)));
        Ok(OpenSocketResponse::Switching("websocket".into(), "Upgrade".into(), derive_accept_key(key.as_bytes()), protocol))
    }
}

/// This is no handshake: what would be one (RFC 9110, section 15.5.22; RFC 6455, section 4.4).
fn upgrade_required(detail: &'static str) -> ApiError {
    let ways = [(header::UPGRADE, "websocket"), (header::SEC_WEBSOCKET_VERSION, "13")];
    let ways = ways.map(|(name, value)| (name, HeaderValue::from_static(value)));
    ApiError::new(Code::UpgradeRequired, detail).with_headers(HeaderMap::from_iter(ways))
}

/// The key of a handshake, if it is one.
fn key(headers: &HeaderMap) -> Option<&str> {
    let is = |name, word| words(headers, name).any(|one| one.eq_ignore_ascii_case(word));
    let is_handshake = is(header::CONNECTION, "upgrade") && is(header::UPGRADE, "websocket") && is(header::SEC_WEBSOCKET_VERSION, "13");
    headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| is_handshake)?.to_str().ok()
}

/// The subprotocol to speak. A browser that offered some wants one of them.
fn protocol(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    if !headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return Ok(None);
    }
    let offers_ours = words(headers, header::SEC_WEBSOCKET_PROTOCOL).any(|one| one == PROTOCOL);
    let refusal = || ApiError::new(Code::BadRequest, "the subprotocol spoken here is `claude.v1`: offer it too");
    if offers_ours { Ok(Some(PROTOCOL.to_owned())) } else { Err(refusal()) }
}

/// The access token or key among the subprotocols that are offered.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    words(headers, header::SEC_WEBSOCKET_PROTOCOL).find_map(|one| one.strip_prefix(BEARER))
}

fn words(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_handshake_is_known_by_its_headers() {
        let handshake = [
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::UPGRADE, "WebSocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];

        assert_eq!(key(&headers(&handshake)), Some("dGhlIHNhbXBsZSBub25jZQ=="));
        for missing in 0..handshake.len() {
            let mut rest = handshake.to_vec();
            rest.remove(missing);
            assert_eq!(key(&headers(&rest)), None, "{missing}");
        }
        // RFC 6455, section 1.3.
        assert_eq!(derive_accept_key(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn ours_is_selected_and_a_token_is_found_beside_it() {
        let offers = |value| headers(&[(header::SEC_WEBSOCKET_PROTOCOL, value)]);

        assert_eq!(protocol(&headers(&[])).ok(), Some(None));
        assert_eq!(protocol(&offers("claude.v1, bearer.a.b.c")).ok(), Some(Some("claude.v1".into())));
        assert_eq!(bearer(&offers("claude.v1, bearer.a.b.c")), Some("a.b.c"));
        assert_eq!(protocol(&offers("bearer.a.b.c")).expect_err("refused").code(), Code::BadRequest);
        assert_eq!(bearer(&offers("claude.v1")), None);
    }
}
