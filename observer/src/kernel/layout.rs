//! From the kernel's BTF to the numbers that the eBPF side needs.
//!
//! Everything is resolved by name; nothing is chosen by kernel version.

use std::{
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
};

use observer_ebpf::abi::{ABSENT, Layout};

use super::{btf::Btf, netns_cookie, symbols};

/// The enum that names why packets are freed, and the prefix of its enumerators.
const REASONS: &str = "skb_drop_reason";
const REASON_PREFIX: &str = "SKB_DROP_REASON_";

/// The function of the kernel that frees what netfilter drops.
const DROPPER: &str = "nf_hook_slow";

/// What this kernel lacks that observer cannot do without.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Before 5.18 the kernel does not name what netfilter drops, and the function that does it was not found.
    #[error(
        "this kernel names no drop reasons (it does since Linux 5.18), and /proc/kallsyms shows no address of `{DROPPER}`, by \
         which netfilter's drops could be told"
    )]
    NoReason,
    /// No such tracepoint.
    #[error("this kernel has no `kfree_skb` tracepoint")]
    NoTracepoint,
    /// A field is missing or has another width than the program reads.
    #[error("this kernel's BTF does not describe {0} as expected")]
    Fields(String),
}

/// What was learnt from BTF.
pub struct Kernel {
    /// Numbers for the eBPF side.
    pub layout: Layout,
    /// Number of the function by which programs read any memory directly (Linux 6.2 and later).
    pub cast: Option<u32>,
    /// Probes may use maps whose room is made as it is needed (since Linux 6.1). Before, the kernel takes them too, but with a
    /// warning in its log, or a panic where it is set so.
    pub grows_maps: bool,
    /// Names of the drop reasons, without their prefix.
    pub reasons: Reasons,
    /// Routes that forward are recognised.
    pub forwarding: bool,
}

/// The running kernel's drop reasons.
#[derive(Clone, Debug, Default)]
pub struct Reasons(Vec<(u32, String)>);

impl Reasons {
    /// Name of a reason, without the `SKB_DROP_REASON_` prefix; `None` for a value that BTF does not name (subsystems
    /// such as mac80211 have their own).
    pub fn name(&self, value: u32) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == value).map(|(_, name)| name.as_str())
    }

    /// True when this kernel has a reason of that name.
    pub fn has(&self, name: &str) -> bool {
        self.value(name) != ABSENT
    }

    fn value(&self, name: &str) -> u32 {
        self.0.iter().find(|(_, known)| known == name).map_or(ABSENT, |(value, _)| *value)
    }
}

/// The kernel frees what waited for a neighbour in one of these functions: in the last two, or in the first if the compiler made their
/// last call a jump.
const UNANSWERED: [&str; 3] = ["neigh_invalidate", "arp_error_report", "ndisc_error_report"];
/// None of them is longer.
const MAX_FUNCTION: u32 = 4096;

/// What is not in BTF.
#[derive(Clone, Copy, Debug, Default)]
pub struct Symbols {
    /// Address of `ip_forward`.
    pub ip_forward: Option<u64>,
    /// Address of `ip6_forward`, `None` too while IPv6 is not loaded.
    pub ip6_forward: Option<u64>,
    /// Address and bytes of the functions in which is freed what has waited for a neighbour who does not answer ([`UNANSWERED`]).
    pub unanswered: [Option<(u64, u32)>; 3],
    /// Address and bytes of the function that frees what netfilter drops; looked up only where the kernel names no reason.
    pub netfilter: Option<(u64, u32)>,
}

impl Symbols {
    /// Reads /proc/kallsyms, which shows addresses to those who may see them.
    pub fn of_kernel() -> Self {
        let mut symbols = Self::default();
        let Ok(file) = std::fs::File::open("/proc/kallsyms") else { return symbols };
        // Symbols stand in the order of their addresses, those of a module beside each other: a function ends where the next one begins.
        let mut begun: Option<(usize, u64)> = None;
        for line in BufReader::with_capacity(1 << 18, file).lines().map_while(Result::ok) {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(name)) = (words.next(), words.nth(1)) else { continue };
            if let Some((index, start)) = begun.take() {
                let bytes = u64::from_str_radix(address, 16).ok().and_then(|end| end.checked_sub(start));
                symbols.unanswered[index] = bytes
                    .and_then(|bytes| u32::try_from(bytes).ok())
                    .filter(|bytes| (1..=MAX_FUNCTION).contains(bytes))
                    .map(|bytes| (start, bytes));
            }
            if let Some(index) = UNANSWERED.iter().position(|known| *known == name) {
                begun = u64::from_str_radix(address, 16).ok().filter(|start| *start != 0).map(|start| (index, start));
            }
            let slot = match name {
                "ip_forward" => &mut symbols.ip_forward,
                "ip6_forward" => &mut symbols.ip6_forward,
                _ => continue,
            };
            *slot = u64::from_str_radix(address, 16).ok().filter(|address| *address != 0);
            let are_all = symbols.ip_forward.is_some() && symbols.ip6_forward.is_some();
            if are_all && symbols.unanswered.iter().all(Option::is_some) {
                break;
            }
        }
        symbols
    }

    /// Looks up where netfilter drops, for a kernel that does not name it.
    fn with_netfilter(mut self) -> Self {
        self.netfilter = symbols::extent(DROPPER);
        self
    }
}

/// Halves of an address.
fn low(address: Option<u64>) -> u32 {
    address.map_or(ABSENT, |address| (address & 0xffff_ffff) as u32)
}

fn high(address: Option<u64>) -> u32 {
    address.map_or(ABSENT, |address| (address >> 32) as u32)
}

/// Inode number of the network namespace of the host's first process.
fn host_netns() -> Option<u32> {
    std::fs::metadata("/proc/1/ns/net").ok().and_then(|meta| u32::try_from(meta.ino()).ok())
}

/// Resolves everything the eBPF side needs.
pub fn resolve(btf: &Btf, symbols: Symbols) -> Result<Kernel, LayoutError> {
    let host_netns = host_netns().unwrap_or(ABSENT);
    let reason_arg = btf.tracepoint_enum_argument("kfree_skb", REASONS).ok_or(LayoutError::NoTracepoint)?;
    let reasons = Reasons(
        btf.enum_values(REASONS)
            .into_iter()
            .filter_map(|(name, value)| {
                Some((u32::try_from(value).ok()?, name.strip_prefix(REASON_PREFIX).unwrap_or(&name).to_owned()))
            })
            .collect(),
    );
    // 5.17 has reasons, but none for a firewall's drop: they tell nothing.
    let named = reasons.has("NETFILTER_DROP");
    let (reasons, reason_arg) = if named { (reasons, reason_arg) } else { (Reasons::default(), None) };
    let symbols = if named { symbols } else { symbols.with_netfilter() };
    if !named && symbols.netfilter.is_none() {
        return Err(LayoutError::NoReason);
    }
    let givers = symbols.unanswered;
    let dropper = symbols.netfilter.map(|(start, _)| start);
    let mut fields = Fields { btf, wrong: Vec::new() };
    // Two words: what is read of it are numbers to the verifier, and no pointers.
    let cast = btf.function_id("bpf_rdonly_cast").zip(btf.struct_id("timespec64"));
    let layout = Layout {
        cast_words: cast.map_or(ABSENT, |(_, words)| words),
        reason_arg: reason_arg.and_then(|position| u32::try_from(position).ok()).unwrap_or(ABSENT),
        reason_netfilter: reasons.value("NETFILTER_DROP"),
        reason_not_specified: reasons.value("NOT_SPECIFIED"),
        reason_cgroup_egress: reasons.value("BPF_CGROUP_EGRESS"),
        reason_tc_egress: reasons.value("TC_EGRESS"),

        reason_tc_ingress: reasons.value("TC_INGRESS"),
        reason_qdisc_drop: reasons.value("QDISC_DROP"),
        reason_qdisc_overlimit: reasons.value("QDISC_OVERLIMIT"),
        reason_qdisc_congested: reasons.value("QDISC_CONGESTED"),
        reason_neigh_failed: reasons.value("NEIGH_FAILED"),
        neigh_invalidate_low: low(givers[0].map(|(start, _)| start)),
        neigh_invalidate_high: high(givers[0].map(|(start, _)| start)),
        neigh_invalidate_bytes: givers[0].map_or(ABSENT, |(_, bytes)| bytes),
        arp_error_low: low(givers[1].map(|(start, _)| start)),
        arp_error_high: high(givers[1].map(|(start, _)| start)),
        arp_error_bytes: givers[1].map_or(ABSENT, |(_, bytes)| bytes),
        ndisc_error_low: low(givers[2].map(|(start, _)| start)),
        ndisc_error_high: high(givers[2].map(|(start, _)| start)),
        ndisc_error_bytes: givers[2].map_or(ABSENT, |(_, bytes)| bytes),
        netfilter_low: low(dropper),
        netfilter_high: high(dropper),
        netfilter_bytes: symbols.netfilter.map_or(ABSENT, |(_, bytes)| bytes),
        makes_cookies: if btf.has_function("bpf_get_socket_ptr_cookie") { 1 } else { ABSENT },
        tells_netns_cookies: if netns_cookie().is_ok() { ABSENT } else { 1 },
        host_netns,
        ip_forward_low: low(symbols.ip_forward),
        ip_forward_high: high(symbols.ip_forward),
        ip6_forward_low: low(symbols.ip6_forward),
        ip6_forward_high: high(symbols.ip6_forward),

        skb_sk: fields.need("sk_buff", "sk", 8),
        skb_dev: fields.need("sk_buff", "dev", 8),
        skb_len: fields.need("sk_buff", "len", 4),
        skb_data_len: fields.need("sk_buff", "data_len", 4),
        skb_head: fields.need("sk_buff", "head", 8),
        skb_data: fields.need("sk_buff", "data", 8),
        skb_network_header: fields.need("sk_buff", "network_header", 2),
        skb_transport_header: fields.need("sk_buff", "transport_header", 2),
        skb_mac_header: fields.need("sk_buff", "mac_header", 2),
        skb_protocol: fields.need("sk_buff", "protocol", 2),
        skb_iif: fields.need("sk_buff", "skb_iif", 4),
        skb_refdst: fields.need("sk_buff", "_skb_refdst", 8),

        skb_cb: fields.place("sk_buff", "cb"),
        skb_nfct: fields.want("sk_buff", "_nfct", 8),
        conn_original: fields.conn_original(),

        dst_input: fields.want("dst_entry", "input", 8),
        rt_gateway_family: fields.want("rtable", "rt_gw_family", 1),
        rt_gateway: fields.want("rtable", "rt_gw4", 4),
        rt6_gateway: fields.want("rt6_info", "rt6i_gateway", 16),
        dst_dev: fields.need("dst_entry", "dev", 8),
        dst_flags: fields.need("dst_entry", "flags", 2),

        dev_net: fields.need("net_device", "nd_net.net", 8),
        dev_ifindex: fields.need("net_device", "ifindex", 4),
        dev_name: fields.need("net_device", "name", 16),

        dev_link_ops: fields.want("net_device", "rtnl_link_ops", 8),
        link_ops_kind: fields.want("rtnl_link_ops", "kind", 8),
        dev_private: fields.dev_private(),

        net_inum: fields.need("net", "ns.inum", 4),
        net_user_ns: fields.want("net", "user_ns", 8),
        net_cookie: fields.want("net", "net_cookie", 8),
        net_syn_retries: fields.want("net", "ipv4.sysctl_tcp_syn_retries", 1),
        net_syn_linear: fields.want("net", "ipv4.sysctl_tcp_syn_linear_timeouts", 1),

        sk_net: fields.need("sock", "__sk_common.skc_net.net", 8),
        sk_cookie: fields.need("sock", "__sk_common.skc_cookie", 8),
        sk_state: fields.need("sock", "__sk_common.skc_state", 1),
        sk_family: fields.need("sock", "__sk_common.skc_family", 2),
        sk_flags: fields.want("sock", "__sk_common.skc_flags", 8),
        sk_flag_dead: btf
            .enum_value("sock_flags", "SOCK_DEAD")
            .and_then(|value| u32::try_from(value).ok())
            .unwrap_or(ABSENT),
        sk_bound: fields.want("sock", "__sk_common.skc_bound_dev_if", 4),
        sk_num: fields.want("sock", "__sk_common.skc_num", 2),
        sk_dport: fields.want("sock", "__sk_common.skc_dport", 2),
        sk_local_v4: fields.want("sock", "__sk_common.skc_rcv_saddr", 4),
        sk_remote_v4: fields.want("sock", "__sk_common.skc_daddr", 4),
        sk_local_v6: fields.want("sock", "__sk_common.skc_v6_rcv_saddr", 16),
        sk_remote_v6: fields.want("sock", "__sk_common.skc_v6_daddr", 16),
        sk_shutdown: fields.want("sock", "sk_shutdown", 1),
        sk_protocol: fields.want("sock", "sk_protocol", 2),
        sk_type: fields.want("sock", "sk_type", 2),
        sk_kernel_bit: fields.bit("sock", "sk_kern_sock"),
        sk_socket: fields.need("sock", "sk_socket", 8),
        sk_uid: fields.need("sock", "sk_uid", 4),
        sk_mark: fields.want("sock", "sk_mark", 4),
        sk_lock_owned: fields.want("sock", "sk_lock.owned", 4),
        connection_sent_again: fields.want("inet_connection_sock", "icsk_retransmits", 1),
        connection_syn_retries: fields.want("inet_connection_sock", "icsk_syn_retries", 1),
        tcp_is_mptcp: fields.want("tcp_sock", "is_mptcp", 1),
        tcp_segments: fields.want("tcp_sock", "segs_out", 4),
        tcp_first_sent: fields.want("tcp_sock", "retrans_stamp", 4),
        tcp_retransmitted: fields.want("tcp_sock", "retrans_out", 4),
        sk_cgroup: fields.want("sock", "sk_cgrp_data.cgroup", 8),

        socket_sk: fields.need("socket", "sk", 8),
        socket_inode: fields.socket_inode(),

        socket_file: fields.want("socket", "file", 8),

        cgroup_root: fields.want("cgroup", "root", 8),
        root_hierarchy: fields.want("cgroup_root", "hierarchy_id", 4),
        cgroup_kn: fields.want("cgroup", "kn", 8),
        kn_id: fields.want("kernfs_node", "id", 8),

        task_leader: fields.need("task_struct", "group_leader", 8),
        task_parent: fields.need("task_struct", "real_parent", 8),
        task_tgid: fields.need("task_struct", "tgid", 4),
        task_pid: fields.need("task_struct", "pid", 4),
        task_start: fields.either("task_struct", ["start_boottime", "real_start_time"], 8),
        task_cred: fields.need("task_struct", "cred", 8),
        task_execs: fields.place("task_struct", "self_exec_id"),
        task_comm: fields.need("task_struct", "comm", 16),
        task_cgroups: fields.want("task_struct", "cgroups", 8),
        task_mm: fields.want("task_struct", "mm", 8),
        task_nsproxy: fields.want("task_struct", "nsproxy", 8),
        nsproxy_net: fields.want("nsproxy", "net_ns", 8),
        task_signal: fields.want("task_struct", "signal", 8),
        task_thread_pid: fields.want("task_struct", "thread_pid", 8),
        task_files: fields.want("task_struct", "files", 8),
        files_table: fields.want("files_struct", "fdt", 8),
        table_size: fields.want("fdtable", "max_fds", 4),
        table_files: fields.want("fdtable", "fd", 8),
        file_private: fields.want("file", "private_data", 8),
        file_cred: fields.want("file", "f_cred", 8),
        signal_live: fields.want("signal_struct", "live", 4),
        mm_arg_start: fields.want("mm_struct", "arg_start", 8),
        mm_arg_end: fields.want("mm_struct", "arg_end", 8),
        pid_level: fields.want("pid", "level", 4),
        pid_numbers: fields.place("pid", "numbers"),
        upid_bytes: btf.struct_bytes("upid").unwrap_or(ABSENT),
        upid_nr: fields.want("upid", "nr", 4),
        upid_ns: fields.want("upid", "ns", 8),
        pid_ns_inum: fields.want("pid_namespace", "ns.inum", 4),
        user_ns_inum: fields.want("user_namespace", "ns.inum", 4),
        user_ns_parent: fields.want("user_namespace", "parent", 8),
        user_ns_level: fields.want("user_namespace", "level", 4),
        user_ns_owner: fields.want("user_namespace", "owner", 4),
        bprm_file: fields.want("linux_binprm", "file", 8),
        bprm_filename: fields.want("linux_binprm", "filename", 8),
        file_dentry: fields.want("file", "f_path.dentry", 8),
        file_mount: fields.want("file", "f_path.mnt", 8),
        dentry_parent: fields.want("dentry", "d_parent", 8),
        dentry_name: fields.want("dentry", "d_name.name", 8),
        vfsmount_root: fields.want("vfsmount", "mnt_root", 8),
        mount_vfsmount: fields.place("mount", "mnt"),
        mount_parent: fields.want("mount", "mnt_parent", 8),
        mount_mountpoint: fields.want("mount", "mnt_mountpoint", 8),
        css_set_cgroup: fields.want("css_set", "dfl_cgrp", 8),
        cred_uid: fields.need("cred", "uid", 4),
        cred_gid: fields.need("cred", "gid", 4),
        cred_euid: fields.need("cred", "euid", 4),
        cred_fsuid: fields.want("cred", "fsuid", 4),
        cred_fsgid: fields.want("cred", "fsgid", 4),
        cred_user_ns: fields.want("cred", "user_ns", 8),
    };
    if fields.wrong.is_empty() {
        Ok(Kernel {
            layout,
            cast: cast.map(|(function, _)| function),
            grows_maps: btf.has_function("bpf_mem_alloc_init"),
            reasons,
            forwarding: symbols.ip_forward.is_some(),
        })
    } else {
        Err(LayoutError::Fields(fields.wrong.join(", ")))
    }
}

/// Looks fields up and remembers what is wrong, so that one message names everything.
struct Fields<'a> {
    btf: &'a Btf,
    wrong: Vec<String>,
}

impl Fields<'_> {
    /// Byte offset of a field that the program reads with this width, or [`ABSENT`].
    fn want(&self, name: &str, path: &str, bytes: u32) -> u32 {
        match self.btf.member(name, path) {
            Some(member) if member.bits == bytes * 8 && member.bit_offset.is_multiple_of(8) => member.bit_offset / 8,
            _ => ABSENT,
        }
    }

    /// Place in bits of a field of one bit, or [`ABSENT`].
    fn bit(&self, name: &str, path: &str) -> u32 {
        self.btf.member(name, path).filter(|member| member.bits == 1).map_or(ABSENT, |member| member.bit_offset)
    }

    /// Byte offset of a field of any width, or [`ABSENT`].
    fn place(&self, name: &str, path: &str) -> u32 {
        self.btf.member(name, path).map_or(ABSENT, |member| member.bit_offset / 8)
    }

    /// The original tuple inside a connection; its own parts lie where the program expects them, or it is not read.
    fn conn_original(&self) -> u32 {
        let connection = self.place("nf_conn", "tuplehash");
        let tuple = self.place("nf_conntrack_tuple_hash", "tuple");
        let parts =
            [("src.u3", 0), ("src.u", 16), ("src.l3num", 18), ("dst.u3", 20), ("dst.u", 36), ("dst.protonum", 38)];
        let as_expected = parts.iter().all(|(path, offset)| self.place("nf_conntrack_tuple", path) == *offset);
        if connection == ABSENT || tuple == ABSENT || !as_expected { ABSENT } else { connection + tuple }
    }

    /// Private data behind a device: a member since 6.10, before that behind the struct, aligned.
    fn dev_private(&self) -> u32 {
        const ALIGN: u32 = 32;
        match (self.place("net_device", "priv"), self.btf.struct_bytes("net_device")) {
            (ABSENT, Some(bytes)) => bytes.next_multiple_of(ALIGN),
            (offset, _) => offset,
        }
    }

    fn need(&mut self, name: &str, path: &str, bytes: u32) -> u32 {
        self.either(name, [path], bytes)
    }

    fn either<const N: usize>(&mut self, name: &str, paths: [&str; N], bytes: u32) -> u32 {
        let found = paths.iter().map(|path| self.want(name, path, bytes)).find(|offset| *offset != ABSENT);
        found.unwrap_or_else(|| {
            self.wrong.push(format!("`{name}.{}`", paths[0]));
            ABSENT
        })
    }

    /// A `struct socket` is embedded in `struct socket_alloc`, beside its inode.
    fn socket_inode(&mut self) -> u32 {
        let socket = self.btf.member("socket_alloc", "socket").map(|member| member.bit_offset / 8);
        let inode = self.btf.member("socket_alloc", "vfs_inode").map(|member| member.bit_offset / 8);
        let number = self.need("inode", "i_ino", 8);
        match (socket, inode) {
            (Some(socket), Some(inode)) if number != ABSENT => inode - socket + number,
            _ => {
                self.wrong.push("`socket_alloc`".to_owned());
                ABSENT
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_resolves() {
        let Ok(btf) = Btf::of_kernel() else { return };
        let kernel = match resolve(&btf, Symbols::default()) {
            Ok(kernel) => kernel,
            Err(LayoutError::NoReason) => return,
            Err(error) => panic!("{error}"),
        };
        if kernel.layout.reason_netfilter != ABSENT {
            assert_eq!(kernel.reasons.name(kernel.layout.reason_netfilter), Some("NETFILTER_DROP"));
        }
        assert_eq!(kernel.reasons.name(u32::MAX), None);
    }
}
