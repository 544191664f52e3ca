//! The table of hooks: what each is for, the ways it can be attached, and what is lost without it.

use observer_ebpf::abi::program;

/// A way to attach a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Tracepoint with typed arguments (`tp_btf`).
    BtfTracepoint,
    /// Raw tracepoint, arguments as plain numbers.
    RawTracepoint,
    /// Program on the root of the unified cgroup hierarchy, as a link.
    Cgroup,
    /// Program at a connection's events on the root of the unified hierarchy, as a link.
    SockOps,
    /// Kernel probe on a function.
    Kprobe(&'static str),
    /// Iterator, run once at start.
    Iterator,
    /// The same once `sock_diag` has listed all sockets, which gives each a cookie.
    IteratorWithDiag,
}

impl Attachment {
    /// Name as operators of BPF know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::BtfTracepoint => "tp_btf",
            Self::RawTracepoint => "raw_tp",
            Self::Cgroup => "cgroup",
            Self::SockOps => "sock_ops",
            Self::Kprobe(_) => "kprobe",
            Self::Iterator => "iter",
            Self::IteratorWithDiag => "iter+diag",
        }
    }
}

/// One hook of the kernel that observer wants.
#[derive(Debug)]
pub struct Hook {
    /// Name in the answer of `doctor`.
    pub name: &'static str,
    /// Kernel symbol or attach point.
    pub symbol: &'static str,
    /// Programs that can serve it, best first, each with its way and the first Linux that takes it.
    pub programs: &'static [(&'static str, Attachment, &'static str)],
    /// Without a required hook nothing is attached at all.
    pub required: bool,
    /// What it is for.
    pub purpose: &'static str,
    /// What is lost without it.
    pub without: &'static str,
}

/// Name of the hook by which a connection's socket is bound.
pub(super) const CONNECT: &str = "connect";

/// Names of the hooks by which processes and what they run are known.
pub(super) const PROCESSES: [&str; 2] = ["fork", "exec"];

/// All hooks, in the order in which they are attached: processes are known and owners
/// bound before the first drop can be seen.
pub static HOOKS: [Hook; 10] = [
    Hook {
        name: "fork",
        symbol: "sched_process_fork",
        programs: &[(program::FORK, Attachment::BtfTracepoint, "5.5")],
        required: false,
        purpose: "knows every process's parents",
        without: "parents of processes that ended are not known",
    },
    Hook {
        name: "exec",
        symbol: "sched_process_exec",
        programs: &[(program::EXEC, Attachment::BtfTracepoint, "5.5")],
        required: false,
        purpose: "knows every process's executable and arguments",
        without: "processes that live some milliseconds have neither executable nor arguments",
    },
    Hook {
        name: "exit",
        symbol: "sched_process_exit",
        programs: &[(program::EXIT, Attachment::BtfTracepoint, "5.5")],
        required: false,
        purpose: "forgets processes some minutes after their end",
        without: "memory for processes that ended is given back late",
    },
    Hook {
        name: "cgroups",
        symbol: "cgroup_mkdir",
        programs: &[(program::MKDIR, Attachment::BtfTracepoint, "5.5")],
        required: false,
        purpose: "knows the names of cgroups that are gone when somebody asks",
        without: "short-lived units and containers stay without a name",
    },
    Hook {
        name: CONNECT,
        symbol: "inet_sock_set_state",
        programs: &[(program::STATE, Attachment::BtfTracepoint, "5.5")],
        required: false,
        purpose: "binds a connecting socket to its process",
        without: "a connection is named by the process that created its socket",
    },
    Hook {
        name: "create",
        symbol: "cgroup/sock_create",
        programs: &[(program::CREATE, Attachment::Cgroup, "5.7")],
        required: false,
        purpose: "binds UDP, raw and ping sockets to their process",
        without: "short-lived senders of UDP and ICMP stay without a name",
    },
    Hook {
        name: "close",
        symbol: "cgroup/sock_release",
        programs: &[(program::RELEASE, Attachment::Cgroup, "5.9")],
        required: false,
        purpose: "forgets closed sockets",
        without: "owners of closed sockets fill the owner map on a busy host",
    },
    Hook {
        name: "flows",
        symbol: "cgroup/sock_ops",
        programs: &[
            (program::FLOW, Attachment::SockOps, "5.7"),
            (program::FLOW_KPROBE, Attachment::Kprobe("tcp_connect"), "4.1"),
        ],
        required: false,
        purpose: "knows the connections of containers, which the host forwards without their socket, and whose answers are expected",
        without: "a forwarded connection is named only while its socket is open, and answers that are dropped before connection tracking are not seen",
    },
    Hook {
        name: "seed",
        symbol: "iter/task_file",
        programs: &[
            (program::SEED, Attachment::Iterator, "5.12"),
            (program::SEED_WITH_DIAG, Attachment::IteratorWithDiag, "5.12"),
        ],
        required: false,
        purpose: "finds the owners of sockets that are older than observer, and what hangs already",
        without: "a socket older than observer is looked up only when it is blocked, and what hangs already is not told",
    },
    Hook {
        name: "drops",
        symbol: "kfree_skb",
        programs: &[
            (program::DROP_BTF, Attachment::BtfTracepoint, "5.5"),
            (program::DROP_RAW, Attachment::RawTracepoint, "4.17"),
        ],
        required: true,
        purpose: "sees every packet that is dropped, with the reason",
        without: "nothing can be observed",
    },
];

/// What became of a hook.
#[derive(Debug)]
pub struct HookState {
    /// Which one.
    pub hook: &'static Hook,
    /// The way it is attached, or why not (every way's error).
    pub result: Result<Attachment, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of `docs/kernels.md` is this one.
    #[test]
    fn the_documented_table_is_this_one() {
        let documented = include_str!("../../../docs/kernels.md");
        for hook in &HOOKS {
            let ways: Vec<String> = hook
                .programs
                .iter()
                .map(|(_, way, since)| match way {
                    Attachment::Kprobe(function) => format!("kprobe on `{function}` ({since})"),
                    way => format!("{} ({since})", way.name()),
                })
                .collect();
            let need = if hook.required { "required" } else { "" };
            let row = format!(
                "| {} | `{}` | {} | {} | {} | {need} |",
                hook.name,
                hook.symbol,
                ways.join(", else "),
                hook.purpose,
                hook.without
            );
            assert!(documented.lines().any(|line| line == row), "docs/kernels.md lacks this row:\n{row}");
        }
    }

    #[test]
    fn program_names_are_not_cut_by_the_kernel() {
        for (name, ..) in HOOKS.iter().flat_map(|hook| hook.programs) {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
