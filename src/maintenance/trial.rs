//! `type = "trial"`: a job for the tests, which takes as long as it is told and says in a file that it did. In no release.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::keys::{self, job_section};
use super::registry::{Keys, Sources};
use super::{Context, Failure, Job, Report, Settings};
use crate::setting::Checker;
use crate::setting::key::Fallback::{Absent, Required};
use crate::setting::value::Span;

const STEP: Duration = Duration::from_millis(2);

job_section! {
    /// Does nothing, for some time.
    Trial, "[jobs.<name>] with type = \"trial\"" {
        /// A source.
        source: String, Required, r#""shop""#;
        /// For so long.
        takes: Span, Absent("no time"), r#""1s""#;
        /// What it fails with.
        fails: String, Absent("nothing"), r#""no""#;
        /// Does not look whether it has to end.
        is_deaf: bool, Absent("false"), "true";
    }
}

#[derive(Debug)]
struct Work {
    name: String,
    file: PathBuf,
    takes: Duration,
    fails: Option<String>,
    is_deaf: bool,
}

impl Keys for Trial {
    fn resolve(&self, name: &str, sources: &Sources<'_>, checker: &mut Checker<'_>) -> Option<Settings> {
        let schedule = self.timing().resolve(name, None, checker);
        let home = keys::source(name, self.source.as_ref(), sources, checker)?;
        let work = Work {
            name: name.to_owned(),
            file: home.path.clone(),
            takes: self.takes.map_or(Duration::ZERO, |span| span.0),
            fails: self.fails.clone(),
            is_deaf: self.is_deaf.unwrap_or(false),
        };
        Some(Settings { name: name.to_owned(), kind: "trial", schedule: schedule?, home, job: Arc::new(work) })
    }
}

impl Work {
    fn partial(&self) -> PathBuf {
        self.file.with_file_name(format!("{}.partial", self.name))
    }

    fn say(&self, word: &str) -> Result<(), Failure> {
        let path = self.file.with_file_name("trials");
        let file = std::fs::File::options().create(true).append(true).open(path);
        // In one piece: another job's may be written at the same moment.
        let said = file.and_then(|mut file| file.write_all(format!("{} {word}\n", self.name).as_bytes()));
        said.map_err(|error| Failure::Unavailable(error.to_string()))
    }
}

impl Job for Work {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }

    fn run(&self, context: &Context) -> Result<Report, Failure> {
        let io = |error: std::io::Error| Failure::Unavailable(error.to_string());
        std::fs::write(self.partial(), "").map_err(io)?;
        self.say("began")?;
        let end = Instant::now() + self.takes;
        while Instant::now() < end {
            if !self.is_deaf && context.go_on().is_err() {
                std::fs::remove_file(self.partial()).map_err(io)?;
                return Err(Failure::Aborted);
            }
            std::thread::sleep(STEP);
        }
        std::fs::remove_file(self.partial()).map_err(io)?;
        self.say("ended")?;
        match &self.fails {
            Some(why) => Err(Failure::Data(why.clone())),
            None => Ok(Report("well".into())),
        }
    }

    fn tidy(&self) -> std::io::Result<Vec<PathBuf>> {
        match std::fs::remove_file(self.partial()) {
            Ok(()) => Ok(vec![self.partial()]),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}
