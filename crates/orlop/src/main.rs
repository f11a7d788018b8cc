//! The binary: subcommands, wiring, signals. No logic.
fn main() {}
