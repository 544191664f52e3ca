//! Names to addresses, by the host's own configuration: /etc/hosts, then the servers of /etc/resolv.conf.
//!
//! By a library that brings its own resolver: the C library's loads shared libraries, which a static program lacks.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use hickory_resolver::TokioResolver;

/// All addresses of a name, both families. Must be called outside any runtime.
pub fn addresses(name: &str) -> Result<Vec<IpAddr>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the resolver")?;
    runtime.block_on(async {
        let mut builder = TokioResolver::builder_tokio().context("cannot read /etc/resolv.conf")?;
        builder.options_mut().ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv4AndIpv6;
        let answer = builder.build().context("cannot start the resolver")?.lookup_ip(name).await?;
        let addresses: Vec<IpAddr> = answer.iter().collect();
        ensure!(!addresses.is_empty(), "it has no address");
        Ok(addresses)
    })
}
