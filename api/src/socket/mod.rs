//! One WebSocket (RFC 6455): many jobs, and news of all of them, over one connection. One task reads and
//! writes: while the client takes nothing it is not read from either, so neither side can make the other's
//! messages pile up here. How the two talk is in `docs/websocket.md`.

mod desk;
mod message;
mod pace;
mod subscriptions;
mod system;

use std::{sync::Arc, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use shared::id::{JobId, UserId};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, Interval, interval_at, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::{CapacityError, ProtocolError},
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tracing::debug;

pub use self::system::System;
use self::{
    desk::{Desk, Done},
    message::{Said, Wanted, What},
    pace::Pace,
    subscriptions::Subscriptions,
    system::SystemWatch,
};
use crate::{
    app::App,
    auth::{self, Admin, Read, Right, Verified},
    client_address::ClientAddress,
    error::{ApiError, Code},
    job_news::JobWatch,
    metrics::Open,
    places::Place,
    serve::Wire,
    standing::Standing,
    watch::Notice,
};

/// The longest message of a client, in bytes.
const MAX_MESSAGE: usize = 1024 * 1024;
/// What is read, and what is written, at a time, in bytes.
const BUFFER: usize = 4 * 1024;
/// How long somebody may take to say who they are.
const AUTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a client is asked for a sign of life.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a client may be silent: it has missed a ping and had time for the next.
const DEAD_AFTER: Duration = Duration::from_secs(75);
/// How long a client may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Credentials are missing, wrong, or no longer good.
const UNAUTHORIZED: u16 = 4401;
/// Its user has too many sockets.
const TOO_MANY: u16 = 4429;

/// A socket, from its handshake on.
pub struct Socket {
    desk: Desk,
    wire: WebSocketStream<Wire>,
    /// `None` until the client has said who it is.
    caller: Option<Caller>,
    /// Until when it has time for that.
    auth_by: Instant,
    events: Subscriptions,
    jobs: Option<JobWatch>,
    system: Option<SystemWatch>,
    pace: Pace,
    /// From when on the client is listened to again.
    read_at: Instant,
    pings: Interval,
    heard: Instant,
    _open: Open,
}

/// Somebody who has a socket.
struct Caller {
    standing: Standing,
    _place: Place<UserId>,
}

/// Why a socket ends.
#[derive(Debug)]
enum End {
    /// We say why.
    Closed(CloseCode, String),
    /// There is nobody to say it to.
    Gone,
}

/// What happens next.
enum Next {
    Said(Option<Result<Message, Error>>),
    Doubt,
    Event(JobId, Notice),
    News(Arc<str>),
    Ping,
}

impl Socket {
    /// Over a connection from there, of `caller` if they said who they are.
    pub async fn open(app: App, wire: Wire, from: ClientAddress, caller: Option<Verified>) {
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER)
            .write_buffer_size(BUFFER)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        let now = Instant::now();
        let mut socket = Self {
            wire: WebSocketStream::from_raw_socket(wire, Role::Server, Some(config)).await,
            caller: None,
            auth_by: now + AUTH_TIMEOUT,
            events: Subscriptions::new(app.config.max_subscriptions_per_socket),
            jobs: None,
            system: None,
            pace: Pace::from(now),
            read_at: now,
            pings: interval_at(now + PING_EVERY, PING_EVERY),
            heard: now,
            _open: app.metrics.traffic.open_socket(),
            desk: Desk { app, from },
        };
        let end = match caller.map_or(Ok(()), |caller| socket.admit(caller)) {
            Ok(()) => socket.talk().await,
            Err(end) => end,
        };
        socket.close(end).await;
    }

    async fn talk(&mut self) -> End {
        loop {
            let next = tokio::select! {
                () = self.desk.app.draining.cancelled() => return End::Closed(CloseCode::Restart, "the server is about to stop".into()),
                () = sleep_until(self.auth_by), if self.caller.is_none() => {
                    return End::Closed(UNAUTHORIZED.into(), "nobody said within 5 seconds who this is".into());
                }
                () = doubt(&mut self.caller) => Next::Doubt,
                said = read(&mut self.wire, self.read_at) => Next::Said(said),
                (job, notice) = self.events.next() => Next::Event(job, notice),
                news = job_news(&mut self.jobs) => Next::News(news),
                news = system_news(&mut self.system) => Next::News(news),
                _ = self.pings.tick() => Next::Ping,
            };
            if let Err(end) = self.go_on(next).await {
                return end;
            }
        }
    }

    async fn go_on(&mut self, next: Next) -> Result<(), End> {
        match next {
            Next::Said(said) => self.hear(said).await,
            Next::Doubt => self.look().await,
            Next::Event(job, Notice::Events(events)) => {
                for event in &events {
                    self.feed(message::event(job, event)).await?;
                }
                self.flush().await
            }
            Next::Event(job, Notice::Remark(remark)) => self.send(message::remark(job, &remark)).await,
            Next::News(news) => self.send(news.as_ref().into()).await,
            Next::Ping if self.heard.elapsed() >= DEAD_AFTER => Err(End::Gone),
            Next::Ping => {
                self.wire.feed(Message::Ping(Vec::new().into())).await?;
                self.flush().await
            }
        }
    }

    /// Let `caller` in, if there is a place.
    fn admit(&mut self, caller: Verified) -> Result<(), End> {
        let Verified { principal, expires_at } = caller;
        let Some(place) = self.desk.app.sockets.take(principal.user_id()) else {
            return Err(End::Closed(TOO_MANY.into(), format!("{}: close another one first", Code::TooManySockets.as_str())));
        };
        self.caller = Some(Caller { standing: Standing::new(&self.desk.app.access, Arc::new(principal), expires_at), _place: place });
        Ok(())
    }

    /// The caller's rights may be others by now.
    async fn look(&mut self) -> Result<(), End> {
        let Some(caller) = &mut self.caller else { return Ok(()) };
        if let Err(error) = caller.standing.look().await {
            return Err(End::Closed(UNAUTHORIZED.into(), error.code().as_str().to_owned()));
        }
        self.give_up_what_is_not_allowed().await
    }

    /// The caller follows no more than their rights let them.
    async fn give_up_what_is_not_allowed(&mut self) -> Result<(), End> {
        let Some(caller) = &self.caller else { return Ok(()) };
        let principal = caller.standing.principal();
        let (reads, administers) = (Read::judge(principal), Admin::judge(principal));
        let (is_reader, is_admin, user) = (reads.is_ok(), administers.is_ok(), principal.user_id());
        let lost_events = self.events.keep(|owner| is_reader && (is_admin || owner == user));
        let lost_jobs = self.jobs.take_if(|_| !is_reader).is_some();
        let lost_system = self.system.take_if(|_| !is_admin).is_some();
        if (lost_events || lost_jobs || lost_system)
            && let Some(error) = reads.and(administers).err()
        {
            self.send(message::error(None, &error)).await?;
        }
        Ok(())
    }

    /// What the client said, or the end of its saying anything.
    async fn hear(&mut self, said: Option<Result<Message, Error>>) -> Result<(), End> {
        self.heard = Instant::now();
        self.read_at = self.pace.next_after(self.heard);
        match said.ok_or(End::Gone)?? {
            // Boxed: a socket that waits, as most do, need not hold room for what it does when it works.
            Message::Text(text) => Box::pin(self.answer(&text)).await,
            Message::Binary(_) => Err(End::Closed(CloseCode::Unsupported, "messages are text".into())),
            // tungstenite has answered it.
            Message::Ping(_) | Message::Close(_) => self.flush().await,
            Message::Pong(_) | Message::Frame(_) => Ok(()),
        }
    }

    /// Do what the client wants, and say what came of it.
    async fn answer(&mut self, text: &str) -> Result<(), End> {
        let Said { request_id, wanted } = Said::read(text);
        let outcome = match wanted {
            Ok(Wanted::Ping) => return self.send(pong(request_id)).await,
            Ok(Wanted::Auth(token)) => match auth::verify_text(&self.desk.app, token.expose(), self.desk.from.0).await {
                Ok(verified) => self.recognise(verified).await?,
                Err(error) if self.caller.is_none() && !error.code().status().is_server_error() => {
                    self.send(message::error(request_id, &error)).await?;
                    return Err(End::Closed(UNAUTHORIZED.into(), error.code().as_str().to_owned()));
                }
                Err(error) => Err(error),
            },
            Ok(wanted) => {
                // It may have waited behind an answer that the client was slow to take.
                if self.caller.as_ref().is_some_and(|caller| caller.standing.is_doubted()) {
                    self.look().await?;
                }
                self.perform(wanted).await
            }
            Err(error) => Err(error),
        };
        let (answer, watch) = match outcome {
            Ok(Done { answer, watch }) => (message::ack(request_id, answer), watch),
            Err(error) => {
                if error.code() == Code::InternalError {
                    tracing::error!(cause = ?error.cause(), "Answered a message with an internal error");
                }
                (message::error(request_id, &error), None)
            }
        };
        self.send(answer).await?;
        if let Some(watch) = watch {
            self.events.add(watch);
        }
        Ok(())
    }

    /// The client has said who it is, for the first time or once more.
    async fn recognise(&mut self, verified: Verified) -> Result<Result<Done, ApiError>, End> {
        let known = json!({"user_id": verified.principal.user_id(), "expires_at": verified.expires_at});
        match &mut self.caller {
            Some(caller) => {
                if let Err(error) = caller.standing.replace(verified) {
                    return Ok(Err(error));
                }
                // The new one may allow less.
                self.give_up_what_is_not_allowed().await?;
            }
            None => self.admit(verified)?,
        }
        Ok(Ok(Done::saying(known)))
    }

    async fn perform(&mut self, wanted: Wanted) -> Result<Done, ApiError> {
        let missing = || ApiError::new(Code::MissingCredentials, "say who you are first: `{\"type\": \"auth\", \"token\": …}`");
        let principal = self.caller.as_ref().ok_or_else(missing)?.standing.principal().clone();
        match wanted {
            Wanted::Unsubscribe(job) => {
                self.events.remove(job);
                Ok(Done::default())
            }
            Wanted::Unwatch(What::Jobs) => {
                self.jobs = None;
                Ok(Done::default())
            }
            Wanted::Unwatch(What::System) => {
                self.system = None;
                Ok(Done::default())
            }
            Wanted::Watch(What::Jobs) => {
                Read::judge(&principal)?;
                self.jobs = Some(self.desk.app.job_news.watch(principal.user_id()));
                Ok(Done::default())
            }
            Wanted::Watch(What::System) => {
                Admin::judge(&principal)?;
                self.system = Some(self.desk.app.system.watch());
                Ok(Done::default())
            }
            Wanted::Subscribe(job, _) if !self.events.has_room_for(job) => Err(desk::too_many_subscriptions()),
            Wanted::Subscribe(job, after) => self.desk.subscribe(&principal, job, after).await,
            Wanted::Chat(body, _) if body.stream && !self.events.has_room() => Err(desk::too_many_subscriptions()),
            Wanted::Chat(body, key) => self.desk.chat(&principal, *body, key).await,
            Wanted::Cancel(job) => self.desk.cancel(&principal, job).await,
            Wanted::Auth(_) | Wanted::Ping => Ok(Done::default()),
        }
    }

    async fn feed(&mut self, text: Utf8Bytes) -> Result<(), End> {
        Ok(self.wire.feed(Message::Text(text)).await?)
    }

    async fn send(&mut self, text: Utf8Bytes) -> Result<(), End> {
        self.feed(text).await?;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), End> {
        Ok(self.wire.flush().await?)
    }

    async fn close(mut self, end: End) {
        let End::Closed(code, reason) = end else { return };
        debug!(%code, reason, "Closed a socket");
        let farewell = async {
            self.wire.close(Some(CloseFrame { code, reason: reason.into() })).await?;
            // The peer's own word for it: then the connection may end.
            while let Some(Ok(message)) = self.wire.next().await {
                if message.is_close() {
                    return self.wire.flush().await;
                }
            }
            // There is none from whom we no longer understand. A connection that ends with something unread is reset,
            // and they might never see what we said.
            let connection = self.wire.get_mut();
            connection.shutdown().await?;
            let mut unread = [0; BUFFER];
            while connection.read(&mut unread).await? > 0 {}
            Ok::<_, Error>(())
        };
        let _ = timeout(CLOSE_TIMEOUT, farewell).await;
    }
}

fn pong(request_id: Option<String>) -> Utf8Bytes {
    let mut fields = json!({"type": "pong"});
    if let Some(id) = request_id {
        fields["request_id"] = id.into();
    }
    fields.to_string().into()
}

/// What the client says next, not before `from`. Cancel-safe.
async fn read(wire: &mut WebSocketStream<Wire>, from: Instant) -> Option<Result<Message, Error>> {
    if from > Instant::now() {
        sleep_until(from).await;
    }
    wire.next().await
}

async fn doubt(caller: &mut Option<Caller>) {
    match caller {
        Some(caller) => caller.standing.doubt().await,
        None => std::future::pending().await,
    }
}

async fn job_news(watch: &mut Option<JobWatch>) -> Arc<str> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

async fn system_news(watch: &mut Option<SystemWatch>) -> Arc<str> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => {
                Self::Closed(CloseCode::Size, format!("messages are at most {MAX_MESSAGE} bytes"))
            }
            Error::Utf8(_) => Self::Closed(CloseCode::Invalid, "text is UTF-8".into()),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::Gone,
            Error::Protocol(error) => Self::Closed(CloseCode::Protocol, error.to_string()),
            _ => Self::Gone,
        }
    }
}
