//! What becomes of a connection of HTTP/1.1 when an answer lasts. hyper keeps some sixteen kilobytes for each
//! connection, for requests to come; after an event stream and on a WebSocket none does. So such an answer leaves
//! hyper before its head: what is left is a socket, and what goes out on it, one piece at a time.

use std::{
    fmt::Write as _,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::{Buf, Bytes};
use futures_util::{StreamExt as _, future::BoxFuture};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
    server::conn::http1,
    service::HttpService,
};
use poem::{
    Body, Response,
    http::{HeaderValue, StatusCode, Version, header},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What goes on with a socket that a client was let into.
type Talk<S> = Box<dyn FnOnce(S) -> BoxFuture<'static, ()> + Send>;

/// On a request: the way of its connection out of hyper, to become a socket of type `S`.
pub struct Handover<S>(Arc<Shared<S>>);

impl<S> Clone for Handover<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<S> {
    given: Mutex<Given<S>>,
    /// Whether everything that was written so far has left.
    is_flushed: AtomicBool,
}

struct Given<S> {
    talk: Option<Talk<S>>,
    lasting: Option<Lasting<S>>,
}

/// An answer that lasts as long as its connection.
pub struct Lasting<S> {
    head: Bytes,
    then: Then<S>,
}

enum Then<S> {
    Stream { body: Body, is_chunked: bool },
    Talk(Talk<S>),
}

impl<S> Default for Handover<S> {
    fn default() -> Self {
        let given = Mutex::new(Given { talk: None, lasting: None });
        Self(Arc::new(Shared { given, is_flushed: AtomicBool::new(true) }))
    }
}

impl<S> Handover<S> {
    /// Go on with `talk` once the request was answered with 101.
    pub fn to(&self, talk: impl FnOnce(S) -> BoxFuture<'static, ()> + Send + 'static) {
        self.given().talk = Some(Box::new(talk));
    }

    /// Note whether everything that was written so far has left.
    pub fn note_flushed(&self, is_flushed: bool) {
        self.0.is_flushed.store(is_flushed, Ordering::Relaxed);
    }

    /// Take `response` to a request of that version out of hyper, if it lasts; else it is answered as any.
    pub fn take_out(&self, response: Response, version: Version) -> Option<Response> {
        let talk = self.given().talk.take().filter(|_| response.status() == StatusCode::SWITCHING_PROTOCOLS);
        let is_stream = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
        if talk.is_none() && !is_stream {
            return Some(response);
        }
        let is_chunked = talk.is_none() && version == Version::HTTP_11;
        let (mut parts, body) = response.into_parts();
        if talk.is_none() {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if is_chunked {
            parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let head = head(version, parts.status, &parts.headers);
        let then = talk.map_or(Then::Stream { body, is_chunked }, Then::Talk);
        self.given().lasting = Some(Lasting { head, then });
        None
    }

    fn given(&self) -> MutexGuard<'_, Given<S>> {
        // What is under the lock is only put there and taken.
        self.0.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to go on with, once what was written before it has left.
    fn lasting(&self) -> Option<Lasting<S>> {
        if self.0.is_flushed.load(Ordering::Relaxed) { self.given().lasting.take() } else { None }
    }
}

/// The head of an answer (RFC 9112, section 4).
fn head(version: Version, status: StatusCode, headers: &poem::http::HeaderMap) -> Bytes {
    let mut head = String::with_capacity(1024);
    let reason = status.canonical_reason().unwrap_or_default();
    // Writing to memory does not fail.
    let _ = write!(head, "{version:?} {} {reason}\r\ndate: {}\r\n", status.as_str(), httpdate::fmt_http_date(SystemTime::now()));
    let mut head = head.into_bytes();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head.into()
}

/// A connection of HTTP/1.1, until it ends or is handed over.
pub struct Leaving<C, S> {
    /// `None` once it was.
    connection: Option<C>,
    handover: Handover<S>,
}

/// How a connection left hyper.
pub enum Left<C, S> {
    /// By its end.
    Ended(hyper::Result<()>),
    /// To go on with an answer that lasts.
    Handed(C, Lasting<S>),
}

impl<C, S> Left<C, S> {
    /// The same with what `change` makes of the connection.
    pub fn map<D>(self, change: impl FnOnce(C) -> D) -> Left<D, S> {
        match self {
            Self::Ended(ended) => Left::Ended(ended),
            Self::Handed(connection, lasting) => Left::Handed(change(connection), lasting),
        }
    }
}

impl<I, V, S> Leaving<http1::Connection<I, V>, S>
where
    V: HttpService<Incoming>,
    http1::Connection<I, V>: Future<Output = hyper::Result<()>> + Unpin,
    V::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: Read + Write + Unpin,
    V::ResBody: hyper::body::Body + 'static,
    <V::ResBody as hyper::body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// `connection`, whose requests know `handover`.
    pub fn new(connection: http1::Connection<I, V>, handover: Handover<S>) -> Self {
        Self { connection: Some(connection), handover }
    }

    /// Let it end after the request it is at.
    pub fn shut_down(mut self: Pin<&mut Self>) {
        if let Some(connection) = &mut self.connection {
            Pin::new(connection).graceful_shutdown();
        }
    }
}

impl<C: Future<Output = hyper::Result<()>> + Unpin, S> Future for Leaving<C, S> {
    type Output = Left<C, S>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(connection) = &mut self.connection else { return Poll::Pending };
        if let Poll::Ready(ended) = Pin::new(connection).poll(context) {
            return Poll::Ready(Left::Ended(ended));
        }
        // Given within the poll above, if at all: the answer is made there.
        match self.handover.lasting().and_then(|lasting| Some((self.connection.take()?, lasting))) {
            Some((connection, lasting)) => Poll::Ready(Left::Handed(connection, lasting)),
            None => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Lasting<S> {
    /// Answer on `socket`, to the end of the answer or of the connection.
    pub async fn go_on(self, mut socket: S) -> io::Result<()> {
        socket.write_all(&self.head).await?;
        match self.then {
            Then::Stream { body, is_chunked } => stream(socket, body, is_chunked).await,
            Then::Talk(talk) => {
                socket.flush().await?;
                talk(socket).await;
                Ok(())
            }
        }
    }
}

/// Send `body` as it comes, in chunks (RFC 9112, section 7.1) where the client knows them.
async fn stream<S: AsyncRead + AsyncWrite + Unpin>(mut socket: S, body: Body, is_chunked: bool) -> io::Result<()> {
    let mut pieces = Box::pin(body.into_bytes_stream());
    socket.flush().await?;
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            closed = closed(&mut socket) => return closed,
        };
        let Some(piece) = piece.transpose()? else { break };
        if is_chunked {
            let size = format!("{:x}\r\n", piece.len());
            socket.write_all_buf(&mut Buf::chain(size.as_bytes(), piece).chain(&b"\r\n"[..])).await?;
        } else {
            socket.write_all(&piece).await?;
        }
        socket.flush().await?;
    }
    if is_chunked {
        socket.write_all(b"0\r\n\r\n").await?;
    }
    socket.shutdown().await
}

/// Wait until the client has closed the connection. What else it says is not answered any more.
async fn closed(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut ignored = [0; 64];
    while socket.read(&mut ignored).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    fn streaming(pieces: impl futures_util::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Response {
        Response::builder().content_type("text/event-stream").body(Body::from_bytes_stream(pieces))
    }

    fn events() -> Response {
        streaming(futures_util::stream::iter([Ok(Bytes::from_static(b"one\n\n")), Ok(Bytes::from_static(b"two\n\n"))]))
    }

    /// What a client hears of `response`.
    async fn heard(response: Response, version: Version) -> String {
        let handover = Handover::<DuplexStream>::default();
        assert!(handover.take_out(response, version).is_none());
        let (ours, mut theirs) = duplex(64);
        let (mut text, lasting) = (String::new(), handover.lasting().expect("given"));
        let (went, read) = tokio::join!(lasting.go_on(ours), theirs.read_to_string(&mut text));
        read.expect("UTF-8");
        went.expect("sent");
        text
    }

    #[tokio::test]
    async fn a_stream_goes_out_in_chunks_and_ends_with_its_connection() {
        let text = heard(events(), Version::HTTP_11).await;

        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\ndate: "), "{head}");
        for line in ["content-type: text/event-stream", "connection: close", "transfer-encoding: chunked"] {
            assert!(head.lines().any(|found| found == line), "{head}");
        }
        assert_eq!(body, "5\r\none\n\n\r\n5\r\ntwo\n\n\r\n0\r\n\r\n");
    }

    #[tokio::test]
    async fn a_client_that_knows_no_chunks_gets_none() {
        let text = heard(events(), Version::HTTP_10).await;

        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.0 200 OK\r\n") && !head.contains("chunked"), "{head}");
        assert_eq!(body, "one\n\ntwo\n\n");
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_client() {
        let handover = Handover::<DuplexStream>::default();
        assert!(handover.take_out(streaming(futures_util::stream::pending()), Version::HTTP_11).is_none());
        let (ours, theirs) = duplex(1024);

        drop(theirs);

        let _ = handover.lasting().expect("given").go_on(ours).await;
    }

    #[test]
    fn what_does_not_last_is_answered_as_any_and_nothing_goes_before_what_was_said() {
        let handover = Handover::<DuplexStream>::default();
        let plain = Response::builder().content_type("application/json").body("{}");
        assert!(handover.take_out(plain, Version::HTTP_11).is_some());

        handover.note_flushed(false);
        assert!(handover.take_out(events(), Version::HTTP_11).is_none());
        assert!(handover.lasting().is_none());
        handover.note_flushed(true);
        assert!(handover.lasting().is_some());
    }
}
