//! Which event types a consumer takes: patterns in which `*` stands for any run of characters.

/// Empty = every type.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    patterns: Vec<Box<str>>,
}

impl Filter {
    pub fn new(patterns: &[String]) -> Self {
        Self { patterns: patterns.iter().map(|pattern| pattern.as_str().into()).collect() }
    }

    pub fn admits(&self, kind: &str) -> bool {
        self.patterns.is_empty() || self.patterns.iter().any(|pattern| matches(pattern.as_bytes(), kind.as_bytes()))
    }
}

/// The usual two-pointer match: on a mismatch, the last `*` takes one character more.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && pattern[p] == text[t] {
            p += 1;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_types() {
        let filter = |patterns: &[&str]| Filter::new(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>());
        assert!(filter(&[]).admits("Anything"));
        assert!(filter(&["Order*"]).admits("OrderPlaced"));
        assert!(!filter(&["Order"]).admits("OrderPlaced"));
        assert!(filter(&["x", "*Placed"]).admits("OrderPlaced"));
        assert!(filter(&["O*r*d"]).admits("OrderPlaced"));
        assert!(!filter(&["O*x*d"]).admits("OrderPlaced"));
        assert!(filter(&["*"]).admits(""));
    }
}
