//! nftables over netlink: list chains, make a chain that drops everything. No program is run for it.

use std::{ffi::CString, io};

use anyhow::{Context, Result};
use netlink_bindings::nftables::{self, Nfgenmsg};
use netlink_socket2::NetlinkSocket;

/// `NFPROTO_UNSPEC` and `NFPROTO_INET` of `uapi/linux/netfilter.h`.
const UNSPEC: u8 = 0;
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`, which a batch names.
const SUBSYSTEM: u16 = 10;
/// `NF_INET_LOCAL_OUT` and `NF_DROP`.
const LOCAL_OUT: u32 = 3;
const DROP: u32 = 0;

/// A chain of the namespace that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Address family of its table, an `NFPROTO_*`.
    pub family: u8,
    /// Table.
    pub table: String,
    /// Name.
    pub name: String,
    /// It hangs on a hook.
    pub base: bool,
}

/// All chains of all families in this thread's network namespace.
pub fn chains() -> Result<Vec<Chain>> {
    let mut socket = NetlinkSocket::new();
    let request = nftables::Request::new().op_getchain_dump(&header(UNSPEC));
    let mut replies = socket.request(&request).context("cannot ask for nftables chains")?;
    let mut chains = Vec::new();
    while let Some(reply) = replies.recv() {
        let (header, chain) = reply.map_err(io::Error::from).context("cannot list nftables chains")?;
        let (Ok(table), Ok(name)) = (chain.get_table(), chain.get_name()) else { continue };
        chains.push(Chain {
            family: header.nfgen_family,
            table: table.to_string_lossy().into_owned(),
            name: name.to_string_lossy().into_owned(),
            base: chain.get_hook().is_ok(),
        });
    }
    Ok(chains)
}

/// Adds a table with one chain on the output hook whose policy is drop, in this thread's network namespace.
pub fn drop_all_output(table: &str) -> Result<()> {
    let table = CString::new(table)?;
    let mut socket = NetlinkSocket::new();
    let mut batch = nftables::Chained::new(socket.reserve_seq(8));
    let mut envelope = Nfgenmsg::new();
    envelope.set_res_id(SUBSYSTEM);
    batch.request().op_batch_begin_do(&envelope);
    batch.request().set_create().op_newtable_do(&header(INET)).encode().push_name(&table);
    batch
        .request()
        .set_create()
        .op_newchain_do(&header(INET))
        .encode()
        .push_table(&table)
        .push_name(c"output")
        .nested_hook()
        .push_num(LOCAL_OUT)
        .push_priority(0)
        .end_nested()
        .push_policy(DROP)
        .push_type(c"filter");
    batch.request().op_batch_end_do(&envelope);
    let batch = batch.finalize();
    socket.request_chained(&batch)?.recv_all().map_err(io::Error::from).context("cannot add an nftables chain")?;
    Ok(())
}

fn header(family: u8) -> Nfgenmsg {
    Nfgenmsg { nfgen_family: family, ..Nfgenmsg::new() }
}
