//! What is said of a thing that was looked at: how it stands, by what evidence, and what is to be done. The doctor's findings and the sinks'
//! surveys are made of it.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, and could be better, or safer.
    Advice,
    /// Events, or the file, can be lost by it; or nothing is relayed.
    Danger,
}

#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Remark {
    pub verdict: Verdict,
    /// May have several lines.
    pub evidence: String,
    pub remedy: Option<String>,
    /// For a shell, as they stand.
    pub commands: Vec<String>,
}

impl Remark {
    pub fn ok(evidence: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, evidence: evidence.into(), remedy: None, commands: Vec::new() }
    }

    pub fn advice(evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Advice, remedy: Some(remedy.into()), ..Self::ok(evidence) }
    }

    pub fn danger(evidence: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { verdict: Verdict::Danger, remedy: Some(remedy.into()), ..Self::ok(evidence) }
    }

    pub fn with(mut self, commands: impl IntoIterator<Item = String>) -> Self {
        self.commands.extend(commands);
        self
    }
}

/// A word of a command line.
pub fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
