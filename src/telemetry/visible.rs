//! Text that events and brokers bring along, made fit for a terminal: nothing in it can move the cursor, hide text or turn its direction.

/// Text in which everything that a terminal would obey can be seen instead.
pub fn visible(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => seen.push_str("\\n"),
            '\t' => seen.push_str("\\t"),
            c if is_dangerous(c) => seen.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => seen.push(c),
        }
    }
    seen
}

/// JSON in which the same stands as escapes, which mean the same to whoever reads JSON.
pub fn visible_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' => escaped.push(c),
            c if is_dangerous(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    escaped.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => escaped.push(c),
        }
    }
    escaped
}

/// Controls (C0, C1), marks of direction, separators that break lines, and what has no width.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        let hostile = "a\u{1b}[2Jb\u{202e}c\u{9b}31m\r\n\u{200b}\u{2066}\u{7f}";
        let seen = visible(hostile);
        assert!(!seen.chars().any(is_dangerous), "{seen:?}");
        assert_eq!(visible("Zwölf 日本 🦀"), "Zwölf 日本 🦀");
        assert_eq!(visible("\u{1b}[0m"), "\\u{1b}[0m");
    }

    proptest! {
        #[test]
        fn whatever_it_is_nothing_is_obeyed_and_json_means_the_same(text in any::<String>()) {
            prop_assert!(!visible(&text).chars().any(is_dangerous));
            let json = visible_json(&serde_json::to_string(&text).unwrap());
            prop_assert!(!json.chars().any(is_dangerous));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
