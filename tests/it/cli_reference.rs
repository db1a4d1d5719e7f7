//! docs/CLI.md is what the program says of itself.

use outboxd::cli::reference;

#[test]
fn the_document_of_commands_is_what_the_program_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CLI.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == reference::markdown(),
        "docs/CLI.md is out of date: run `outboxd config reference --commands > docs/CLI.md`"
    );
}
