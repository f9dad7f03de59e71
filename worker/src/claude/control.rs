//! The control protocol on the CLI's stdin and stdout. Prompts go in here and nowhere else: a command line
//! can be read by every process of the machine.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use shared::job::{ChatSpec, Message};
use uuid::Uuid;

/// What the CLI answers to a request of ours.
#[derive(Debug, PartialEq)]
pub struct Answer {
    /// The request.
    pub request_id: String,
    /// Whether it did as asked.
    pub outcome: Result<(), Refused>,
}

/// Why the CLI did not do as asked.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the CLI refused: {message}")]
pub struct Refused {
    /// Its sentence.
    pub message: String,
    /// Its word for it, if it has one.
    pub code: Option<String>,
}

/// Something the CLI asks us. It waits until it is answered.
#[derive(Debug, PartialEq)]
pub struct Question {
    /// The request.
    pub request_id: String,
    /// What it is about: `can_use_tool`, `hook_callback`, ….
    pub subtype: String,
    /// What is to be carried to an MCP server.
    pub mcp: Option<McpMessage>,
}

/// A JSON-RPC message for an MCP server.
#[derive(Debug, PartialEq)]
pub struct McpMessage {
    /// The server's name.
    pub server: String,
    /// The message, as it came. It may be anything: what runs in the sandbox may have made it.
    pub message: String,
}

impl Answer {
    /// Read a `control_response` line.
    pub(super) fn parse(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line {
            response: Response,
        }
        #[derive(Deserialize)]
        struct Response {
            subtype: String,
            request_id: String,
            #[serde(default)]
            error: Option<String>,
            #[serde(default)]
            error_code: Option<String>,
        }
        let Line { response } = serde_json::from_str(line).ok()?;
        let outcome = if response.subtype == "success" {
            Ok(())
        } else {
            Err(Refused { message: response.error.unwrap_or_default(), code: response.error_code })
        };
        Some(Self { request_id: response.request_id, outcome })
    }
}

impl Question {
    /// Read a `control_request` line.
    pub(super) fn parse(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Line<'a> {
            request_id: String,
            #[serde(borrow)]
            request: Request<'a>,
        }
        #[derive(Deserialize)]
        struct Request<'a> {
            subtype: String,
            server_name: Option<String>,
            #[serde(borrow)]
            message: Option<&'a RawValue>,
        }
        let Line { request_id, request } = serde_json::from_str(line).ok()?;
        let mcp =
            request.server_name.zip(request.message).map(|(server, message)| McpMessage { server, message: message.get().to_owned() });
        Some(Self { request_id, mcp: mcp.filter(|_| request.subtype == "mcp_message"), subtype: request.subtype })
    }

    /// The answer: no. What a job may do is settled before it starts.
    pub fn refuse(&self) -> String {
        let response = if self.subtype == "can_use_tool" {
            let response = json!({"behavior": "deny", "message": "not allowed in this job", "interrupt": false});
            json!({"subtype": "success", "request_id": self.request_id, "response": response})
        } else {
            json!({"subtype": "error", "request_id": self.request_id, "error": format!("`{}` is not served", self.subtype)})
        };
        line(&json!({"type": "control_response", "response": response}))
    }
}

/// The first line of a process: the system prompt of the conversation, the form of its answer, and the MCP servers
/// whose messages we carry. Its answer says that the CLI is up.
///
/// Without tools and without a prompt of the client's the system prompt is empty: the CLI's own default
/// would tell the model the directory and the date of this machine.
pub fn initialize(request_id: &str, spec: &ChatSpec, tools: &[String], mcp_servers: &[&str]) -> String {
    let mut asked = json!({"subtype": "initialize"});
    match &spec.system_prompt {
        Some(prompt) => asked["systemPrompt"] = json!([prompt]),
        None if tools.is_empty() => asked["systemPrompt"] = json!([""]),
        None => {}
    }
    if let Some(prompt) = &spec.append_system_prompt {
        asked["appendSystemPrompt"] = json!(prompt);
    }
    if let Some(schema) = &spec.output_schema {
        asked["jsonSchema"] = schema.as_json().clone();
    }
    if !mcp_servers.is_empty() {
        asked["sdkMcpServers"] = json!(mcp_servers);
    }
    request(request_id, &asked)
}

/// What an MCP server answers to the message of a request.
pub fn mcp_answer(request_id: &str, answer: &Value) -> String {
    let response = json!({"mcp_response": answer});
    line(&json!({"type": "control_response", "response": {"subtype": "success", "request_id": request_id, "response": response}}))
}

/// What the user says. The CLI takes it as it is: no slash command, no file behind an `@`.
pub fn user_message(uuid: Uuid, message: &Message) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(rename = "type")]
        kind: &'static str,
        message: Content<'a>,
        uuid: Uuid,
        client_composed: bool,
        parent_tool_use_id: Option<&'static str>,
    }
    #[derive(Serialize)]
    struct Content<'a> {
        role: &'static str,
        content: &'a Message,
    }
    let message = Content { role: "user", content: message };
    line(&Line { kind: "user", message, uuid, client_composed: true, parent_tool_use_id: None })
}

/// A message that the model is not to answer. The CLI announces itself at the first it reads.
pub fn silent_message(uuid: Uuid) -> String {
    let message = json!({"role": "user", "content": "hello"});
    line(&json!({
        "type": "user", "message": message, "uuid": uuid, "client_composed": true, "shouldQuery": false, "parent_tool_use_id": null,
    }))
}

/// End the turn at once; messages still waiting are dropped. The process stays usable.
pub fn interrupt(request_id: &str) -> String {
    request(request_id, &json!({"subtype": "interrupt", "cancel_queued": true}))
}

/// End the process and all it started.
pub fn end_session(request_id: &str) -> String {
    request(request_id, &json!({"subtype": "end_session"}))
}

fn request(request_id: &str, request: &Value) -> String {
    line(&json!({"type": "control_request", "request_id": request_id, "request": request}))
}

fn line(content: &impl Serialize) -> String {
    serde_json::to_string(content).expect("only string keys and finite numbers")
}

#[cfg(test)]
mod tests {
    use shared::job::ContentBlock;

    use super::*;

    fn read(line: &str) -> Value {
        assert!(!line.contains('\n'), "{line}");
        serde_json::from_str(line).expect("JSON")
    }

    #[test]
    fn initialize_carries_the_prompts_of_the_client() {
        let spec =
            ChatSpec { system_prompt: Some("be\nbrief".into()), append_system_prompt: Some("and kind".into()), ..ChatSpec::text("hi") };

        assert_eq!(
            read(&initialize("i", &spec, &[], &[])),
            json!({"type": "control_request", "request_id": "i",
                   "request": {"subtype": "initialize", "systemPrompt": ["be\nbrief"], "appendSystemPrompt": "and kind"}})
        );
    }

    #[test]
    fn without_tools_the_default_prompt_with_our_directory_is_never_used() {
        let append = ChatSpec { append_system_prompt: Some("and kind".into()), ..ChatSpec::text("hi") };

        assert_eq!(read(&initialize("i", &ChatSpec::text("hi"), &[], &[]))["request"]["systemPrompt"], json!([""]));
        assert_eq!(read(&initialize("i", &append, &[], &[]))["request"]["systemPrompt"], json!([""]));
    }

    #[test]
    fn with_tools_the_default_prompt_stays_unless_replaced() {
        let tools = ["Bash".to_owned()];
        let replaced = ChatSpec { system_prompt: Some("x".into()), ..ChatSpec::text("hi") };

        assert_eq!(read(&initialize("i", &ChatSpec::text("hi"), &tools, &[]))["request"], json!({"subtype": "initialize"}));
        assert_eq!(read(&initialize("i", &replaced, &tools, &[]))["request"]["systemPrompt"], json!(["x"]));
    }

    #[test]
    fn a_message_is_never_taken_as_a_command() {
        let uuid = Uuid::from_u128(7);
        let blocks = Message::Blocks(vec![ContentBlock::Text { text: "@secret".into() }]);

        let text = read(&user_message(uuid, &Message::Text("/cost\n\0".into())));
        let list = read(&user_message(uuid, &blocks));

        assert_eq!(
            text,
            json!({"type": "user", "message": {"role": "user", "content": "/cost\n\0"}, "uuid": uuid.to_string(),
                   "client_composed": true, "parent_tool_use_id": null})
        );
        assert_eq!(list["message"]["content"], json!([{"type": "text", "text": "@secret"}]));
        assert_eq!(list["client_composed"], true);
    }

    #[test]
    fn a_silent_message_is_one_that_the_model_is_not_to_answer() {
        let message = read(&silent_message(Uuid::from_u128(7)));

        assert_eq!((&message["type"], &message["message"]["role"]), (&json!("user"), &json!("user")));
        assert_eq!((&message["shouldQuery"], &message["client_composed"]), (&json!(false), &json!(true)));
    }

    #[test]
    fn an_interrupt_drops_waiting_messages() {
        assert_eq!(read(&interrupt("a"))["request"], json!({"subtype": "interrupt", "cancel_queued": true}));
        assert_eq!(read(&end_session("b")), json!({"type": "control_request", "request_id": "b", "request": {"subtype": "end_session"}}));
    }

    #[test]
    fn every_question_is_answered_with_no() {
        let refuse = |subtype: &str| read(&Question { request_id: "q".into(), subtype: subtype.into(), mcp: None }.refuse());

        assert_eq!(
            refuse("can_use_tool"),
            json!({"type": "control_response", "response": {"subtype": "success", "request_id": "q",
                   "response": {"behavior": "deny", "message": "not allowed in this job", "interrupt": false}}})
        );
        assert_eq!(refuse("hook_callback")["response"]["subtype"], "error");
    }

    #[test]
    fn a_message_for_a_server_is_read_and_answered() {
        let asked =
            r#"{"type":"control_request","request_id":"r","request":{"subtype":"mcp_message","server_name":"docs","message":{"id":1}}}"#;
        let message = McpMessage { server: "docs".into(), message: r#"{"id":1}"#.into() };

        assert_eq!(Question::parse(asked), Some(Question { request_id: "r".into(), subtype: "mcp_message".into(), mcp: Some(message) }));
        assert_eq!(
            read(&mcp_answer("r", &json!({"id": 1}))),
            json!({"type": "control_response",
                   "response": {"subtype": "success", "request_id": "r", "response": {"mcp_response": {"id": 1}}}})
        );
        assert_eq!(read(&initialize("i", &ChatSpec::text("hi"), &[], &["docs"]))["request"]["sdkMcpServers"], json!(["docs"]));
    }

    #[test]
    fn answers_are_read_back() {
        let refused = r#"{"type":"control_response","response":{"subtype":"error","request_id":"r","error":"Unsupported","error_code":"unsupported_request"}}"#;
        let done = r#"{"type":"control_response","response":{"subtype":"success","request_id":"r","response":{"still_queued":[]}}}"#;

        assert_eq!(Answer::parse(done), Some(Answer { request_id: "r".into(), outcome: Ok(()) }));
        let refusal = Refused { message: "Unsupported".into(), code: Some("unsupported_request".into()) };
        assert_eq!(Answer::parse(refused), Some(Answer { request_id: "r".into(), outcome: Err(refusal) }));
        assert_eq!(Answer::parse(r#"{"type":"control_response","response":{}}"#), None);
    }
}
