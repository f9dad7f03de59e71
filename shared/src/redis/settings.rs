//! How Redis is set up, as far as the protocol depends on it.

use std::collections::HashMap;

use fred::{
    interfaces::ClientLike as _,
    prelude::Client,
    types::{ClusterHash, CustomCommand},
};

use crate::{Error, Result};

/// What the protocol depends on.
const READ: [&str; 3] = ["maxmemory", "maxmemory-policy", "appendonly"];

/// Refuse a Redis that may drop what it holds, and say so where it forgets everything with its end. One that does not
/// show its settings is taken as it is.
pub async fn check(client: &Client) -> Result<()> {
    let mut settings = HashMap::new();
    for name in READ {
        let command = CustomCommand::new_static("CONFIG", ClusterHash::Random, false);
        match client.custom::<HashMap<String, String>, _>(command, vec!["GET", name]).await {
            Ok(read) => settings.extend(read),
            Err(error) => {
                tracing::debug!(%error, "Could not read how Redis is set up");
                return Ok(());
            }
        }
    }
    judge(&settings)
}

fn judge(settings: &HashMap<String, String>) -> Result<()> {
    let of = |name: &str| settings.get(name).map(String::as_str);
    let is_bounded = of("maxmemory").is_some_and(|bytes| bytes != "0");
    if let Some(policy) = of("maxmemory-policy").filter(|policy| is_bounded && *policy != "noeviction") {
        return Err(Error::Internal {
            what: "Redis is set up to drop what it holds when it is full",
            source: format!("`maxmemory-policy` is `{policy}` (hint: set it to `noeviction`)").into(),
        });
    }
    if of("appendonly") == Some("no") {
        tracing::warn!(
            "Redis keeps no log of its changes: each of its restarts loses the queue's doorbells, the live events and the hourly limits, \
             which are made again as far as the record goes (hint: set `appendonly yes`)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::server::Server;

    fn settings(maxmemory: &str, policy: &str) -> HashMap<String, String> {
        HashMap::from([("maxmemory".to_owned(), maxmemory.to_owned()), ("maxmemory-policy".to_owned(), policy.to_owned())])
    }

    #[test]
    fn a_redis_that_may_drop_something_is_refused() {
        for (maxmemory, policy) in [("0", "allkeys-lru"), ("1000", "noeviction"), ("0", "noeviction")] {
            assert!(judge(&settings(maxmemory, policy)).is_ok(), "{maxmemory} {policy}");
        }
        for policy in ["allkeys-lru", "volatile-ttl"] {
            assert!(judge(&settings("1000", policy)).is_err(), "{policy}");
        }
        assert!(judge(&HashMap::new()).is_ok());
    }

    #[tokio::test]
    async fn the_settings_are_those_of_the_server() {
        let server = Server::start();
        let client = server.connect().await;
        check(&client).await.expect("as it should be");
        let set = async |name: &str, value: &str| {
            let command = CustomCommand::new_static("CONFIG", ClusterHash::Random, false);
            client.custom::<String, _>(command, vec!["SET", name, value]).await.expect("set");
        };

        set("maxmemory", "100mb").await;
        set("maxmemory-policy", "volatile-lru").await;

        let refusal = check(&client).await.expect_err("it may drop something");
        assert!(std::error::Error::source(&refusal).is_some_and(|source| source.to_string().contains("`volatile-lru`")), "{refusal:?}");
    }
}
