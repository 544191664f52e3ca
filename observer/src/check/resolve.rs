//! Names to addresses, by the host's own configuration: /etc/hosts, then the servers of /etc/resolv.conf.
//!
//! By a library that brings its own resolver: the C library's loads shared libraries, which a static program lacks.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use hickory_resolver::TokioResolver;

/// All addresses of a name, both families. Must be called outside any runtime.
pub fn addresses(name: &str) -> Result<Vec<IpAddr>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the resolver")?;
    runtime.block_on(async {
        let mut builder = TokioResolver::builder_tokio().context("cannot read /etc/resolv.conf")?;
        builder.options_mut().ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv4AndIpv6;
        let answer = builder.build().context("cannot start the resolver")?.lookup_ip(name).await;
        let answer = answer.map_err(|error| anyhow!(sentence(&error.to_string())))?;
        let addresses: Vec<IpAddr> = answer.iter().collect();
        ensure!(!addresses.is_empty(), NO_ADDRESS);
        Ok(addresses)
    })
}

const NO_ADDRESS: &str = "the name has no address in DNS";
const NO_ANSWER: &str = "no DNS server answered";

/// What failed, of what the library says: it shows its own types in it.
fn sentence(said: &str) -> String {
    let lower = said.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&["error response"]) {
        let response = said.rsplit(':').next().unwrap_or_default().trim();
        format!("the DNS server answered with an error: {response}")
    } else if has(&["no record", "nxdomain", "no such name"]) {
        NO_ADDRESS.to_owned()
    } else if has(&["no connections available", "timed out", "timeout", "refused", "unreachable"]) {
        NO_ANSWER.to_owned()
    } else {
        let plain = said.split(['{', '(']).next().unwrap_or_default().trim().trim_end_matches(':');
        format!("the DNS look-up failed: {plain}")
    }
}

/// A look-up takes no longer than twice this: a resolver that is blocked must not keep anybody waiting.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same of several names at once, each with its addresses or why it has none. Must be called outside any runtime.
pub fn all(names: Vec<String>) -> Result<HashMap<String, Result<Vec<IpAddr>, String>>> {
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the resolver")?;
    Ok(runtime.block_on(async {
        let mut found = HashMap::new();
        let resolver = TokioResolver::builder_tokio().map(|mut builder| {
            let options = builder.options_mut();
            options.ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv4AndIpv6;
            options.timeout = PATIENCE;
            options.attempts = 1;
            builder.build()
        });
        let resolver = match resolver {
            Ok(Ok(resolver)) => Arc::new(resolver),
            Ok(Err(error)) | Err(error) => {
                let why = format!("/etc/resolv.conf cannot be used: {error}");
                return names.into_iter().map(|name| (name, Err(why.clone()))).collect();
            }
        };
        let mut waiting = tokio::task::JoinSet::new();
        for name in names {
            let resolver = Arc::clone(&resolver);
            waiting.spawn(async move {
                // A whole name ends with a dot: no search domain is tried.
                let whole = if name.contains('.') { format!("{name}.") } else { name.clone() };
                let answer = tokio::time::timeout(2 * PATIENCE, resolver.lookup_ip(whole)).await;
                let addresses = match answer {
                    Ok(Ok(answer)) => Ok(answer.iter().collect::<Vec<_>>()),
                    Ok(Err(error)) => Err(sentence(&error.to_string())),
                    Err(_) => Err(NO_ANSWER.to_owned()),
                };
                (name, addresses)
            });
        }
        while let Some(answer) = waiting.join_next().await {
            if let Ok((name, addresses)) = answer {
                found.insert(
                    name,
                    addresses.and_then(|all| if all.is_empty() { Err(NO_ADDRESS.to_owned()) } else { Ok(all) }),
                );
            }
        }
        found
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_a_sentence() {
        let of_the_library =
            "no record found for Query { name: Name(\"x.invalid.\"), query_type: AAAA, query_class: IN }";
        assert_eq!(sentence(of_the_library), NO_ADDRESS);
        assert_eq!(sentence("no connections available"), NO_ANSWER);
        assert_eq!(sentence("error response: Query Refused"), "the DNS server answered with an error: Query Refused");
        assert_eq!(sentence("request timed out"), NO_ANSWER);
        assert_eq!(
            sentence("proto error: bad label Label { x: 1 }"),
            "the DNS look-up failed: proto error: bad label Label"
        );
    }
}
