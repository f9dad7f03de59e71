//! Messages of which more blocks may come. The CLI prints one finished block a line, runs tools while the
//! rest still streams, and takes back what a broken stream left open; a client gets each message once,
//! with all that stayed of it.

use serde_json::{Value, value::RawValue};
use shared::event::{EventBody, MAX_EVENT_BYTES};

/// The open message of each conversation: the main one and those of running sub-agents.
#[derive(Default)]
pub(super) struct Drafts {
    open: Vec<Draft>,
}

/// How many sub-agents may speak at once before the longest open message is closed early.
const MAX_OPEN: usize = 64;

impl Drafts {
    /// The message `id` of the conversation `parent`. Any other message open there has ended; what is to
    /// be said of that goes to `events`.
    pub fn open(&mut self, parent: Option<&str>, id: &str, events: &mut Vec<EventBody>) -> &mut Draft {
        let at = match self.open.iter().position(|draft| draft.parent.as_deref() == parent) {
            Some(at) if self.open[at].id == id => at,
            Some(at) => {
                self.open[at].close(events);
                self.open[at] = Draft::new(parent, id);
                at
            }
            None => {
                if self.open.len() == MAX_OPEN {
                    self.open.remove(0).close(events);
                }
                self.open.push(Draft::new(parent, id));
                self.open.len() - 1
            }
        };
        &mut self.open[at]
    }

    /// The message that streams in the conversation `parent`.
    pub fn find(&mut self, parent: Option<&str>) -> Option<&mut Draft> {
        self.open.iter_mut().find(|draft| draft.parent.as_deref() == parent)
    }

    /// The sub-agent of this tool call says no more.
    pub fn end_of(&mut self, tool_use_id: &str, events: &mut Vec<EventBody>) {
        if let Some(at) = self.open.iter().position(|draft| draft.parent.as_deref() == Some(tool_use_id)) {
            self.open.remove(at).close(events);
        }
    }

    /// Nobody says more in this turn.
    pub fn end_all(&mut self, events: &mut Vec<EventBody>) {
        for mut draft in self.open.drain(..) {
            draft.close(events);
        }
    }
}

/// A message of which more blocks may come.
pub(super) struct Draft {
    id: String,
    parent: Option<String>,
    /// Whether its pieces come before its blocks.
    pub streamed: bool,
    /// Which block streams.
    pub index: usize,
    /// Finished blocks and their places.
    blocks: Vec<(usize, Value)>,
    bytes: usize,
    /// Whether text was streamed of a block that has not come whole.
    has_loose_text: bool,
    is_closed: bool,
}

impl Draft {
    fn new(parent: Option<&str>, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            parent: parent.map(str::to_owned),
            streamed: false,
            index: 0,
            blocks: Vec::new(),
            bytes: 0,
            has_loose_text: false,
            is_closed: false,
        }
    }

    /// The message's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Some of the streaming block's text was passed on.
    pub fn loosen(&mut self) {
        self.has_loose_text = true;
    }

    /// A block came whole.
    pub fn add(&mut self, block: Value, raw: &RawValue) {
        self.has_loose_text = false;
        self.bytes += raw.get().len();
        // Above the size of an event its content is not shown, so it need not be kept.
        let block = if self.bytes > MAX_EVENT_BYTES { Value::Null } else { block };
        if !self.is_closed {
            self.blocks.push((self.index, block));
        }
    }

    /// Blocks from `index` on are taken back. Gives the tool calls among them: no result will come.
    pub fn abandon_from(&mut self, index: usize, events: &mut Vec<EventBody>) -> Vec<String> {
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.blocks).into_iter().partition(|(at, _)| *at < index);
        self.blocks = kept;
        if self.has_loose_text || !gone.is_empty() {
            self.withdraw(events);
        }
        gone.iter().filter_map(|(_, block)| block["id"].as_str().map(str::to_owned)).collect()
    }

    /// No more blocks will come. Later ones of this id are ignored: a message is sent once.
    pub fn close(&mut self, events: &mut Vec<EventBody>) {
        if std::mem::replace(&mut self.is_closed, true) {
            return;
        }
        if self.has_loose_text {
            self.withdraw(events);
        }
        if self.blocks.is_empty() {
            return;
        }
        let truncated = self.bytes > MAX_EVENT_BYTES;
        let blocks = std::mem::take(&mut self.blocks);
        events.push(EventBody::Message {
            message_id: self.id.clone(),
            role: "assistant".into(),
            content: if truncated { Value::Array(Vec::new()) } else { blocks.into_iter().map(|(_, block)| block).collect() },
            parent_tool_use_id: self.parent.clone(),
            truncated,
        });
    }

    fn withdraw(&mut self, events: &mut Vec<EventBody>) {
        self.has_loose_text = false;
        events.push(EventBody::MessageWithdrawn { message_id: self.id.clone() });
    }
}
