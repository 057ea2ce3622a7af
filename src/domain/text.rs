//! Text from the cluster on its way to a terminal, a log line or a Kubernetes Event.
//!
//! Object names, annotations and messages are written by whoever may write to the cluster. Shown
//! unchanged, an escape sequence can repaint a terminal, a newline can forge a log line and a
//! bidirectional override can make one image name read as another. Quotes and backslashes stay as
//! they are: the result is for people to read, not for a program to decode.

use std::borrow::Cow;

use jiff::Timestamp;

/// Replaces every character that moves the cursor back, ends a line or reorders its neighbours by its
/// Rust escape: `\n`, `\r`, otherwise `\u{1b}`.
///
/// These are the control characters but the tab, which can't forge a line (Unicode category Cc: C0, DEL and
/// C1), the line and paragraph separators U+2028 and U+2029, and the bidirectional controls of Unicode Standard Annex #9.
/// Text without any of them is borrowed.
///
/// kubectl only replaces ESC (by `^[`) and CR (`printers.WriteEscaped` in k8s.io/cli-runtime).
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(misleads) else {
        return Cow::Borrowed(text);
    };
    let (clean, rest) = text.split_at(first);
    let mut escaped = String::with_capacity(text.len() + 8);
    escaped.push_str(clean);
    for character in rest.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            _ if misleads(character) => escaped.extend(character.escape_unicode()),
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// At most `limit` bytes of a text, cut between two characters; what was cut ends in `…`. `limit` is at least
/// the three bytes of that.
#[must_use]
pub fn cut(text: &str, limit: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(limit.saturating_sub(MARK.len()));
    Cow::Owned(format!("{}{MARK}", &text[..end]))
}

/// A time as messages show it, without microseconds.
#[must_use]
pub fn to_the_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn misleads(character: char) -> bool {
    (character.is_control() && character != '\t')
        || matches!(
            character,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_text_is_borrowed() {
        for text in ["", "nginx:1.27", "größe → 日本語 🚀", r#"C:\dir "quoted" 'x'"#] {
            assert!(matches!(escape(text), Cow::Borrowed(same) if same == text), "{text:?}");
        }
    }

    #[test]
    fn ends_of_lines_get_their_short_names_and_tabs_are_kept() {
        assert!(matches!(escape("a\tb"), Cow::Borrowed("a\tb")));
        assert_eq!(escape("a\tb\nc\r\nd"), "a\tb\\nc\\r\\nd");
    }

    #[test]
    fn escape_sequences_cannot_reach_a_terminal() {
        assert_eq!(escape("\u{1b}[2Jgone"), r"\u{1b}[2Jgone");
        assert_eq!(escape("\0 \u{7} \u{7f} \u{85} \u{9b}31m"), r"\u{0} \u{7} \u{7f} \u{85} \u{9b}31m");
    }

    #[test]
    fn every_control_and_bidirectional_character_is_escaped() {
        let control = ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}');
        let direction = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}']
            .into_iter()
            .chain('\u{202a}'..='\u{202e}')
            .chain('\u{2066}'..='\u{2069}');
        for character in control.chain(direction).filter(|character| *character != '\t') {
            let text = format!("a{character}b");
            let escaped = escape(&text);
            assert!(escaped.starts_with("a\\") && escaped.ends_with('b'));
            assert!(escaped.chars().all(|c| (' '..='~').contains(&c)));
        }
    }

    #[test]
    fn neighbours_of_the_escaped_ranges_are_kept() {
        let text = " ~\u{a0}\u{61b}\u{61d}\u{200d}\u{2010}\u{2027}\u{202f}\u{2065}\u{206a}";
        assert_eq!(escape(text), text);
    }

    #[test]
    fn a_text_is_cut_between_two_characters() {
        assert!(matches!(cut("größe", 7), Cow::Borrowed("größe")));
        assert_eq!(cut("größe", 6), "gr…");
        assert_eq!(cut("größe", 5), "gr…");
        assert_eq!(cut("abcdef", 5), "ab…");
        assert_eq!(cut("🚀🚀", 7), "🚀…");
        assert_eq!(cut("🚀🚀", 6), "…");
    }

    #[test]
    fn times_in_messages_have_no_fractions_of_seconds() {
        let time: Timestamp = "2026-11-29T12:00:52.772331283Z".parse().unwrap();
        assert_eq!(to_the_second(time).to_string(), "2026-11-29T12:00:52Z");
    }

    #[test]
    fn escaping_twice_changes_nothing() {
        let once = escape("x\n\u{202e}y").into_owned();
        assert_eq!(once, r"x\n\u{202e}y");
        assert_eq!(escape(&once), once);
    }
}
