//! What a profile's page says of one front end (`check --steps`).

/// A port, and its protocol.
pub type Port = (u16, &'static str);

/// How ports are let out by a front end, on any host that it manages.
#[derive(Debug)]
pub struct Page {
    /// As it is typed.
    pub name: &'static str,
    /// What is said before the commands.
    pub ground: &'static str,
    /// Commands that let one port out.
    pub allow: fn(Port) -> Vec<String>,
    /// What takes that back.
    pub undo: fn(Port) -> Vec<String>,
    /// What is to be known afterwards.
    pub lasts: &'static str,
    /// What is to be known after it was taken back.
    pub undone: Option<&'static str>,
}
