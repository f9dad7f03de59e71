//! A JSON body, read with a limit and judged as strictly as JSON allows: no key twice, no lone surrogate,
//! no NUL, no field we do not know. What is not JSON is a 400; what is JSON and wrong is a 422 that says
//! where.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use poem::{Body, Request, RequestBody, Result, http::header};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, Registry},
    types::Type,
};
use serde::{
    Deserialize,
    de::{self, DeserializeOwned, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use shared::principal::Principal;

use crate::{
    app::App,
    auth,
    error::{ApiError, Code, FieldError},
};

/// The longest wait for the whole of a body.
pub const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// What a body must still fulfil once it has the right shape.
pub trait Check {
    /// Everything that is wrong with it.
    fn check(&self) -> Vec<FieldError>;
}

/// What is wrong with a body, as it is found.
#[derive(Debug, Default)]
pub struct Faults(Vec<FieldError>);

impl Faults {
    /// Unless it `is_right`, `detail` is wrong at `pointer`.
    pub fn unless(&mut self, is_right: bool, pointer: impl Into<String>, detail: impl Into<String>) {
        if !is_right {
            self.0.push(FieldError::new(pointer, detail));
        }
    }
}

impl From<Faults> for Vec<FieldError> {
    fn from(faults: Faults) -> Self {
        faults.0
    }
}

/// The body of a request: JSON, of the right shape, and checked.
#[derive(Debug)]
pub struct Checked<T>(pub T);

impl<'a, T: Type + DeserializeOwned + Check> ApiExtractor<'a> for Checked<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let content = vec![MetaMediaType { content_type: "application/json", schema: T::schema_ref() }];
        Some(MetaRequest { description: None, content, required: true })
    }

    async fn from_request(request: &'a Request, body: &mut RequestBody, _options: ExtractParamOptions<()>) -> Result<Self> {
        if !is_json(request) {
            return Err(ApiError::new(Code::UnsupportedMediaType, "the body must be `application/json`").into());
        }
        let app: &App = request.data().ok_or_else(|| ApiError::internal("the endpoint has no `App`"))?;
        let limit = app.config.max_body_bytes;
        if declared_length(request).is_some_and(|length| length > limit) {
            return Err(too_large(limit).into());
        }
        let slow = |_| ApiError::new(Code::RequestTimeout, "the body came too slowly");
        let bytes = tokio::time::timeout(READ_TIMEOUT, read(body.take()?, limit)).await.map_err(slow)??;
        if let Some(principal) = request.data::<Arc<Principal>>() {
            auth::confirm(&app.access, principal).await?;
        }
        Ok(Self(parse(&bytes)?))
    }
}

/// What is there, for a field that may be absent and not null.
pub fn present<'de, T: Deserialize<'de>, D: de::Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Parse and check a body.
pub fn parse<T: DeserializeOwned + Check>(bytes: &[u8]) -> Result<T, ApiError> {
    checked(strict(bytes)?)
}

/// Check what was parsed as strictly as a body.
pub fn checked<T: DeserializeOwned + Check>(value: Value) -> Result<T, ApiError> {
    // serde would also take the fields one after the other.
    if !value.is_object() {
        return Err(ApiError::invalid(vec![FieldError::new("", "expected an object")]));
    }
    let parsed: T = serde_path_to_error::deserialize(value).map_err(|error| {
        let detail = error.inner().to_string();
        ApiError::invalid(vec![FieldError::new(pointer(error.path(), &detail), without_value(detail))])
    })?;
    let errors = parsed.check();
    ApiError::refuse(errors).map(|()| parsed)
}

/// Whether the body says that it is JSON. Parameters such as a charset are ignored: JSON is UTF-8.
fn is_json(request: &Request) -> bool {
    let essence = request.content_type().and_then(|value| value.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}

/// How long the body says it is.
pub fn declared_length(request: &Request) -> Option<usize> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Read the whole body, counting: a chunked one does not say its length.
async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut chunks = body.into_bytes_stream();
    let mut whole = BytesMut::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| ApiError::new(Code::BadRequest, "the body broke off"))?;
        if whole.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.freeze())
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(Code::BodyTooLarge, format!("the body is larger than {limit} bytes"))
}

/// JSON as a value, or why it is not one that two readers would understand alike.
pub fn strict(bytes: &[u8]) -> Result<Value, ApiError> {
    let mut walk = Walk::default();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict(&mut walk).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    match value {
        Ok(_) if !walk.nul.is_empty() => Err(ApiError::invalid(walk.nul)),
        Ok(value) => Ok(value),
        Err(error) if walk.duplicate => Err(ApiError::new(Code::DuplicateKey, error.to_string())),
        Err(error) => Err(ApiError::new(Code::MalformedJson, format!("the body is not JSON: {error}"))),
    }
}

/// What was found on the way through a value.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
    duplicate: bool,
    nul: Vec<FieldError>,
}

impl Walk {
    fn look_for_nul(&mut self, text: &str) {
        // One is enough to refuse the body; a list of thousands would be an answer larger than it.
        if text.contains('\0') && self.nul.is_empty() {
            let pointer = joined(self.path.iter().map(String::as_str));
            self.nul.push(FieldError::new(pointer, "text may not hold the character NUL"));
        }
    }
}

struct Strict<'a>(&'a mut Walk);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        self.0.look_for_nul(value);
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            self.0.path.push(items.len().to_string());
            let Some(item) = seq.next_element_seed(Strict(self.0))? else { break };
            self.0.path.pop();
            items.push(item);
        }
        self.0.path.pop();
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if object.contains_key(&key) {
                self.0.duplicate = true;
                return Err(de::Error::custom(format_args!("the key `{key}` stands twice in one object")));
            }
            self.0.path.push(key.clone());
            self.0.look_for_nul(&key);
            let value = map.next_value_seed(Strict(self.0))?;
            self.0.path.pop();
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// The JSON pointer (RFC 6901) to where shape and body part.
fn pointer(path: &serde_path_to_error::Path, detail: &str) -> String {
    use serde_path_to_error::Segment;

    let mut steps: Vec<Cow<'_, str>> = Vec::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => steps.push(index.to_string().into()),
            Segment::Map { key } => steps.push(key.into()),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    // The path ends at the object that lacks the field: the field is where a reader looks.
    let missing = detail.strip_prefix("missing field `").and_then(|rest| rest.split_once('`'));
    if let Some((field, _)) = missing {
        steps.push(field.into());
    }
    joined(steps.iter().map(AsRef::as_ref))
}

/// What serde says of a value, without the value: it may be a secret in the wrong place.
fn without_value(detail: String) -> String {
    let tells = ["invalid type: ", "invalid value: ", "unknown variant "].iter().any(|start| detail.starts_with(start));
    if !tells {
        return detail;
    }
    detail.rsplit_once(", expected ").map_or_else(|| "is not valid".to_owned(), |(_, expected)| format!("expected {expected}"))
}

fn joined<'a>(steps: impl Iterator<Item = &'a str>) -> String {
    let mut pointer = String::new();
    for step in steps {
        pointer.push('/');
        pointer.push_str(&step.replace('~', "~0").replace('/', "~1"));
    }
    pointer
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Order {
        name: String,
        #[serde(default)]
        lines: Vec<Line>,
        #[serde(default)]
        notes: BTreeMap<String, String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only its shape matters")]
    struct Line {
        count: u8,
    }

    impl Check for Order {
        fn check(&self) -> Vec<FieldError> {
            if self.name.is_empty() { vec![FieldError::new("/name", "is empty")] } else { Vec::new() }
        }
    }

    fn refusal(body: &[u8]) -> (Code, Vec<String>) {
        let error = parse::<Order>(body).expect_err("refused");
        let pointers = error.problem("r").errors.into_iter().map(|error| error.pointer).collect();
        (error.code(), pointers)
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        let nested = "[".repeat(100_000);
        for wrong in ["", "{", "nope", "{\"name\":\"\\ud800\"}", "{\"name\":1e999}", "{} {}", "{\"name\":NaN}", &nested] {
            assert_eq!(refusal(wrong.as_bytes()).0, Code::MalformedJson, "{wrong:.20}");
        }
        assert_eq!(refusal(b"{\"name\":\"\xff\"}").0, Code::MalformedJson);
    }

    #[test]
    fn a_refused_value_is_not_repeated() {
        for (secret, detail) in [(r#""hunter2, expected""#, "expected u8"), ("271828", "expected u8"), ("[27182]", "expected u8")] {
            let body = format!(r#"{{"name":"a","lines":[{{"count":{secret}}}]}}"#);
            let problem = parse::<Order>(body.as_bytes()).expect_err("refused").problem("r");
            assert_eq!(problem.errors[0].detail, detail, "{secret}");
        }
    }

    #[test]
    fn a_key_that_stands_twice_is_refused_wherever_it_stands() {
        for wrong in [r#"{"name":"a","name":"b"}"#, r#"{"name":"a","notes":{"k":"1","k":"2"}}"#, r#"{"x":[{"a":1,"a":1}]}"#] {
            assert_eq!(refusal(wrong.as_bytes()).0, Code::DuplicateKey, "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_is_pointed_at() {
        for (wrong, pointer) in [
            ("{}", "/name"),
            ("[]", ""),
            ("null", ""),
            (r#"{"name":null}"#, "/name"),
            (r#"{"name":7}"#, "/name"),
            (r#"{"name":""}"#, "/name"),
            (r#"{"name":"a","nmae":"b"}"#, "/nmae"),
            (r#"{"name":"a","lines":[{"count":1},{"count":300}]}"#, "/lines/1/count"),
            (r#"{"name":"a","lines":[{"count":1,"cuont":1}]}"#, "/lines/0/cuont"),
            (r#"{"name":"a","lines":[{}]}"#, "/lines/0/count"),
            (r#"{"name":"a","notes":{"a/b~c":1}}"#, "/notes/a~1b~0c"),
            (r#"{"name":"a","notes":{"k":"\u0000"}}"#, "/notes/k"),
            (r#"{"name":"a","lines":[1],"notes":{"k\u0000":"v"}}"#, "/notes/k\0"),
        ] {
            assert_eq!(refusal(wrong.as_bytes()), (Code::InvalidRequest, vec![pointer.to_owned()]), "{wrong}");
        }
    }
}
