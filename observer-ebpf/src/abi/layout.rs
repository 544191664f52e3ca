//! Where things are in the running kernel's structs, resolved by name from its BTF and handed over as a frozen global.

#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset or value that this kernel does not have. A read guarded by it is pruned by the verifier.
pub const ABSENT: u32 = u32::MAX;

/// What stands for the number of the kernel's `bpf_rdonly_cast` in a call, and is no helper's: the loader writes the kernel's own. A call of it
/// is guarded by [`Layout::cast_words`].
pub const CAST: u32 = 0x7f4b_5f01;

macro_rules! layout {
    ($( $(#[$doc:meta])* $field:ident ),* $(,)?) => {
        /// The running kernel's numbers: byte offsets unless the field says otherwise, [`ABSENT`] where it has none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "user", derive(FromBytes, Immutable, IntoBytes, KnownLayout))]
        #[repr(C)]
        pub struct Layout {
            $( $(#[$doc])* pub $field: u32, )*
        }

        impl Layout {
            /// A layout in which nothing is known.
            pub const EMPTY: Self = Self { $( $field: ABSENT, )* };
        }
    };
}

layout! {
    /// Number of the type as which any word of kernel memory is read directly (a struct of words); [`ABSENT`] where programs have no
    /// function for that.
    cast_words,
    /// Position of the reason among the arguments of the `kfree_skb` tracepoint, not an offset.
    reason_arg,
    /// Value of `SKB_DROP_REASON_NETFILTER_DROP`, not an offset.
    reason_netfilter,
    /// Value of `SKB_DROP_REASON_NOT_SPECIFIED`, not an offset.
    reason_not_specified,
    /// Value of `SKB_DROP_REASON_BPF_CGROUP_EGRESS`, not an offset.
    reason_cgroup_egress,
    /// Value of `SKB_DROP_REASON_TC_EGRESS`, not an offset.
    reason_tc_egress,

    /// Value of `SKB_DROP_REASON_TC_INGRESS`, not an offset.
    reason_tc_ingress,
    /// Values of the reasons of a full queue, not offsets.
    reason_qdisc_drop,
    /// See [`Self::reason_qdisc_drop`].
    reason_qdisc_overlimit,
    /// See [`Self::reason_qdisc_drop`].
    reason_qdisc_congested,
    /// Value of `SKB_DROP_REASON_NEIGH_FAILED`, not an offset.
    reason_neigh_failed,
    /// Low and high half of the address of `neigh_invalidate`, and its bytes, not offsets: there, or in the functions below, what has waited for a
    /// neighbour is freed.
    neigh_invalidate_low,
    /// See [`Self::neigh_invalidate_low`].
    neigh_invalidate_high,
    /// See [`Self::neigh_invalidate_low`].
    neigh_invalidate_bytes,
    /// The same of `arp_error_report`.
    arp_error_low,
    /// See [`Self::arp_error_low`].
    arp_error_high,
    /// See [`Self::arp_error_low`].
    arp_error_bytes,
    /// The same of `ndisc_error_report`.
    ndisc_error_low,
    /// See [`Self::ndisc_error_low`].
    ndisc_error_high,
    /// See [`Self::ndisc_error_low`].
    ndisc_error_bytes,
    /// Low and high half of the address of `nf_hook_slow`, and its bytes, where the kernel does not name what netfilter drops:
    /// who frees the packet then tells. Not offsets.
    netfilter_low,
    /// See [`Self::netfilter_low`].
    netfilter_high,
    /// See [`Self::netfilter_low`].
    netfilter_bytes,
    /// Not [`ABSENT`] where tracing programs can have a socket's cookie made (Linux 5.12); not an offset.
    makes_cookies,
    /// Not [`ABSENT`] where user space cannot ask for a network namespace's cookie (Linux 5.14), and the eBPF side can; not an
    /// offset.
    tells_netns_cookies,
    /// Inode number of the host's network namespace, not an offset.
    host_netns,
    /// Low and high half of the address of `ip_forward`, not offsets.
    ip_forward_low,
    /// See [`Self::ip_forward_low`].
    ip_forward_high,
    /// Low and high half of the address of `ip6_forward`, not offsets.
    ip6_forward_low,
    /// See [`Self::ip6_forward_low`].
    ip6_forward_high,

    /// `sk_buff.sk`
    skb_sk,
    /// `sk_buff.dev`
    skb_dev,
    /// `sk_buff.len`
    skb_len,
    /// `sk_buff.data_len`
    skb_data_len,
    /// `sk_buff.head`
    skb_head,
    /// `sk_buff.data`
    skb_data,
    /// `sk_buff.network_header`
    skb_network_header,
    /// `sk_buff.transport_header`
    skb_transport_header,
    /// `sk_buff.mac_header`
    skb_mac_header,
    /// `sk_buff.protocol`
    skb_protocol,
    /// `sk_buff.skb_iif`
    skb_iif,
    /// `sk_buff._skb_refdst`
    skb_refdst,

    /// `sk_buff.cb`
    skb_cb,
    /// `sk_buff._nfct`
    skb_nfct,
    /// `nf_conn.tuplehash[0].tuple`
    conn_original,

    /// `dst_entry.input`
    dst_input,
    /// `rtable.rt_gw_family`
    rt_gateway_family,
    /// `rtable.rt_gw4`
    rt_gateway,
    /// `rt6_info.rt6i_gateway`
    rt6_gateway,
    /// `dst_entry.dev`
    dst_dev,
    /// `dst_entry.flags`
    dst_flags,

    /// `net_device.nd_net.net`
    dev_net,
    /// `net_device.ifindex`
    dev_ifindex,
    /// `net_device.name`
    dev_name,

    /// `net_device.rtnl_link_ops`
    dev_link_ops,
    /// `rtnl_link_ops.kind`
    link_ops_kind,
    /// Private data behind a `net_device`, of a veth its peer.
    dev_private,

    /// `net.ns.inum`
    net_inum,
    /// `net.user_ns`
    net_user_ns,
    /// `net.net_cookie`
    net_cookie,
    /// `net.ipv4.sysctl_tcp_syn_retries`
    net_syn_retries,
    /// `net.ipv4.sysctl_tcp_syn_linear_timeouts`
    net_syn_linear,

    /// `sock.__sk_common.skc_net.net`
    sk_net,
    /// `sock.__sk_common.skc_cookie`
    sk_cookie,
    /// `sock.__sk_common.skc_state`
    sk_state,
    /// `sock.__sk_common.skc_family`
    sk_family,
    /// `sock.__sk_common.skc_flags`
    sk_flags,
    /// Number of the flag `SOCK_DEAD` in `skc_flags`, not an offset.
    sk_flag_dead,
    /// `sock.__sk_common.skc_bound_dev_if`
    sk_bound,
    /// `sock.__sk_common.skc_num`: the local port, host byte order
    sk_num,
    /// `sock.__sk_common.skc_dport`
    sk_dport,
    /// `sock.__sk_common.skc_rcv_saddr`
    sk_local_v4,
    /// `sock.__sk_common.skc_daddr`
    sk_remote_v4,
    /// `sock.__sk_common.skc_v6_rcv_saddr`
    sk_local_v6,
    /// `sock.__sk_common.skc_v6_daddr`
    sk_remote_v6,
    /// `sock.sk_shutdown`
    sk_shutdown,
    /// `sock.sk_protocol`
    sk_protocol,
    /// `sock.sk_type`
    sk_type,
    /// Place of the bit `sock.sk_kern_sock`, in bits.
    sk_kernel_bit,
    /// `sock.sk_socket`
    sk_socket,
    /// `sock.sk_uid`
    sk_uid,
    /// `sock.sk_mark`
    sk_mark,
    /// `sock.sk_lock.owned`
    sk_lock_owned,
    /// `inet_connection_sock.icsk_retransmits`
    connection_sent_again,
    /// `inet_connection_sock.icsk_syn_retries`
    connection_syn_retries,
    /// `tcp_sock.is_mptcp`
    tcp_is_mptcp,
    /// `tcp_sock.segs_out`
    tcp_segments,
    /// `tcp_sock.retrans_stamp`
    tcp_first_sent,
    /// `tcp_sock.retrans_out`
    tcp_retransmitted,
    /// `sock.sk_cgrp_data.cgroup`
    sk_cgroup,

    /// `socket.sk`
    socket_sk,
    /// Distance from a `struct socket` to its inode's number: `socket_alloc.vfs_inode` and `inode.i_ino`.
    socket_inode,

    /// `socket.file`
    socket_file,

    /// `cgroup.root`
    cgroup_root,
    /// `cgroup_root.hierarchy_id`
    root_hierarchy,
    /// `cgroup.kn`
    cgroup_kn,
    /// `kernfs_node.id`
    kn_id,

    /// `task_struct.group_leader`
    task_leader,
    /// `task_struct.real_parent`
    task_parent,
    /// `task_struct.tgid`
    task_tgid,
    /// `task_struct.pid`
    task_pid,
    /// `task_struct.start_boottime`
    task_start,
    /// `task_struct.cred`
    task_cred,
    /// `task_struct.self_exec_id`
    task_execs,
    /// `task_struct.comm`
    task_comm,
    /// `task_struct.cgroups`
    task_cgroups,
    /// `task_struct.mm`
    task_mm,
    /// `task_struct.nsproxy`
    task_nsproxy,
    /// `nsproxy.net_ns`
    nsproxy_net,
    /// `task_struct.signal`
    task_signal,
    /// `task_struct.thread_pid`
    task_thread_pid,
    /// `task_struct.files`
    task_files,
    /// `files_struct.fdt`
    files_table,
    /// `fdtable.max_fds`
    table_size,
    /// `fdtable.fd`
    table_files,
    /// `file.private_data`
    file_private,
    /// `file.f_cred`
    file_cred,
    /// `signal_struct.live`
    signal_live,
    /// `mm_struct.arg_start`
    mm_arg_start,
    /// `mm_struct.arg_end`
    mm_arg_end,
    /// `pid.level`
    pid_level,
    /// `pid.numbers`
    pid_numbers,
    /// Size of `struct upid`, not an offset.
    upid_bytes,
    /// `upid.nr`
    upid_nr,
    /// `upid.ns`
    upid_ns,
    /// `pid_namespace.ns.inum`
    pid_ns_inum,
    /// `user_namespace.ns.inum`
    user_ns_inum,
    /// `user_namespace.parent`
    user_ns_parent,
    /// `user_namespace.level`
    user_ns_level,
    /// `user_namespace.owner`
    user_ns_owner,
    /// `linux_binprm.file`
    bprm_file,
    /// `linux_binprm.filename`
    bprm_filename,
    /// `file.f_path.dentry`
    file_dentry,
    /// `file.f_path.mnt`
    file_mount,
    /// `dentry.d_parent`
    dentry_parent,
    /// `dentry.d_name.name`
    dentry_name,
    /// `vfsmount.mnt_root`
    vfsmount_root,
    /// `mount.mnt`: the `struct vfsmount` inside it
    mount_vfsmount,
    /// `mount.mnt_parent`
    mount_parent,
    /// `mount.mnt_mountpoint`
    mount_mountpoint,
    /// `css_set.dfl_cgrp`
    css_set_cgroup,
    /// `cred.uid`
    cred_uid,
    /// `cred.gid`
    cred_gid,
    /// `cred.euid`
    cred_euid,
    /// `cred.fsuid`
    cred_fsuid,
    /// `cred.fsgid`
    cred_fsgid,
    /// `cred.user_ns`
    cred_user_ns,
}
