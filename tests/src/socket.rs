//! A client of the WebSocket, as a user would write one, and as nobody should. The tests of `api` use this file
//! too: it needs nothing else of this crate.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest as _,
        http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
        protocol::frame::coding::CloseCode,
    },
};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// An open socket.
pub struct Socket {
    wire: WebSocketStream<TcpStream>,
    /// The head of the answer that opened it.
    pub head: HeaderMap,
    /// What came while something else was waited for.
    passed: VecDeque<Value>,
    asked: u64,
}

/// What came of waiting.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A message.
    Said(Value),
    /// The server closed the socket and said why.
    Closed(u16, String),
    /// The connection is gone without a word.
    Gone,
}

/// Why there is no socket.
#[derive(Debug)]
pub struct Refused {
    /// The status of the answer.
    pub status: StatusCode,
    /// Its head.
    pub head: HeaderMap,
    /// Its body, if that is JSON.
    pub body: Value,
}

impl Socket {
    /// Open one at the server `base`, an `http://` address, with these headers.
    pub async fn connect(base: &str, headers: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::attempt(base, headers).await?.map_err(|refused| anyhow::anyhow!("{refused:?}"))
    }

    /// Open one over a connection that holds little which was not read yet.
    pub async fn narrow(base: &str, headers: &[(&str, &str)]) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(16 * 1024)?;
        let stream = socket.connect(authority(base)?.parse()?).await?;
        Self::over(stream, base, headers).await?.map_err(|refused| anyhow::anyhow!("{refused:?}"))
    }

    /// Try to open one.
    pub async fn attempt(base: &str, headers: &[(&str, &str)]) -> anyhow::Result<Result<Self, Refused>> {
        let stream = TcpStream::connect(authority(base)?).await?;
        Self::over(stream, base, headers).await
    }

    async fn over(stream: TcpStream, base: &str, headers: &[(&str, &str)]) -> anyhow::Result<Result<Self, Refused>> {
        let mut request = format!("ws://{}/api/ws", authority(base)?).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().append(HeaderName::try_from(*name)?, HeaderValue::try_from(*value)?);
        }
        stream.set_nodelay(true)?;
        match timeout(PATIENCE, client_async(request, stream)).await.context("no answer to a handshake")? {
            Ok((wire, answer)) => Ok(Ok(Self { wire, head: answer.headers().clone(), passed: VecDeque::new(), asked: 0 })),
            Err(Error::Http(answer)) => {
                let (parts, body) = answer.into_parts();
                let body = body.as_deref().and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default();
                Ok(Err(Refused { status: parts.status, head: parts.headers, body }))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Say `message`.
    pub async fn say(&mut self, message: &Value) -> anyhow::Result<()> {
        self.send(Message::text(message.to_string())).await
    }

    /// Send a frame of any kind.
    pub async fn send(&mut self, message: Message) -> anyhow::Result<()> {
        Ok(timeout(PATIENCE, self.wire.send(message)).await.context("the server takes nothing")??)
    }

    /// Send bytes that need not be a frame.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(timeout(PATIENCE, self.wire.get_mut().write_all(bytes)).await.context("the server takes nothing")??)
    }

    /// What comes next.
    pub async fn next(&mut self) -> anyhow::Result<Heard> {
        if let Some(passed) = self.passed.pop_front() {
            return Ok(Heard::Said(passed));
        }
        timeout(PATIENCE, self.hear()).await.context("the socket is silent")?
    }

    /// What comes next, however long that takes.
    pub async fn hear(&mut self) -> anyhow::Result<Heard> {
        loop {
            match self.frame().await {
                Some(Message::Text(text)) => return Ok(Heard::Said(serde_json::from_str(&text)?)),
                Some(Message::Close(Some(frame))) => {
                    // The answer to it goes out with the next look.
                    let _ = self.wire.next().await;
                    return Ok(Heard::Closed(u16::from(frame.code), frame.reason.to_string()));
                }
                Some(Message::Close(None)) => return Ok(Heard::Closed(u16::from(CloseCode::Status), String::new())),
                Some(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
                Some(Message::Binary(_)) => bail!("a binary message"),
                None => return Ok(Heard::Gone),
            }
        }
    }

    /// The next frame, a ping or a pong among them; `None` once the connection is gone.
    pub async fn frame(&mut self) -> Option<Message> {
        self.wire.next().await?.ok()
    }

    /// Answer nothing any more; all bytes that come until the connection ends, however long that takes.
    pub async fn frames_without_an_answer(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.wire.get_mut().read_to_end(&mut bytes).await?;
        Ok(bytes)
    }

    /// The next message.
    pub async fn said(&mut self) -> anyhow::Result<Value> {
        match self.next().await? {
            Heard::Said(message) => Ok(message),
            other => bail!("{other:?} and no message"),
        }
    }

    /// The next message of type `kind`, passing over all before it.
    pub async fn until(&mut self, kind: &str) -> anyhow::Result<Value> {
        loop {
            let message = self.said().await?;
            if message["type"] == kind {
                return Ok(message);
            }
        }
    }

    /// Want something; the answer to it. What else comes before that stays to be heard.
    pub async fn ask(&mut self, mut message: Value) -> anyhow::Result<Value> {
        self.asked += 1;
        let id = json!(format!("ask {}", self.asked));
        message["request_id"] = id.clone();
        self.say(&message).await?;
        loop {
            match timeout(PATIENCE, self.hear()).await.with_context(|| format!("no answer to {message}"))?? {
                Heard::Said(answer) if answer["request_id"] == id => return Ok(answer),
                Heard::Said(other) => self.passed.push_back(other),
                other => bail!("{other:?} and no answer to {message}"),
            }
        }
    }

    /// Want something that must be done; what came of it.
    pub async fn done(&mut self, message: Value) -> anyhow::Result<Value> {
        let answer = self.ask(message).await?;
        ensure!(answer["type"] == "ack", "{answer}");
        Ok(answer)
    }

    /// Want something that must be refused; the code of the refusal.
    pub async fn refused(&mut self, message: Value) -> anyhow::Result<String> {
        let answer = self.ask(message).await?;
        ensure!(answer["type"] == "error", "{answer}");
        Ok(answer["code"].as_str().context("a code")?.to_owned())
    }

    /// How the socket ends, passing over all that is said before.
    pub async fn closed(&mut self) -> anyhow::Result<(u16, String)> {
        loop {
            match self.next().await? {
                Heard::Said(_) => {}
                Heard::Closed(code, reason) => return Ok((code, reason)),
                Heard::Gone => bail!("the connection is gone without a word"),
            }
        }
    }

    /// Say goodbye, and see the connection end.
    pub async fn leave(mut self) -> anyhow::Result<()> {
        self.wire.close(None).await?;
        while timeout(PATIENCE, self.frame()).await.context("the server stays")?.is_some() {}
        Ok(())
    }
}

fn authority(base: &str) -> anyhow::Result<&str> {
    base.strip_prefix("http://").context("an http address")
}
