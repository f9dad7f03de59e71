//! The form an answer is to have: a JSON Schema, known to be one. What it refers to elsewhere is never
//! fetched, and its patterns are matched in linear time.

use jsonschema::{PatternOptions, Validator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest schema, in bytes of JSON.
pub const MAX_BYTES: usize = 64 * 1024;
/// The most patterns of a schema. Each becomes a program of up to 256 KiB, for whoever sends a request.
pub const MAX_PATTERNS: usize = 64;
/// The largest program that a pattern may become, in bytes: room for some classes of Unicode.
const PATTERN_BYTES: usize = 256 * 1024;

/// A JSON Schema of an object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OutputSchema(Value);

/// Why something is no output schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchema {
    /// It is too long.
    #[error("must be at most {MAX_BYTES} bytes of JSON")]
    TooLong,
    /// It would take too long to read.
    #[error("must have at most {MAX_PATTERNS} patterns")]
    TooManyPatterns,
    /// The model hands in an object, or nothing.
    #[error("must be a JSON Schema with `\"type\": \"object\"`")]
    NotOfAnObject,
    /// It is not a schema.
    #[error("is not a JSON Schema: {0}")]
    NotASchema(String),
}

impl OutputSchema {
    /// `schema`, if it is one. What was read back from the record needs no second look.
    pub fn parse(schema: Value) -> Result<Self, InvalidSchema> {
        if schema.to_string().len() > MAX_BYTES {
            return Err(InvalidSchema::TooLong);
        }
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            return Err(InvalidSchema::NotOfAnObject);
        }
        if patterns(&schema) > MAX_PATTERNS {
            return Err(InvalidSchema::TooManyPatterns);
        }
        let schema = Self(schema);
        schema.validator()?;
        Ok(schema)
    }

    /// The schema itself.
    pub fn as_json(&self) -> &Value {
        &self.0
    }

    /// Whether `answer` has this form; otherwise where it first has not, in a sentence without its words.
    pub fn admits(&self, answer: &Value) -> Result<(), String> {
        let validator = self.validator().map_err(|error| error.to_string())?;
        validator.validate(answer).map_err(|error| format!("`{}` does not fit `{}`", error.instance_path(), error.schema_path()))
    }

    fn validator(&self) -> Result<Validator, InvalidSchema> {
        let patterns = PatternOptions::regex().size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES);
        let validator = jsonschema::options().offline().with_pattern_options(patterns).build(&self.0);
        validator.map_err(|error| InvalidSchema::NotASchema(error.to_string()))
    }
}

/// How many patterns there are, or may be: what is a keyword and what an example is not told apart.
fn patterns(schema: &Value) -> usize {
    match schema {
        Value::Array(items) => items.iter().map(patterns).sum(),
        Value::Object(fields) => fields.iter().map(|(keyword, value)| of_keyword(keyword, value) + patterns(value)).sum(),
        _ => 0,
    }
}

fn of_keyword(keyword: &str, value: &Value) -> usize {
    match (keyword, value) {
        ("pattern", Value::String(_)) => 1,
        ("patternProperties", Value::Object(patterns)) => patterns.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_answer_is_held_to_its_form() {
        let schema =
            json!({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": false});
        let schema = OutputSchema::parse(schema).expect("a schema");

        assert_eq!(schema.admits(&json!({"age": 36})), Ok(()));
        let wrong = schema.admits(&json!({"age": "hunter2"})).expect_err("not an integer");
        assert!(wrong.contains("/age") && !wrong.contains("hunter2"), "{wrong}");
        assert!(schema.admits(&json!({})).is_err());
    }

    #[test]
    fn what_is_no_schema_of_an_object_is_refused() {
        let long = json!({"type": "object", "description": "x".repeat(MAX_BYTES)});
        assert_eq!(OutputSchema::parse(long), Err(InvalidSchema::TooLong));
        let names = |count: usize| (0..count).map(|n| (format!("p{n}"), json!({"pattern": "^a$"})));
        let many = |count| json!({"type": "object", "properties": names(count).collect::<serde_json::Map<_, _>>()});
        assert!(OutputSchema::parse(many(MAX_PATTERNS)).is_ok());
        assert_eq!(OutputSchema::parse(many(MAX_PATTERNS + 1)), Err(InvalidSchema::TooManyPatterns));
        let many = json!({"type": "object", "patternProperties": names(MAX_PATTERNS + 1).collect::<serde_json::Map<_, _>>()});
        assert_eq!(OutputSchema::parse(many), Err(InvalidSchema::TooManyPatterns));
        for wrong in [json!([]), json!({}), json!({"type": "array"}), json!(true)] {
            assert_eq!(OutputSchema::parse(wrong.clone()), Err(InvalidSchema::NotOfAnObject), "{wrong}");
        }
        for wrong in [
            json!({"type": "object", "properties": {"a": {"type": "strnig"}}}),
            json!({"type": "object", "required": "name"}),
            json!({"type": "object", "properties": {"a": {"pattern": "("}}}),
            json!({"type": "object", "properties": {"a": {"pattern": "(\\p{L}{100}){100}"}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "https://example.com/schema.json"}}}),
            json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}}),
        ] {
            assert!(matches!(OutputSchema::parse(wrong.clone()), Err(InvalidSchema::NotASchema(_))), "{wrong}");
        }
    }
}
