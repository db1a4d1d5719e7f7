//! What is wrong with a configuration, told to a tired person at night.

use std::fmt;
use std::path::PathBuf;

/// Where in the configuration something stands: `["relays", "shop_to_bus", "sink"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPath(pub Vec<String>);

impl KeyPath {
    pub fn of<const N: usize>(parts: [&str; N]) -> Self {
        Self(parts.into_iter().map(str::to_owned).collect())
    }

    pub fn join(&self, part: &str) -> Self {
        let mut parts = self.0.clone();
        parts.push(part.to_owned());
        Self(parts)
    }

    pub fn last(&self) -> &str {
        self.0.last().map_or("", String::as_str)
    }
}

/// As TOML would write it.
impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in self.0.iter().enumerate() {
            let dot = if index == 0 { "" } else { "." };
            let is_bare = !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
            match is_bare {
                true => write!(f, "{dot}{part}")?,
                false => write!(f, "{dot}{part:?}")?,
            }
        }
        Ok(())
    }
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File {
        path: PathBuf,
        line: Option<usize>,
    },
    /// An environment variable.
    Variable(String),
    /// Nobody said it.
    Fallback,
}

impl Origin {
    fn order(&self) -> (u8, &str, usize) {
        match self {
            Origin::File { path, line } => (0, path.to_str().unwrap_or_default(), line.unwrap_or(0)),
            Origin::Variable(name) => (1, name, 0),
            Origin::Fallback => (2, "", 0),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line: Some(line) } => write!(f, "{}, line {line}", path.display()),
            Origin::File { path, line: None } => write!(f, "{}", path.display()),
            Origin::Variable(name) => write!(f, "environment variable {name}"),
            Origin::Fallback => f.write_str("default"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub origin: Origin,
    /// Empty when it is about a whole file.
    pub key: KeyPath,
    pub reason: String,
    pub remedy: Option<String>,
}

/// One block: what, where, why, and what to do.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.0.is_empty() {
            true => write!(f, "error: {}", self.origin)?,
            false => write!(f, "error: {}  ({})", self.key, self.origin)?,
        }
        write!(f, "\n       {}", self.reason)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  fix: {remedy}"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with a configuration. There is at least one problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub problems: Vec<Problem>,
}

impl Error {
    /// In the order in which a person meets them: file by file, from the top.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        assert!(!problems.is_empty(), "an error says what is wrong");
        problems.sort_by(|a, b| a.origin.order().cmp(&b.origin.order()));
        Self { problems }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            write!(f, "{problem}\n\n")?;
        }
        match self.problems.len() {
            1 => f.write_str("The configuration has 1 error; nothing was started or changed."),
            count => write!(f, "The configuration has {count} errors; nothing was started or changed."),
        }
    }
}

impl std::error::Error for Error {}

/// The known name that is most like the written one, if any is.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let written = written.to_lowercase();
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&written, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().min(written.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `a`, `b` or `c`.
pub fn either<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("topc", ["topic", "type", "key"]), Some("topic"));
        assert_eq!(nearest("Kafka", ["kafka", "amqp"]), Some("kafka"));
        assert_eq!(nearest("ack_timout", ["ack_timeout"]), Some("ack_timeout"));
        assert_eq!(nearest("colour", ["topic", "type", "key"]), None);
    }
}
