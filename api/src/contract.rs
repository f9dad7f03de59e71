//! How the nouns of `shared` look in the contract. [`Wire`] puts any of them into an operation, a body
//! or an answer: it reads and writes them by their own serde form, so the contract says only what they
//! look like.

use std::{borrow::Cow, collections::BTreeMap, fmt, str::FromStr};

use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef},
    types::{ParseError, ParseFromJSON, ParseFromParameter, ParseResult, ToJSON, Type},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use shared::{
    api_key::Scope,
    config::{ExposeSecret as _, SecretString},
    event::{EventId, InvalidEventId, StartReason},
    id::{ApiKeyId, AuditId, JobId, SessionId, UserId, WorkerId},
    job::{Effort, JobState, Priority, RetryAfterOutput, Thinking},
    stats::Window,
    time::Timestamp,
    tool::Category,
    usage::UsageGroup,
    user::Role,
    workers::WorkerState,
};

/// Text without NUL, which neither a command line nor a database takes. `body` refuses it everywhere.
pub const TEXT_PATTERN: &str = r"^[^\x00]*$";

/// What a value looks like in the contract.
pub trait Schema {
    /// The schema, written where it is used.
    fn schema() -> MetaSchema;
}

/// A noun of `shared` in the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Wire<T>(pub T);

impl<T: Schema + Send + Sync> Type for Wire<T> {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "value".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(T::schema()))
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

impl<T: Schema + Serialize + Send + Sync> ToJSON for Wire<T> {
    fn to_json(&self) -> Option<Value> {
        serde_json::to_value(&self.0).ok()
    }
}

impl<T: Schema + DeserializeOwned + Send + Sync> ParseFromJSON for Wire<T> {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        serde_json::from_value(value.unwrap_or_default()).map(Self).map_err(ParseError::custom)
    }
}

impl<T: Schema + FromStr<Err: fmt::Display> + Send + Sync> ParseFromParameter for Wire<T> {
    fn parse_from_parameter(value: &str) -> ParseResult<Self> {
        value.parse().map(Self).map_err(ParseError::custom)
    }
}

/// A whole number from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounded<const MIN: u32, const MAX: u32>(pub u32);

impl<const MIN: u32, const MAX: u32> FromStr for Bounded<MIN, MAX> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|number| (MIN..=MAX).contains(number));
        number.map(Self).ok_or_else(|| format!("expected a whole number from {MIN} to {MAX}"))
    }
}

impl<const MIN: u32, const MAX: u32> Schema for Bounded<MIN, MAX> {
    fn schema() -> MetaSchema {
        MetaSchema { minimum: Some(MIN.into()), maximum: Some(MAX.into()), ..MetaSchema::new("integer") }
    }
}

/// A text that only its owner may see.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct Secret(SecretString);

impl Secret {
    /// The text.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl Schema for Secret {
    fn schema() -> MetaSchema {
        MetaSchema { pattern: Some(TEXT_PATTERN.to_owned()), ..MetaSchema::new_with_format("string", "password") }
    }
}

/// The name of a tool, to be checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ToolName(pub String);

impl Schema for ToolName {
    fn schema() -> MetaSchema {
        MetaSchema { pattern: Some("^[A-Za-z][A-Za-z0-9_]{0,63}$".to_owned()), ..MetaSchema::new("string") }
    }
}

/// The most pairs of [`Metadata`].
pub const MAX_PAIRS: usize = 16;
/// The longest key of one.
pub const MAX_KEY_CHARS: usize = 64;
/// The longest value of one.
pub const MAX_VALUE_CHARS: usize = 512;

/// A client's own words, to be checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metadata(pub BTreeMap<String, String>);

impl Schema for Metadata {
    fn schema() -> MetaSchema {
        let value = MetaSchema { max_length: Some(MAX_VALUE_CHARS), pattern: Some(TEXT_PATTERN.to_owned()), ..MetaSchema::new("string") };
        MetaSchema {
            max_properties: Some(MAX_PAIRS),
            additional_properties: Some(Box::new(MetaSchemaRef::Inline(Box::new(value)))),
            ..MetaSchema::new("object")
        }
    }
}

/// The name of an MCP server, to be checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct McpServerName(pub String);

impl Schema for McpServerName {
    fn schema() -> MetaSchema {
        let pattern = "^[a-z][a-z0-9]*(_[a-z0-9]+)*$".to_owned();
        MetaSchema { pattern: Some(pattern), max_length: Some(32), ..MetaSchema::new("string") }
    }
}

/// An address or a network, to be checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Network(pub String);

impl Schema for Network {
    fn schema() -> MetaSchema {
        MetaSchema { example: Some(json!("10.0.0.0/8")), ..MetaSchema::new("string") }
    }
}

macro_rules! ids {
    ($($id:ident)*) => {$(
        impl Schema for $id {
            fn schema() -> MetaSchema {
                let pattern = format!("^{}[0-9a-f]{{32}}$", Self::PREFIX);
                MetaSchema { pattern: Some(pattern), ..MetaSchema::new("string") }
            }
        }
    )*};
}
ids!(ApiKeyId AuditId JobId SessionId UserId WorkerId);

/// Both numbers fit into 32 bits; the largest stands for the end of a log that is no longer kept.
const EVENT_ID: &str = "(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8}|4294967295)";

impl Schema for EventId {
    fn schema() -> MetaSchema {
        MetaSchema { pattern: Some(format!("^{EVENT_ID}$")), example: Some(json!("1-0")), ..MetaSchema::new("string") }
    }
}

/// What a client says in `Last-Event-ID`. An empty one is what some send before their first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastEventId(pub Option<EventId>);

impl FromStr for LastEventId {
    type Err = InvalidEventId;

    fn from_str(text: &str) -> Result<Self, InvalidEventId> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(|id| Self(Some(id))) }
    }
}

impl Schema for LastEventId {
    fn schema() -> MetaSchema {
        MetaSchema { pattern: Some(format!("^({EVENT_ID})?$")), example: Some(json!("1-0")), ..MetaSchema::new("string") }
    }
}

impl Schema for Timestamp {
    fn schema() -> MetaSchema {
        MetaSchema::new_with_format("string", "date-time")
    }
}

macro_rules! words {
    ($($type:ident: $($word:ident)*;)*) => {$(
        impl Schema for $type {
            fn schema() -> MetaSchema {
                // Naming every variant makes the compiler ask when one is added.
                let words = [$($type::$word),*].map(|word| match word { $($type::$word)|* => json!(word) });
                MetaSchema { enum_items: words.into(), ..MetaSchema::new("string") }
            }
        }
    )*};
}
words! {
    JobState: Queued Running Completed Failed Cancelled;
    Effort: Low Medium High Xhigh Max;
    Thinking: Adaptive Disabled;
    RetryAfterOutput: Restart Never;
    Priority: Low Normal High;
    Role: User Admin;
    Category: Files Search Shell Web Agents Planning Other;
    Scope: Chat Read Admin;
    StartReason: First WorkerLost Retry Drained;
    UsageGroup: Day Model Session Key User;
    WorkerState: Active Draining Dead;
    Window: Hour Day Week Month;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_takes_its_ends_and_nothing_beyond() {
        assert_eq!("1".parse(), Ok(Bounded::<1, 60>(1)));
        assert_eq!("60".parse(), Ok(Bounded::<1, 60>(60)));
        for wrong in ["0", "61", "-1", "1.0", "", "ten", "99999999999"] {
            assert!(wrong.parse::<Bounded<1, 60>>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_client_without_an_event_may_say_so() {
        assert_eq!("".parse(), Ok(LastEventId(None)));
        assert_eq!("1-0".parse(), Ok(LastEventId(Some(EventId { attempt: 1, n: 0 }))));
        assert_eq!("x".parse::<LastEventId>(), Err(InvalidEventId));
    }

    #[test]
    fn words_stand_in_the_contract_as_they_do_on_the_wire() {
        assert_eq!(StartReason::schema().enum_items, [json!("first"), json!("worker_lost"), json!("retry"), json!("drained")]);
    }
}
