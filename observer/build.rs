//! Finds the BPF object that `cargo xtask build` made, so that it can be embedded in the program.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=OBSERVER_BPF_OBJECT");
    let workspace = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets this")).join("..");
    let object = env::var_os("OBSERVER_BPF_OBJECT")
        .map_or_else(|| workspace.join("target/bpf/bpfel-unknown-none/bpf/observer-bpf"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    match object.canonicalize() {
        Ok(object) => println!("cargo::rustc-env=OBSERVER_BPF_OBJECT={}", object.display()),
        Err(_) => {
            println!("cargo::error=the BPF object is not built yet: run `cargo xtask build` (it builds both halves)");
        }
    }
}
