//! Whatever a configuration says, it is taken or refused, never both and never with a crash: every complaint has its place and its
//! remedy, and what is taken can be shown and taken again.

use proptest::prelude::*;

use crate::config::{Folder, SMALL};

/// Words that stand in configurations, and what must not.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(vec![
            "shop",
            "path",
            "preset",
            "read",
            "type",
            "file",
            "kafka",
            "amqp",
            "stdout",
            "start",
            "\"first\"",
            "\"30s\"",
            "\"64MiB\"",
            "\"-1s\"",
            "\"99999999999999999999h\"",
            "\"1e9GiB\"",
            "true",
            "-1",
            "0",
            "9223372036854775807",
            "1.5",
            "nan",
            "1979-05-27",
            "[]",
            "{}",
            "\"\"",
            "\"{header.}\"",
            "\"{typ}\"",
            "\"../x\"",
            "\"\\u0000\"",
            "\"\\u202e\"",
            "attempts_max",
            "on_reject",
            "window_events",
            "state",
            "\"inside\"",
            "bootstrap_servers",
            "uri_file",
            "projections",
            "jobs",
            "daemon",
            "admin",
            "\"0.0.0.0:1\"",
            "control",
            "\"unix:\"",
            "'''",
            "\u{202e}",
        ])
        .prop_map(str::to_owned),
        "[a-zA-Z_.\"=\\[\\]{}#\\\\ \\PC]{0,12}",
    ]
}

/// The small configuration with something done to some of its lines.
fn configuration() -> impl Strategy<Value = String> {
    let change = (0..14_usize, 0..6_u8, word(), word());
    proptest::collection::vec(change, 1..5).prop_map(|changes| {
        let mut lines: Vec<String> = SMALL.lines().map(str::to_owned).collect();
        for (at, how, one, other) in changes {
            let at = at.min(lines.len() - 1);
            match how {
                0 => drop(lines.remove(at)),
                1 => lines.insert(at, format!("{one} = {other}")),
                2 => lines[at] = format!("{} = {other}", lines[at].split('=').next().unwrap().trim()),
                3 => lines.insert(at, format!("[{one}.{other}]")),
                4 => lines[at].push_str(&one),
                _ => lines.push(format!("[relays.x]\nsource = {one}\nsink = {other}")),
            }
            if lines.is_empty() {
                lines.push(String::new());
            }
        }
        lines.join("\n")
    })
}

/// `error: key  (place)`, why, and `fix:`.
fn is_told(block: &str) -> bool {
    let lines: Vec<&str> = block.lines().collect();
    let has_place = lines[0].starts_with("error: ") && lines[0].contains("outboxd.toml");
    has_place
        && lines.len() >= 3
        && lines[1].trim().len() > 10
        && lines[2..].iter().any(|line| line.trim_start().starts_with("fix: "))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_configuration_is_taken_whole_or_told_what_is_wrong(text in configuration()) {
        let folder = Folder::with(&text);
        match folder.load(&[]) {
            Err(error) => {
                let told = error.to_string();
                let (blocks, last) = told.rsplit_once("\n\n").expect("a closing line");
                prop_assert!(last.contains("nothing was started"), "{}", told);
                for block in blocks.split("\n\n") {
                    prop_assert!(is_told(block), "{}\n{}", block, text);
                }
            }
            Ok(loaded) => {
                let shown = loaded.shown.toml(false);
                let again = Folder::with(&shown);
                let taken = again.load(&[]);
                prop_assert!(taken.is_ok(), "{}\n{}", shown, taken.unwrap_err());
                let place = |text: String, folder: &Folder| text.replace(&folder.dir.path().display().to_string(), "");
                let shown_again = place(taken.unwrap().shown.toml(false), &again);
                prop_assert_eq!(shown_again, place(shown, &folder));
            }
        }
    }

    #[test]
    fn no_text_and_no_variable_crashes(text in "\\PC{0,200}", name in "[A-Z_]{0,20}", value in "\\PC{0,40}") {
        let _ = Folder::with(&text).load(&[(&format!("OUTBOXD_{name}"), &value)]);
        let _ = Folder::with(SMALL).load(&[(&format!("OUTBOXD_RELAYS__SHOP_TO_LINES__{name}"), &value)]);
    }
}
