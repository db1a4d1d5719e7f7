//! What documents tell to type can be typed, and what they name is there.

use std::collections::BTreeSet;
use std::fs;

use clap::{CommandFactory, Parser};
use outboxd::cli::Cli;

use super::{place, read, unknown_metrics};

/// Each with its text.
fn documents() -> Vec<(String, String)> {
    let mut names: Vec<String> = ["README.md", "CHANGELOG.md", "RELIABILITY.md"].map(str::to_owned).into();
    for entry in fs::read_dir(place("docs")).unwrap() {
        names.push(format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    assert!(names.len() > 20, "the documents were found");
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

/// What stands between backticks on a line, outside of blocks.
fn spans(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    prose.flat_map(str::lines).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The commands in a line of shell: their words, without comments, and without where they read from and write to.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = vec![Vec::new()];
    let mut rest = line.trim().trim_start_matches("$ ").chars().peekable();
    let mut is_target = false;
    while let Some(&first) = rest.peek() {
        match first {
            '#' => break,
            '|' | '&' | ';' | '(' | ')' => {
                found.push(Vec::new());
                rest.next();
            }
            '<' | '>' => {
                let command = found.last_mut().unwrap();
                if command.last().is_some_and(|word: &String| word == "2") {
                    command.pop();
                }
                is_target = true;
                rest.next();
            }
            ' ' => {
                rest.next();
            }
            _ => {
                let word = word(&mut rest);
                if !std::mem::take(&mut is_target) {
                    found.last_mut().unwrap().push(word);
                }
            }
        }
    }
    found.retain(|command| !command.is_empty());
    found
}

fn word(rest: &mut std::iter::Peekable<std::str::Chars>) -> String {
    let mut word = String::new();
    let mut quote = None;
    while let Some(&c) = rest.peek() {
        match quote {
            None if " |&;()<>".contains(c) => break,
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => word.push(c),
        }
        rest.next();
    }
    word
}

#[test]
fn every_command_line_in_a_document_is_one_that_the_program_takes() {
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (name, text) in documents() {
        let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
        let lines =
            blocks.filter(|(language, _)| ["sh", "console"].contains(language)).flat_map(|(_, code)| code.lines());
        for command in lines.flat_map(commands).filter(|command| command[0] == "outboxd") {
            tried += 1;
            if let Err(error) = Cli::try_parse_from(&command) {
                wrong.push(format!("{name}: {}: {error}", command.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 60, "{tried} were tried");
}

/// What of `outboxd ...` in a sentence is no command and no flag. Such a one may be part of a command, with words in capitals for what is to be filled in, and `a|b`.
fn not_known(span: &str) -> Option<String> {
    let mut program = Cli::command();
    program.build();
    let mut at = &program;
    for word in span.split_whitespace().skip(1).map(|word| word.trim_matches(['[', ']'])) {
        if let Some(flag) = word.strip_prefix("--") {
            let flag = flag.split('=').next().unwrap();
            let is_there = at.get_arguments().any(|argument| argument.get_long() == Some(flag));
            if !is_there {
                return Some(word.to_owned());
            }
        } else if at.has_subcommands() {
            for name in word.split('|') {
                if at.find_subcommand(name).is_none() {
                    return Some(name.to_owned());
                }
            }
            at = at.find_subcommand(word.split('|').next().unwrap()).unwrap();
        }
    }
    None
}

#[test]
fn every_command_in_a_sentence_is_there() {
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (name, text) in documents() {
        for span in spans(&text).into_iter().filter(|span| span.starts_with("outboxd ")) {
            tried += 1;
            wrong.extend(not_known(span).map(|word| format!("{name}: `{span}`: {word}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried > 150, "{tried} were tried");
}

#[test]
fn a_command_that_is_not_there_is_noticed() {
    let told = "$ echo '{\"a\": 1} | x' | outboxd events append shop --each > told 2> log &   # or `outboxd no`";
    assert_eq!(commands(told), [vec!["echo", "{\"a\": 1} | x"], vec!["outboxd", "events", "append", "shop", "--each"]]);
    assert!(Cli::try_parse_from(["outboxd", "events", "append", "shop", "--each"]).is_ok());
    assert!(Cli::try_parse_from(["outboxd", "events", "append", "shop", "--eech"]).is_err());
    assert_eq!(not_known("outboxd job run|list"), None);
    assert_eq!(not_known("outboxd init --feed TABLE [FILE]"), None);
    assert_eq!(not_known("outboxd job run|walk").as_deref(), Some("walk"));
    assert_eq!(not_known("outboxd dead-letters list --consumers NAME").as_deref(), Some("--consumers"));
}

/// Metrics and tables (`outboxd_...`), files and scripts, words of `make`.
#[test]
fn what_documents_name_is_there() {
    let mut code = String::new();
    let mut folders = ["src", "migrations", "config"].map(place).to_vec();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                code.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let names: BTreeSet<&str> = code.split(|c| !is_name(c)).filter(|word| word.starts_with("outboxd_")).collect();
    // `outboxd_feed_TABLE` is made of a beginning that stands in the code; `outboxd_job_*` is the beginning of some.
    let is_there = |name: &str| {
        let is_made = |other: &&str| other.len() > "outboxd_".len() && other.ends_with('_') && name.starts_with(*other);
        names.contains(name)
            || names.iter().any(is_made)
            || name.ends_with('_') && names.iter().any(|other| other.starts_with(name))
    };
    let makefile = read("Makefile");
    let mut missing = Vec::new();
    for (document, text) in documents() {
        let unknown = unknown_metrics(&text).into_iter().filter(|name| !is_there(name));
        missing.extend(unknown.map(|name| format!("{document}: {name}")));
        for span in spans(&text) {
            let first = span.split_whitespace().next().unwrap_or_default();
            let is_ours = first.starts_with("scripts/")
                || first.contains('/') && !first.starts_with(['/', '.', '~']) && first.ends_with(".rs");
            if is_ours && !["", "src/"].iter().any(|folder| place(&format!("{folder}{first}")).exists()) {
                missing.push(format!("{document}: {first}"));
            }
            if let Some(word) = span.strip_prefix("make ").and_then(|rest| rest.split_whitespace().next())
                && !makefile.contains(&format!("\n{word}:"))
            {
                missing.push(format!("{document}: make {word}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// A reason for each direct dependency, and none for what is gone.
#[test]
fn every_dependency_has_its_reason() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let package = |(name, said): (&String, &toml::Value)| {
        said.get("package").and_then(toml::Value::as_str).unwrap_or(name).to_owned()
    };
    let wanted: BTreeSet<String> = manifest["dependencies"].as_table().unwrap().iter().map(package).collect();
    let document = read("docs/DEPENDENCIES.md");
    let rows = document.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
    let first_cells = rows.map(|row| row.split(" | ").next().unwrap().split(" (").next().unwrap());
    let told: BTreeSet<String> =
        first_cells.flat_map(|cell| cell.split(", ")).map(|name| name.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(told, wanted);
    for name in manifest["dev-dependencies"].as_table().unwrap().keys() {
        assert!(document.contains(name), "{name}");
    }
}
