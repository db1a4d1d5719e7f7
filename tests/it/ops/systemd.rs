//! The units and their drop-ins, as systemd itself reads them; booted they are by `make test-packaging`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use super::{place, read};
use crate::support::process::told;

const UNITS: [&str; 2] = ["outboxd.service", "outboxd@.service"];
/// Ten times the exposure that is allowed: 1.5 of 10.
const EXPOSURE_MAX: &str = "--threshold=15";

/// A folder with the unit and drop-ins, as an operator would have them, and the daemon where it stands now.
fn installed(unit: &str, text: &str, drop_ins: &[String]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    assert!(text.contains("\nExecStart=/usr/bin/outboxd run "), "{unit}");
    fs::write(folder.path().join(unit), text.replace("/usr/bin/outboxd", env!("CARGO_BIN_EXE_outboxd"))).unwrap();
    let beside = folder.path().join(format!("{unit}.d"));
    fs::create_dir(&beside).unwrap();
    for name in drop_ins {
        fs::write(beside.join(name), read(&format!("systemd/drop-ins/{name}"))).unwrap();
    }
    folder
}

fn analyze(arguments: &[&str], folder: &Path, unit: &str) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg(folder.join(unit)).env_remove("SYSTEMD_UNIT_PATH");
    command.output().expect("systemd-analyze: scripts/setup installs it")
}

fn verify(folder: &Path, unit: &str) -> Output {
    analyze(&["verify", "--recursive-errors=no"], folder, unit)
}

fn security(folder: &Path, unit: &str) -> Output {
    analyze(&["security", "--offline=true", "--no-pager", EXPOSURE_MAX], folder, unit)
}

fn drop_ins() -> Vec<String> {
    let entries = fs::read_dir(place("systemd/drop-ins")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 3, "{names:?}");
    names
}

/// Alone, with each drop-in, and with all of them.
#[test]
fn systemd_takes_the_units_without_a_word_and_counts_them_as_hardly_exposed() {
    let all = drop_ins();
    let each = all.iter().map(|name| vec![name.clone()]);
    for with in [vec![], all.clone()].into_iter().chain(each) {
        for unit in UNITS {
            let folder = installed(unit, &read(&format!("systemd/{unit}")), &with);
            let output = verify(folder.path(), unit);
            told(&output);
            // Of other units of this machine something may be said, of ours nothing.
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains("outboxd"), "{unit} with {with:?}: {said}");
            let exposure = told(&security(folder.path(), unit));
            assert!(exposure.contains("Overall exposure level"), "{unit} with {with:?}: {exposure}");
        }
    }
}

/// Both looks notice what they are for.
#[test]
fn control_a_misspelt_key_and_a_missing_protection_are_noticed() {
    for unit in UNITS {
        let text = read(&format!("systemd/{unit}"));
        let misspelt = installed(unit, &text.replace("NoNewPrivileges=", "NoNewPriviledges="), &[]);
        let output = verify(misspelt.path(), unit);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("NoNewPriviledges"), "{unit}: {said}");
        for protection in
            ["CapabilityBoundingSet=\n", "SystemCallFilter=@system-service\nSystemCallFilter=~@privileged @resources\n"]
        {
            assert!(text.contains(protection), "{unit}: {protection}");
            let open = installed(unit, &text.replace(protection, ""), &[]);
            assert!(!security(open.path(), unit).status.success(), "{unit} without {protection}");
        }
    }
}

/// The template says for one tenant what the unit says for one application, and nothing less.
#[test]
fn the_template_differs_from_the_unit_only_by_its_tenant() {
    let settings = |unit: &str| -> Vec<String> {
        let text = read(&format!("systemd/{unit}"));
        text.lines().filter(|line| !line.starts_with('#') && line.contains('=')).map(str::to_owned).collect()
    };
    let (unit, template) = (settings(UNITS[0]), settings(UNITS[1]));
    let of_template: Vec<_> = template.iter().filter(|line| !unit.contains(line)).collect();
    let of_unit: Vec<_> = unit.iter().filter(|line| !template.contains(line)).collect();
    assert!(
        of_template.iter().all(|line| line.contains("%i") || *line == "TemporaryFileSystem=/srv:ro"),
        "{of_template:?}"
    );
    let keys: Vec<_> = of_unit.iter().map(|line| line.split('=').next().unwrap()).collect();
    assert_eq!(
        keys,
        [
            "Description",
            "ExecStart",
            "ExecReload",
            "ReadWritePaths",
            "RuntimeDirectory",
            "StateDirectory",
            "Environment",
            "Environment"
        ]
    );
}
