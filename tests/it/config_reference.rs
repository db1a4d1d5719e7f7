//! The reference says what the program does: docs/CONFIG.md is generated, and the defaults in it are the ones in force.

use outboxd::config::reference;

use crate::config::{Folder, SMALL};

/// A build without a sink leaves its keys out.
#[cfg(all(feature = "kafka", feature = "amqp", feature = "http"))]
#[test]
fn the_document_is_what_the_program_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/CONFIG.md");
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == reference::markdown(),
        "docs/CONFIG.md is out of date: run `outboxd config reference > docs/CONFIG.md`"
    );
}

#[test]
fn the_defaults_of_the_reference_are_those_in_force() {
    let folder = Folder::with(SMALL);
    let plain = folder.load(&[]).unwrap();
    // `config show` prints the reference's defaults: said aloud, they must change nothing.
    folder.write("outboxd.toml", &plain.shown.toml(false));
    assert_eq!(format!("{:?}", folder.load(&[]).unwrap().config), format!("{:?}", plain.config));
}
