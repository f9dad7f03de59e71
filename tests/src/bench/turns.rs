//! Turns of conversations that differ in how much there is to go on from, and jobs without one, as a client
//! over HTTP sees them. What the turns say is so short that a conversation stays as large as it was made.

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{
    past::Past,
    service::{self, Seen},
};
use crate::client::Client;

/// The conversations that are gone on with, and none.
pub struct Turns {
    client: Client,
    threads: Vec<Thread>,
}

/// What a turn goes on from.
struct Thread {
    name: &'static str,
    conversation: Option<Conversation>,
}

struct Conversation {
    session: String,
    past: Past,
    /// What was said in it so far.
    said: Vec<String>,
}

impl Turns {
    /// Begin them all; the first thread is the one without a conversation.
    pub async fn begin(client: &Client) -> anyhow::Result<Self> {
        let mut threads = vec![Thread { name: "one-shot", conversation: None }];
        for past in Past::ALL {
            let conversation = Conversation::begin(client, past).await.with_context(|| format!("at the beginning of `{}`", past.name))?;
            threads.push(Thread { name: past.name, conversation: Some(conversation) });
        }
        Ok(Self { client: client.clone(), threads })
    }

    /// What the threads are called, in order.
    pub fn names(&self) -> Vec<&'static str> {
        self.threads.iter().map(|thread| thread.name).collect()
    }

    /// A turn of each thread, one after the other; each is to answer `answer`.
    pub async fn round(&mut self, answer: &str) -> anyhow::Result<Vec<Seen>> {
        let mut seen = Vec::new();
        for thread in &mut self.threads {
            // What a large turn leaves to be done after its end must not slow the next one that is timed.
            service::first_text(&self.client, answer).await.context("in between")?;
            seen.push(thread.turn(&self.client, answer).await.context(thread.name)?);
        }
        Ok(seen)
    }

    /// Fail where a conversation lost a turn, or is not as large as it should be.
    pub async fn check(self) -> anyhow::Result<()> {
        for thread in self.threads {
            if let Some(conversation) = thread.conversation {
                conversation.check(&self.client).await.context(thread.name)?;
            }
        }
        Ok(())
    }
}

impl Thread {
    async fn turn(&mut self, client: &Client, answer: &str) -> anyhow::Result<Seen> {
        let session = self.conversation.as_ref().map(|conversation| conversation.session.as_str());
        let seen = service::turn(client, session, &format!("say:{answer}"), answer).await?;
        if let Some(conversation) = &mut self.conversation {
            conversation.said.push(answer.to_owned());
        }
        Ok(seen)
    }
}

impl Conversation {
    async fn begin(client: &Client, past: Past) -> anyhow::Result<Self> {
        let session = client.session(json!({"title": past.name})).await?;
        service::turn(client, Some(&session), &past.message(), past.name).await?;
        Ok(Self { session, past, said: vec![past.name.to_owned()] })
    }

    async fn check(mut self, client: &Client) -> anyhow::Result<()> {
        const LAST: &str = "all of it";
        self.said.push(LAST.to_owned());
        service::turn(client, Some(&self.session), &format!("recall:{LAST}"), &self.said.join(" | ")).await?;

        let figures = client.get(&format!("/api/sessions/{}", self.session)).await?;
        ensure!(figures["turns"] == self.said.len(), "not {} turns: {figures}", self.said.len());
        let bytes = figures["transcript_bytes"].as_u64().context("a session says how large its transcript is")?;
        // What the turns added is more than a client can know; a second filling would be as large as the first.
        ensure!((self.past.bytes..self.past.bytes + 10_000_000).contains(&bytes), "its transcript has {bytes} bytes");
        Ok(())
    }
}
