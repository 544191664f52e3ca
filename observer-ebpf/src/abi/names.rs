//! Names of programs and maps inside the BPF object, in one place for both halves.

/// Programs, as `<stem>_<kernel symbol>`, at most 15 bytes (the kernel cuts longer ones).
pub mod program {
    /// BTF tracepoint `kfree_skb`: a packet is freed for a reason.
    pub const DROP_BTF: &str = "drop_kfree_skb";
    /// The same as a raw tracepoint, for kernels that refuse the BTF one.
    pub const DROP_RAW: &str = "rdrop_kfree_skb";
    /// Raw tracepoint `kfree_skb` again, which does nothing: the stack lies deeper where a tracepoint has several programs.
    pub const INNER: &str = "inner_kfree_skb";
    /// Kprobes on functions that give a rule's verdict, and on their return.
    pub const VERDICT: [&str; 2] = ["verdict_begin", "verdict_end"];
    /// Kprobe on `__udp_enqueue_schedule_skb`: a datagram has come in.
    pub const ANSWERED: &str = "udp_answered";
    /// BTF tracepoint `inet_sock_set_state`: a connect begins, a connection ends.
    pub const STATE: &str = "own_sock_state";
    /// cgroup program at socket creation.
    pub const CREATE: &str = "own_sock_create";
    /// cgroup program at socket release.
    pub const RELEASE: &str = "own_sock_close";
    /// BTF tracepoint `sched_process_fork`.
    pub const FORK: &str = "proc_fork";
    /// BTF tracepoint `sched_process_exec`.
    pub const EXEC: &str = "proc_exec";
    /// BTF tracepoint `sched_process_exit`.
    pub const EXIT: &str = "proc_exit";
    /// BTF tracepoint `cgroup_mkdir`.
    pub const MKDIR: &str = "proc_mkdir";
    /// cgroup program at a connection's events: TCP flows of other namespaces.
    pub const FLOW: &str = "flow_sock_ops";
    /// Kprobe on `tcp_connect`: the same where the hierarchy takes no program.
    pub const FLOW_KPROBE: &str = "flow_connect";
    /// Iterator over every open file: owners of sockets older than observer.
    pub const SEED: &str = "seed_task_file";
    /// See [`SEED`]; where sockets must have been given cookies before.
    pub const SEED_WITH_DIAG: &str = "seed_with_diag";
}

/// Maps.
pub mod map {
    /// Hash whose keys, each an [`AwaitedKey`](super::AwaitedKey), are the destinations whose connections are reported.
    pub const AWAITED: &str = "AWAITED";
    /// Array whose only slot is not 0 while there are any.
    pub const AWAITING: &str = "AWAITING";
    /// Ring buffer of [`DropRecord`](super::DropRecord).
    pub const EVENTS: &str = "EVENTS";
    /// Array whose only slot is not 0 once connects are observed.
    pub const CONNECTS: &str = "CONNECTS";
    /// Hash from process id to [`Member`](super::Member), while process trees are asked for.
    pub const TREE: &str = "TREE";
    /// Frozen global with the number of keys for which a generation has room.
    pub const KEY_ROOM: &str = "KEY_ROOM";
    /// Frozen global with the [`KernelFilter`](super::KernelFilter).
    pub const FILTER: &str = "FILTER";
    /// Hashes from [`DropKey`](super::DropKey) to [`Counted`](super::Counted) for each CPU: one for even generations, one
    /// for odd ones.
    pub const KEYS: [&str; 2] = ["KEYS_EVEN", "KEYS_ODD"];
    /// The same for coarser keys, when those are full.
    pub const COARSE: [&str; 2] = ["COARSE_EVEN", "COARSE_ODD"];
    /// Array with one `u32`: the generation in which is counted.
    pub const EPOCH: &str = "EPOCH";
    /// Ring buffer of [`ProcessRecord`](super::ProcessRecord), each with its data behind it.
    pub const PROCESSES: &str = "PROCESSES";
    /// Hash from socket cookie to [`Owner`](super::Owner).
    pub const OWNERS: &str = "OWNERS";
    /// Array with one [`RuleConfig`](super::RuleConfig).
    pub const RULES: &str = "RULES";
    /// Array of [`RuleProof`](super::RuleProof), by destination port.
    pub const PROOFS: &str = "PROOFS";
    /// Array with one number: the last distance of the stack pointer between a verdict's beginning and end.
    pub const DISTANCE: &str = "DISTANCE";
    /// Hash from socket cookie to the cookie of its network namespace, of sockets that were made a moment ago.
    pub const NETNS_COOKIES: &str = "NETNS_COOKIES";
    /// Hash whose keys are the network namespaces of observer's own.
    pub const OWN: &str = "OWN";
    /// Per-CPU array of monotonic counters, indexed by [`Counter`](super::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// Frozen global with the running kernel's [`Layout`](super::Layout).
    pub const LAYOUT: &str = "LAYOUT";
}
