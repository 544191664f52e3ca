//! observer's program as the confined process that reads rules: what it can be asked.

use std::process::ExitCode;

use crate::{
    confinement::reader::{self, Answering, NOTHING},
    firewall::{legacy, nft},
    sandbox::copy,
};

/// All questions.
const QUESTIONS: [&dyn Answering; 7] =
    [&NOTHING, &nft::CHAINS, &nft::RULESET, &legacy::TABLES, &copy::LISTED, &copy::IPSETS, &copy::SURROUNDINGS];

/// Answers one of them, where this process was started for that; `None` where it is any other.
pub fn main() -> Option<ExitCode> {
    reader::main(&QUESTIONS)
}
