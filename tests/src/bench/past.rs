//! What the conversations of the bench are begun with.

/// The beginning of a conversation.
#[derive(Clone, Copy)]
pub struct Past {
    /// What a conversation that has it is called.
    pub name: &'static str,
    /// How large the transcript is made; the CLI's own lines come on top.
    pub bytes: u64,
    /// The script's word for what it is made of.
    content: &'static str,
}

impl Past {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self { name: "session", bytes: 0, content: "talk" },
        Self { name: "session, 1 MB", bytes: 1_000_000, content: "talk" },
        Self { name: "session, 20 MB", bytes: 20_000_000, content: "talk" },
        Self { name: "session, 20 MB, digits", bytes: 20_000_000, content: "grow" },
    ];

    /// The message that makes it; the scripted CLI answers with its name.
    pub fn message(&self) -> String {
        let Self { name, bytes, content } = self;
        format!("seq:say:{name} || cli:transcript:{content}:{bytes}")
    }
}
