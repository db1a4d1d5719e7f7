//! A scene with a backup job and a target off the host: a folder, or a bucket of a real S3 server. The suite asks nothing of which it is.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;

use crate::clocks_are_set_at_will::library;
use crate::sink_contract::rig::unique;
use crate::support::process::{SHOP, Scene, told};
use crate::support::s3::Bucket;

pub enum Far {
    Folder(tempfile::TempDir),
    S3(Bucket),
}

impl Far {
    pub fn folder() -> Self {
        Self::Folder(tempfile::Builder::new().prefix("outboxd-far-").tempdir().unwrap())
    }

    pub fn s3() -> Self {
        Self::S3(Bucket::new(&unique("far").replace('_', "-")))
    }

    /// The keys that lead there.
    pub fn keys(&self) -> String {
        match self {
            Self::Folder(folder) => format!("target = \"file://{}\"", folder.path().display()),
            Self::S3(bucket) => s3_keys(&bucket.endpoint, &bucket.name),
        }
    }

    fn within(folder: &tempfile::TempDir, key: &str) -> PathBuf {
        folder.path().join(key)
    }

    /// What lies there, with its size.
    pub fn objects(&self) -> BTreeMap<String, u64> {
        match self {
            Self::S3(bucket) => {
                let prefix = |(key, size): (String, u64)| {
                    (key.strip_prefix("shop/").expect("all of it is there").to_owned(), size)
                };
                bucket.objects().into_iter().map(prefix).collect()
            }
            Self::Folder(folder) => {
                let read = |path: PathBuf| fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
                let file = |backup: fs::DirEntry| {
                    let name = backup.file_name().into_string().unwrap();
                    let one = move |entry: fs::DirEntry| {
                        (format!("{name}/{}", entry.file_name().to_str().unwrap()), entry.metadata().unwrap().len())
                    };
                    read(backup.path()).map(one).collect::<Vec<_>>()
                };
                read(folder.path().into()).flat_map(file).collect()
            }
        }
    }

    /// The names of those that have a manifest, and of those that have none.
    pub fn backups(&self) -> (Vec<String>, Vec<String>) {
        let objects = self.objects();
        let mut names: Vec<String> = objects.keys().map(|key| key.split_once('/').unwrap().0.to_owned()).collect();
        names.dedup();
        names.into_iter().partition(|name| objects.contains_key(&format!("{name}/manifest.json")))
    }

    pub fn get(&self, key: &str) -> Vec<u8> {
        match self {
            Self::Folder(folder) => fs::read(Self::within(folder, key)).unwrap(),
            Self::S3(bucket) => bucket.get(&format!("shop/{key}")),
        }
    }

    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        match self {
            Self::Folder(folder) => {
                let path = Self::within(folder, key);
                fs::DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            Self::S3(bucket) => bucket.put(&format!("shop/{key}"), bytes),
        }
    }

    pub fn delete(&self, key: &str) {
        match self {
            Self::Folder(folder) => fs::remove_file(Self::within(folder, key)).unwrap(),
            Self::S3(bucket) => bucket.delete(&format!("shop/{key}")),
        }
    }
}

pub fn s3_keys(endpoint: &str, bucket: &str) -> String {
    format!(
        "target = \"s3://{bucket}/shop\"\ns3 = {{ endpoint = \"{endpoint}\", access_key_id = \"test\", secret_access_key = \"hidden-word\" }}"
    )
}

pub fn nightly(far: &str, more: &str) -> String {
    format!(
        "[jobs.nightly]\ntype = \"backup\"\nfiles = [\"app.db\"]\nfolder = \"kept\"\nschedule = \"0 3 * * *\"\n{far}\n{more}\n"
    )
}

pub fn config(far: &str, more: &str) -> String {
    format!("{SHOP}{}", nightly(far, more))
}

/// A command on some day of 2026, at three.
pub fn on_day(scene: &Scene, day: u32, words: &[&str], environment: &[(&str, &str)]) -> Output {
    let library = library().expect("scripts/setup installs libfaketime");
    let library = library.to_str().unwrap();
    let time = format!("@2026-{:02}-{:02} 03:00:00", 1 + day / 28, 1 + day % 28);
    let clock = [("LD_PRELOAD", library), ("FAKETIME", &time), ("DONT_FAKE_MONOTONIC", "1"), ("TZ", "UTC")];
    scene.outboxd_with(words, &[&clock, environment].concat())
}

pub fn listed(scene: &Scene) -> Vec<(String, String)> {
    let answer: Value = serde_json::from_str(&told(&scene.outboxd(&["backup", "list", "--json"]))).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    answer["backups"].as_array().unwrap().iter().map(|backup| (text(&backup["name"]), text(&backup["lies"]))).collect()
}

/// Everything that lies in the job's folder.
pub fn kept(scene: &Scene) -> Vec<String> {
    let Ok(read) = fs::read_dir(scene.path("kept")) else { return Vec::new() };
    let mut names: Vec<String> = read.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
