//! What a client asks when it asks the model: every field, what it may hold, and how it looks in the contract.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef, Registry},
    types::Type,
};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};
use serde_json::{Value, json};
use shared::{
    id::SessionId,
    image::{self, ImageSource},
    job::{ChatSpec, ContentBlock, Effort, Message, Priority, RetryAfterOutput, Thinking, may_be_offered},
    output_schema::OutputSchema,
    tool::is_mcp_server_name,
};

use crate::{
    body::{Check, Faults},
    contract::{MAX_KEY_CHARS, MAX_PAIRS, MAX_VALUE_CHARS, McpServerName, Metadata, Schema, TEXT_PATTERN},
    error::FieldError,
};

const MODEL_PATTERN: &str = r"^[A-Za-z0-9][A-Za-z0-9._:/@\[\]-]{0,127}$";
const TOOL_PATTERN: &str = "^[A-Za-z][A-Za-z0-9_]{0,63}$";
const MAX_TOOLS: usize = 64;
const MAX_MCP_SERVERS: usize = 16;
const MAX_TURNS: u32 = 1000;
const MAX_BUDGET_USD: f64 = 1000.0;
const MAX_SECS: u32 = 86_400;
/// What the Messages API takes in one request.
const MAX_IMAGES: usize = 20;

/// A message to the model, and how to treat it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateChat {
    #[serde(deserialize_with = "message")]
    message: Message,
    pub(super) session_id: Option<SessionId>,
    pub(super) model: Option<String>,
    pub(super) fallback_model: Option<String>,
    system_prompt: Option<String>,
    append_system_prompt: Option<String>,
    pub(super) tools: Option<Vec<String>>,
    pub(super) mcp_servers: Option<Vec<String>>,
    max_turns: Option<u32>,
    max_budget_usd: Option<f64>,
    #[serde(default, deserialize_with = "output_schema")]
    output_schema: Option<OutputSchema>,
    effort: Option<Effort>,
    thinking: Option<Thinking>,
    timeout_secs: Option<u32>,
    queue_timeout_secs: Option<u32>,
    #[serde(default)]
    retry_after_output: RetryAfterOutput,
    #[serde(default)]
    priority: Priority,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    /// Whether its sender follows the job's events.
    pub stream: bool,
}

impl CreateChat {
    pub(super) fn into_spec(self, allowed_tools: Option<Vec<String>>) -> ChatSpec {
        ChatSpec {
            message: self.message,
            model: self.model,
            fallback_model: self.fallback_model,
            system_prompt: self.system_prompt,
            append_system_prompt: self.append_system_prompt,
            tools: self.tools,
            mcp_servers: self.mcp_servers,
            allowed_tools,
            max_turns: self.max_turns,
            max_budget_usd: self.max_budget_usd,
            output_schema: self.output_schema,
            effort: self.effort,
            thinking: self.thinking,
            timeout_secs: self.timeout_secs,
            queue_timeout_secs: self.queue_timeout_secs,
            retry_after_output: self.retry_after_output,
            priority: self.priority,
            metadata: self.metadata,
        }
    }
}

impl Check for CreateChat {
    fn check(&self) -> Vec<FieldError> {
        let mut faults = Faults::default();
        faults.unless(says_something(&self.message), "/message", "must not be empty");
        let images = images(&self.message);
        faults.unless(images.len() <= MAX_IMAGES, "/message", format!("must hold at most {MAX_IMAGES} pictures"));
        for (index, image) in images.into_iter().take(MAX_IMAGES) {
            if let Err(error) = image.check() {
                faults.unless(false, format!("/message/{index}/source/data"), error.to_string());
            }
        }
        check_model(&mut faults, "/model", self.model.as_deref());
        check_model(&mut faults, "/fallback_model", self.fallback_model.as_deref());
        check_tools(&mut faults, self.tools.iter().flatten().map(String::as_str));
        check_mcp_servers(&mut faults, self.mcp_servers.iter().flatten().map(String::as_str));
        for (pointer, number, max) in [
            ("/max_turns", self.max_turns, MAX_TURNS),
            ("/timeout_secs", self.timeout_secs, MAX_SECS),
            ("/queue_timeout_secs", self.queue_timeout_secs, MAX_SECS),
        ] {
            let right = number.is_none_or(|number| (1..=max).contains(&number));
            faults.unless(right, pointer, format!("must be from 1 to {max}"));
        }
        let right = self.max_budget_usd.is_none_or(|usd| usd > 0.0 && usd <= MAX_BUDGET_USD);
        faults.unless(right, "/max_budget_usd", format!("must be more than 0 and at most {MAX_BUDGET_USD}"));
        check_metadata(&mut faults, &self.metadata);
        faults.into()
    }
}

/// A model must look like one.
pub fn check_model(faults: &mut Faults, pointer: &str, model: Option<&str>) {
    let detail = "must be 1 to 128 letters, digits or `._:/@[]-`, and begin with a letter or a digit";
    faults.unless(model.is_none_or(is_model_name), pointer, detail);
}

/// Tools must be few, and look like some that jobs may use.
pub fn check_tools<'a>(faults: &mut Faults, tools: impl Iterator<Item = &'a str> + Clone) {
    faults.unless(tools.clone().count() <= MAX_TOOLS, "/tools", format!("must be at most {MAX_TOOLS} names"));
    for (index, tool) in tools.enumerate().take(MAX_TOOLS) {
        let detail = "must be a tool that jobs may use: 1 to 64 letters, digits or `_`, beginning with a letter";
        faults.unless(may_be_offered(tool), format!("/tools/{index}"), detail);
    }
}

/// MCP servers must be few, and look like some.
pub fn check_mcp_servers<'a>(faults: &mut Faults, servers: impl Iterator<Item = &'a str> + Clone) {
    faults.unless(servers.clone().count() <= MAX_MCP_SERVERS, "/mcp_servers", format!("must be at most {MAX_MCP_SERVERS} names"));
    for (index, server) in servers.enumerate().take(MAX_MCP_SERVERS) {
        let detail = "must be at most 32 of a-z, 0-9 and single `_` between them, a letter first";
        faults.unless(is_mcp_server_name(server), format!("/mcp_servers/{index}"), detail);
    }
}

/// Metadata must be short.
pub fn check_metadata(faults: &mut Faults, metadata: &BTreeMap<String, String>) {
    let fits = |text: &str, max: usize| text.chars().nth(max).is_none();
    let pairs = metadata.len() <= MAX_PAIRS && metadata.iter().all(|(key, value)| fits(key, MAX_KEY_CHARS) && fits(value, MAX_VALUE_CHARS));
    let detail = format!("must be at most {MAX_PAIRS} pairs of a key up to {MAX_KEY_CHARS} and a value up to {MAX_VALUE_CHARS} characters");
    faults.unless(pairs, "/metadata", detail);
}

fn says_something(message: &Message) -> bool {
    match message {
        Message::Text(text) => !text.is_empty(),
        Message::Blocks(blocks) => {
            let is_empty = |block: &ContentBlock| matches!(block, ContentBlock::Text { text } if text.is_empty());
            !blocks.is_empty() && !blocks.iter().any(is_empty)
        }
    }
}

/// The pictures of a message, each with its place.
fn images<'a>(message: &'a Message) -> Vec<(usize, &'a ImageSource)> {
    let Message::Blocks(blocks) = message else { return Vec::new() };
    let image = |(index, block): (usize, &'a ContentBlock)| match block {
        ContentBlock::Image { source } => Some((index, source)),
        ContentBlock::Text { .. } => None,
    };
    blocks.iter().enumerate().filter_map(image).collect()
}

/// [`MODEL_PATTERN`]. It cannot be taken for an option of the CLI.
fn is_model_name(name: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b"._:/@[]-".contains(&b);
    (1..=128).contains(&name.len()) && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(rest)
}

/// Read a message: text, or a list of content blocks. Written out so that an error inside a block keeps its
/// place.
fn message<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Message, D::Error> {
    struct Either;

    impl<'de> Visitor<'de> for Either {
        type Value = Message;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text or a list of content blocks")
        }

        fn visit_string<E>(self, text: String) -> Result<Message, E> {
            Ok(Message::Text(text))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Message, E> {
            self.visit_string(text.to_owned())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Message, A::Error> {
            let mut blocks = Vec::new();
            while let Some(Block(block)) = seq.next_element()? {
                blocks.push(block);
            }
            Ok(Message::Blocks(blocks))
        }
    }

    deserializer.deserialize_any(Either)
}

/// A block that says of itself what is missing in it: an enum would only say that it does not fit.
#[derive(Deserialize)]
#[serde(try_from = "Fields")]
struct Block(ContentBlock);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(rename = "type")]
    kind: BlockType,
    text: Option<String>,
    source: Option<ImageSource>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum BlockType {
    Text,
    Image,
}

impl TryFrom<Fields> for Block {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, &'static str> {
        match fields {
            Fields { kind: BlockType::Text, text: Some(text), source: None } => Ok(Self(ContentBlock::Text { text })),
            Fields { kind: BlockType::Text, text: None, .. } => Err("missing field `text`"),
            Fields { kind: BlockType::Image, source: Some(source), text: None } => Ok(Self(ContentBlock::Image { source })),
            Fields { kind: BlockType::Image, source: None, .. } => Err("missing field `source`"),
            Fields { .. } => Err("a block holds either text or a picture"),
        }
    }
}

fn output_schema<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OutputSchema>, D::Error> {
    let schema = Option::<Value>::deserialize(deserializer)?;
    schema.map(OutputSchema::parse).transpose().map_err(de::Error::custom)
}

impl Type for CreateChat {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "CreateChat".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Reference("CreateChat".to_owned())
    }

    fn register(registry: &mut Registry) {
        registry.create_schema::<Block, _>("TextBlock".to_owned(), |_| text_block());
        registry.create_schema::<ImageSource, _>("ImageBlock".to_owned(), |_| image_block());
        registry.create_schema::<Self, _>("CreateChat".to_owned(), |_| MetaSchema {
            description: Some("A message to the model, and how to treat it."),
            required: vec!["message"],
            properties: properties(),
            example: Some(json!({"message": "What is the capital of France?"})),
            ..MetaSchema::new("object")
        });
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(std::iter::once(self))
    }
}

/// What each field looks like. The limits are those that [`CreateChat::check`] keeps.
fn properties() -> Vec<(&'static str, MetaSchemaRef)> {
    let pattern = |pattern: &str| MetaSchema { pattern: Some(pattern.to_owned()), ..MetaSchema::new("string") };
    let string = || pattern(TEXT_PATTERN);
    let integer = |max: u32| MetaSchema { minimum: Some(1.0), maximum: Some(max.into()), ..MetaSchema::new("integer") };
    // Beside an enum, `nullable` allows nothing: null must be one of its words.
    let or_null = |schema: MetaSchema| {
        let null = (!schema.enum_items.is_empty()).then_some(Value::Null);
        MetaSchema { nullable: true, enum_items: schema.enum_items.into_iter().chain(null).collect(), ..schema }
    };
    let or = |default: &str, schema: MetaSchema| MetaSchema { default: Some(json!(default)), ..schema };
    let tools = MetaSchema { max_items: Some(MAX_TOOLS), items: Some(Box::new(inline(pattern(TOOL_PATTERN)))), ..MetaSchema::new("array") };
    let servers =
        MetaSchema { max_items: Some(MAX_MCP_SERVERS), items: Some(Box::new(inline(McpServerName::schema()))), ..MetaSchema::new("array") };
    let budget =
        MetaSchema { minimum: Some(0.0), exclusive_minimum: Some(true), maximum: Some(MAX_BUDGET_USD), ..MetaSchema::new("number") };

    [
        ("message", "What you say: text, or a list of content blocks.", message_schema()),
        ("session_id", "The conversation that this is a turn of.", or_null(SessionId::schema())),
        ("model", "The model, by name or alias; the CLI's default if absent.", or_null(pattern(MODEL_PATTERN))),
        ("fallback_model", "Where to go when the model is overloaded.", or_null(pattern(MODEL_PATTERN))),
        ("system_prompt", "Replaces the system prompt.", or_null(string())),
        ("append_system_prompt", "Is put after the system prompt.", or_null(string())),
        ("tools", "The tools the model may use; the server's default if absent, none if empty.", or_null(tools)),
        ("mcp_servers", "The MCP servers the model may use, by the names of `GET /api/mcp-servers`; none if absent.", or_null(servers)),
        ("max_turns", "The most model calls of this job.", or_null(integer(MAX_TURNS))),
        (
            "max_budget_usd",
            "The most this job may cost, all its attempts together. Checked after each model call, so one call may pass it. \
             Kept of your daily budget until the job has ended.",
            or_null(budget),
        ),
        (
            "output_schema",
            "The form of the answer: a JSON Schema of an object. The job's result then has it as `structured_output`.",
            or_null(MetaSchema { example: Some(json!({"type": "object", "properties": {}})), ..MetaSchema::new("object") }),
        ),
        ("effort", "How hard the model should try.", or_null(Effort::schema())),
        ("thinking", "Whether the model thinks before it answers.", or_null(Thinking::schema())),
        ("timeout_secs", "The longest run of one attempt.", or_null(integer(MAX_SECS))),
        ("queue_timeout_secs", "The longest wait for a worker; an hour if absent.", or_null(integer(MAX_SECS))),
        (
            "retry_after_output",
            "What becomes of a job whose worker is lost after it had streamed output: it runs again, or it fails with `interrupted`.",
            or("restart", RetryAfterOutput::schema()),
        ),
        ("priority", "Its place among your own waiting jobs.", or("normal", Priority::schema())),
        (
            "metadata",
            "Your own words about the job, given back as they came: up to 16 pairs, keys up to 64 characters.",
            Metadata::schema(),
        ),
        (
            "stream",
            "Answer with the job's events instead of the job.",
            MetaSchema { default: Some(json!(false)), ..MetaSchema::new("boolean") },
        ),
    ]
    .into_iter()
    .map(|(name, description, schema)| (name, inline(MetaSchema { description: Some(description), ..schema })))
    .collect()
}

fn message_schema() -> MetaSchema {
    let blocks = ["TextBlock", "ImageBlock"].map(|name| MetaSchemaRef::Reference(name.to_owned()));
    let block = inline(MetaSchema { one_of: blocks.into(), ..MetaSchema::ANY });
    let blocks = MetaSchema { min_items: Some(1), items: Some(Box::new(block)), ..MetaSchema::new("array") };
    MetaSchema { one_of: vec![inline(some_text()), inline(blocks)], ..MetaSchema::ANY }
}

fn text_block() -> MetaSchema {
    MetaSchema {
        description: Some("A piece of a message."),
        required: vec!["type", "text"],
        properties: vec![("type", inline(word("text"))), ("text", inline(some_text()))],
        ..MetaSchema::new("object")
    }
}

fn image_block() -> MetaSchema {
    let kinds = ["image/png", "image/jpeg", "image/gif", "image/webp"];
    let media_type = MetaSchema { enum_items: kinds.map(|kind| json!(kind)).into(), ..MetaSchema::new("string") };
    let data = MetaSchema {
        description: Some("At most 5 MiB, as base64 (RFC 4648, section 4)."),
        max_length: Some(image::MAX_BYTES.div_ceil(3) * 4),
        ..MetaSchema::new_with_format("string", "byte")
    };
    let source = MetaSchema {
        required: vec!["type", "media_type", "data"],
        properties: vec![("type", inline(word("base64"))), ("media_type", inline(media_type)), ("data", inline(data))],
        ..MetaSchema::new("object")
    };
    MetaSchema {
        description: Some("A picture."),
        required: vec!["type", "source"],
        properties: vec![("type", inline(word("image"))), ("source", inline(source))],
        ..MetaSchema::new("object")
    }
}

fn word(word: &str) -> MetaSchema {
    MetaSchema { enum_items: vec![json!(word)], ..MetaSchema::new("string") }
}

fn some_text() -> MetaSchema {
    MetaSchema { min_length: Some(1), pattern: Some(TEXT_PATTERN.to_owned()), ..MetaSchema::new("string") }
}

fn inline(schema: MetaSchema) -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(schema))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{body::parse, error::Code};

    fn pointers(body: &Value) -> Vec<String> {
        match parse::<CreateChat>(body.to_string().as_bytes()) {
            Ok(_) => Vec::new(),
            Err(error) => {
                assert_eq!(error.code(), Code::InvalidRequest, "{body}");
                error.problem("r").errors.into_iter().map(|error| error.pointer).collect()
            }
        }
    }

    fn with(field: &str, value: Value) -> Value {
        let mut body = json!({"message": "hi"});
        body[field] = value;
        body
    }

    fn gif(data: &str) -> Value {
        json!({"type": "base64", "media_type": "image/gif", "data": data})
    }

    #[test]
    fn every_wrong_field_is_pointed_at() {
        for (field, value, pointer) in [
            ("message", json!(""), "/message"),
            ("message", json!([]), "/message"),
            ("message", json!(7), "/message"),
            ("message", json!({"type": "text", "text": "a"}), "/message"),
            ("message", json!([{"type": "text", "text": "a"}, {"type": "video"}]), "/message/1/type"),
            ("message", json!([{"type": "text", "text": "a"}, {"type": "image"}]), "/message/1/source"),
            ("message", json!([{"type": "image", "text": "a", "source": gif("R0lGODlh")}]), "/message/0"),
            ("message", json!([{"type": "image", "source": {"type": "url", "url": "http://a"}}]), "/message/0/source/type"),
            ("message", json!([{"type": "image", "source": gif("R0lG-Dlh")}]), "/message/0/source/data"),
            ("message", json!([{"type": "text", "text": "a"}, {"type": "image", "source": gif("AAAA")}]), "/message/1/source/data"),
            ("message", json!(vec![json!({"type": "image", "source": gif("R0lGODlh")}); 21]), "/message"),
            ("output_schema", json!({"type": "array"}), "/output_schema"),
            ("output_schema", json!({"type": "object", "required": 1}), "/output_schema"),
            ("output_schema", json!("object"), "/output_schema"),
            ("message", json!([{"type": "text"}]), "/message/0/text"),
            ("message", json!([{"type": "text", "text": "a", "cache": 1}]), "/message/0/cache"),
            ("message", json!([{"type": "text", "text": ""}]), "/message"),
            ("message", json!("a\u{0}b"), "/message"),
            ("model", json!("--dangerous"), "/model"),
            ("model", json!("a b"), "/model"),
            ("model", json!("m".repeat(129)), "/model"),
            ("fallback_model", json!(""), "/fallback_model"),
            ("tools", json!(vec!["Read"; 65]), "/tools"),
            ("tools", json!(["Read", "Bash(rm *)"]), "/tools/1"),
            ("tools", json!("Read"), "/tools"),
            ("mcp_servers", json!(["docs", "a__b"]), "/mcp_servers/1"),
            ("mcp_servers", json!(vec!["docs"; 17]), "/mcp_servers"),
            ("max_turns", json!(0), "/max_turns"),
            ("max_turns", json!(1001), "/max_turns"),
            ("max_turns", json!(1.5), "/max_turns"),
            ("max_budget_usd", json!(0), "/max_budget_usd"),
            ("max_budget_usd", json!(1000.01), "/max_budget_usd"),
            ("effort", json!("huge"), "/effort"),
            ("thinking", json!(true), "/thinking"),
            ("timeout_secs", json!(86_401), "/timeout_secs"),
            ("timeout_secs", json!(-1), "/timeout_secs"),
            ("queue_timeout_secs", json!(0), "/queue_timeout_secs"),
            ("priority", json!("urgent"), "/priority"),
            ("retry_after_output", json!("resume"), "/retry_after_output"),
            ("metadata", json!({"k": 1}), "/metadata/k"),
            ("metadata", json!({"k": "v".repeat(513)}), "/metadata"),
            ("metadata", json!({"k".repeat(65): "v"}), "/metadata"),
            ("stream", json!("yes"), "/stream"),
            ("messsage", json!("hi"), "/messsage"),
            ("session_id", json!("sess_1"), "/session_id"),
            ("session_id", json!(7), "/session_id"),
        ] {
            assert_eq!(pointers(&with(field, value.clone())), [pointer], "{field}: {value}");
        }
        assert_eq!(pointers(&json!({})), ["/message"]);
    }

    #[test]
    fn what_is_at_its_limit_is_taken() {
        for (field, value) in [
            ("message", json!([{"type": "text", "text": "a"}, {"text": "b", "type": "text"}])),
            ("message", json!([{"type": "image", "source": gif("R0lGODlh")}])),
            ("output_schema", json!({"type": "object", "properties": {"a": {"type": "string"}}})),
            ("output_schema", Value::Null),
            ("model", json!("us.anthropic.claude-sonnet-4-5@20250929:0/x[1m]")),
            ("model", Value::Null),
            ("session_id", Value::Null),
            ("session_id", json!("sess_0199a1b2c3d47e5f8a9b0c1d2e3f4a5b")),
            ("tools", json!(vec!["mcp_x"; 64])),
            ("tools", json!([])),
            ("mcp_servers", json!(["docs", "my_docs2"])),
            ("max_turns", json!(1000)),
            ("max_budget_usd", json!(0.01)),
            ("max_budget_usd", json!(1000)),
            ("timeout_secs", json!(86_400)),
            ("metadata", json!({"ключ".repeat(16): "é".repeat(512)})),
        ] {
            assert_eq!(pointers(&with(field, value.clone())), [""; 0], "{field}: {value}");
        }
    }

    #[test]
    fn all_wrong_values_are_told_at_once() {
        let body = json!({"message": "", "max_turns": 0, "model": "-x"});

        assert_eq!(pointers(&body), ["/message", "/model", "/max_turns"]);
    }

    #[test]
    fn the_contract_knows_every_field_and_none_else() {
        let mut body = with("nobody", json!(1));
        body["nobody"] = json!(1);
        let error = parse::<CreateChat>(body.to_string().as_bytes()).expect_err("unknown").problem("r");
        let expected = error.errors[0].detail.split("expected one of ").nth(1).expect("serde lists the fields").to_owned();

        let documented: Vec<String> = properties().iter().map(|(name, _)| format!("`{name}`")).collect();

        assert_eq!(expected, documented.join(", "));
    }
}
