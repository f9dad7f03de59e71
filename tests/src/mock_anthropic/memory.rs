//! What the server remembers from one request to the next: how often a fault has happened, and how much of
//! a session's prompt is in the cache.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::model::{Script, Usage};

use super::conversation::Conversation;

/// Beyond this many entries everything is forgotten: a demonstration runs for weeks.
const MAX_ENTRIES: usize = 4096;

#[derive(Default)]
pub(super) struct Memory {
    faults: Mutex<HashMap<(String, String), u32>>,
    cached: Mutex<HashMap<String, u64>>,
}

impl Memory {
    /// Whether a fault that happens `times` times, or always, happens now.
    pub(super) fn fails(&self, script: &Script, conversation: &Conversation, times: Option<u32>) -> bool {
        let Some(times) = times else { return true };
        let who = script.settings.key.as_ref().unwrap_or(&conversation.session).clone();
        let mut faults = bounded(&self.faults);
        let happened = faults.entry((who, conversation.prompt.clone())).or_default();
        *happened = happened.saturating_add(1);
        *happened <= times
    }

    /// What the prompt of `conversation` uses.
    pub(super) fn prompt_usage(&self, conversation: &Conversation, prompt_tokens: u64) -> Usage {
        if !conversation.is_cached {
            return Usage::uncached(prompt_tokens);
        }
        let mut cached = bounded(&self.cached);
        let former = cached.insert(conversation.session.clone(), prompt_tokens);
        Usage::cached(prompt_tokens, former.unwrap_or(0))
    }
}

fn bounded<K, V>(map: &Mutex<HashMap<K, V>>) -> MutexGuard<'_, HashMap<K, V>> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    if map.len() >= MAX_ENTRIES {
        map.clear();
    }
    map
}
