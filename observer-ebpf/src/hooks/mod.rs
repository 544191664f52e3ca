//! One file a hook: the entry point, what the kernel promises there, and nothing else.

mod cgroup_mkdir;
mod cgroup_sock;
mod inet_sock_set_state;
mod kfree_skb;
mod sched_process;
mod sock_ops;
mod task_file;
mod tcp_connect;
mod udp_enqueue;
mod verdict;
