//! Which models a job may name. A name that cannot be right is refused before it costs a process; whether
//! the provider offers a model to this service, only the provider knows.

/// The models a job may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Models {
    /// These, and no others.
    Listed(Vec<String>),
    /// The CLI's aliases, and whatever any provider calls a Claude model.
    Claude,
}

/// The CLI's own words for a model, each perhaps followed by a context window such as `[1m]`.
const ALIASES: [&str; 6] = ["default", "best", "opus", "sonnet", "haiku", "opusplan"];

impl Models {
    /// The models of a comma list; every Claude model when there is none.
    pub fn of(list: Option<&str>) -> Self {
        let names = |list: &str| list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        list.map_or(Self::Claude, |list| Self::Listed(names(list)))
    }

    /// Whether a job may name `model`.
    pub fn include(&self, model: &str) -> bool {
        match self {
            Self::Listed(names) => names.iter().any(|name| name == model),
            Self::Claude => {
                let plain = model.split('[').next().unwrap_or_default();
                ALIASES.contains(&plain) || plain.contains("claude")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_and_a_claude_model_of_any_provider_may_be_named() {
        for known in ["sonnet", "opus[1m]", "claude-opus-5-5", "us.anthropic.claude-sonnet-4-5-v1:0", "claude-haiku-4-5@20251001"] {
            assert!(Models::Claude.include(known), "{known}");
        }
        for unknown in ["gpt-5", "nonexistent-model-1", "sonet", "[1m]"] {
            assert!(!Models::Claude.include(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_list_is_the_whole_of_it() {
        let models = Models::of(Some("sonnet, our-own"));

        assert!(models.include("our-own") && models.include("sonnet"));
        assert!(!models.include("opus"));
    }
}
