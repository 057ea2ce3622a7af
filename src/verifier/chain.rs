//! The chain, link by link. Nothing is read here.
//!
//! Format 1: an entry's hash is SHA-256 over four lines, the last without a newline: `rollbackd audit 1`,
//! its sequence, its predecessor's hash, its text. The first one's predecessor is 64 zeros; where the old end was
//! cut off, the last `audit.cut` says which entry the rest follows, and that one's hash.

use std::{fmt, str::FromStr};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{AnchorPlace, Checks, Finding, Report, TOLD, prune::Prunes};

/// A head that was kept out of reach of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// The number of the entry, where it was kept with the hash.
    sequence: Option<i64>,
    hash: String,
}

/// A text that is no anchor.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected SEQUENCE:HASH, or a hash of 64 hexadecimal digits, as GET /audit/head and the log have them"
)]
pub struct InvalidAnchor;

impl FromStr for Anchor {
    type Err = InvalidAnchor;

    fn from_str(text: &str) -> Result<Self, InvalidAnchor> {
        let (sequence, hash) = match text.split_once(':') {
            Some((sequence, hash)) => {
                let digits = sequence.bytes().all(|byte| byte.is_ascii_digit());
                let sequence = sequence.parse().ok().filter(|_| digits);
                (Some(sequence.ok_or(InvalidAnchor)?), hash)
            }
            None => (None, text),
        };
        let hash = hash.to_ascii_lowercase();
        if is_hash(&hash) { Ok(Self { sequence, hash }) } else { Err(InvalidAnchor) }
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sequence {
            Some(sequence) => write!(f, "{sequence}:{}", self.hash),
            None => f.write_str(&self.hash),
        }
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// An entry as it was found.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    pub sequence: i64,
    pub previous: String,
    pub hash: String,
    pub entry: String,
}

/// What is looked at in an entry's text.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Text {
    pub version: u64,
    pub time: String,
    pub action: String,
    pub outcome: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub name: String,
    pub actor: TextActor,
    #[serde(default)]
    pub cut: Option<Cut>,
    /// Time of the newest entry that was cut.
    #[serde(default)]
    pub newest_cut: Option<String>,
    #[serde(default)]
    pub message: String,
}

/// Up to which entry all were cut off the old end, and that one's hash.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Cut {
    pub sequence: i64,
    pub hash: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct TextActor {
    pub user: String,
}

/// Goes along the entries, oldest first.
pub(super) struct Chain {
    sequence: i64,
    hash: String,
    entries: u64,
    /// Where it begins, if not at its very beginning.
    begins_after: Option<Cut>,
    /// What its last entry about a cut says.
    last_cut: Option<Cut>,
    prunes: Prunes,
    anchor: Option<Anchor>,
    anchor_place: Option<AnchorPlace>,
    /// Where the anchor's hash was, if that is not the entry that the anchor names.
    elsewhere: Option<i64>,
    findings: Vec<Finding>,
    found: u64,
}

impl Chain {
    pub fn new(checks: &Checks) -> Self {
        let mut chain = Self {
            sequence: 0,
            hash: "0".repeat(64),
            entries: 0,
            begins_after: None,
            last_cut: None,
            prunes: Prunes::new(checks.retention),
            anchor: checks.anchor.clone(),
            anchor_place: None,
            elsewhere: None,
            findings: Vec::new(),
            found: 0,
        };
        chain.look_for_anchor(AnchorPlace::Kept(0));
        chain
    }

    /// Something is wrong.
    pub fn find(&mut self, sequence: Option<i64>, what: impl Into<String>) {
        self.found += 1;
        if self.findings.len() < TOLD {
            self.findings.push(Finding { sequence, what: what.into() });
        }
    }

    /// Takes the next entry; returns its text if that can be read.
    pub fn take(&mut self, link: Link) -> Option<Text> {
        let Link { sequence, previous, hash, entry } = link;
        if self.entries == 0 && sequence > 1 {
            // What it begins with is held against what it says of a cut at the end.
            (self.sequence, self.hash) = (sequence - 1, previous.clone());
            self.begins_after = Some(Cut { sequence: self.sequence, hash: self.hash.clone() });
            self.look_for_anchor(AnchorPlace::Pruned(self.sequence));
        }
        self.entries += 1;
        let expected = self.sequence.saturating_add(1);
        if sequence > expected {
            let missing = match sequence - 1 {
                last if last == expected => format!("entry {last} is missing before it"),
                last => format!("entries {expected} to {last} are missing before it"),
            };
            self.find(Some(sequence), missing);
        } else if sequence < expected {
            self.find(Some(sequence), format!("it stands after entry {}: put in or moved", self.sequence));
        } else if previous != self.hash {
            let what = match self.sequence {
                0 => "as the first one it must follow 64 zeros".to_owned(),
                before => format!(
                    "it follows another entry {before} than the one before it: either was changed, put in or moved"
                ),
            };
            self.find(Some(sequence), what);
        }
        let text = serde_json::from_str::<Text>(&entry);
        match &text {
            Ok(Text { version: 1, .. }) => {}
            Ok(Text { version, .. }) => {
                self.find(
                    Some(sequence),
                    format!("format {version} is unknown to this version of rollbackd"),
                );
            }
            Err(_) => self.find(Some(sequence), "its text is not that of an entry"),
        }
        let mut bytes = format!("rollbackd audit 1\n{sequence}\n{previous}\n").into_bytes();
        bytes.extend_from_slice(entry.as_bytes());
        if hex(&Sha256::digest(&bytes)) != hash {
            self.find(
                Some(sequence),
                "it was changed: its hash is not that of its text, place and predecessor",
            );
        }
        (self.sequence, self.hash) = (sequence, hash);
        self.look_for_anchor(AnchorPlace::Kept(sequence));
        let text = text.ok()?;
        if text.action == "audit.cut" {
            self.last_cut.clone_from(&text.cut);
        }
        for (sequence, what) in self.prunes.take(sequence, &text) {
            self.find(Some(sequence), what);
        }
        Some(text)
    }

    /// Says where the chain ends, and whether the anchor was on the way.
    pub fn end(mut self) -> Report {
        let begins_after = self.begins_after.take();
        let cut = begins_after.as_ref().map(|cut| cut.sequence);
        if begins_after != self.last_cut {
            let first = begins_after.as_ref().map_or(1, |cut| cut.sequence + 1);
            let missing = match first - 1 {
                0 => "it is there again".to_owned(),
                1 => "entry 1 is missing before it".to_owned(),
                last => format!("entries 1 to {last} are missing before it"),
            };
            let what = match (&begins_after, &self.last_cut) {
                (_, None) => missing,
                (Some(begins), Some(cut)) if begins.sequence == cut.sequence => {
                    format!("entry {} was cut before it, and it follows another one", cut.sequence)
                }
                (_, Some(cut)) => format!("{missing}, and the last cut was up to entry {}", cut.sequence),
            };
            self.found += 1;
            self.findings.insert(0, Finding { sequence: Some(first), what });
        }
        if let Some(anchor) = self.anchor.take() {
            let old = begins_after
                .map(|cut| format!(", or it is older than what was cut up to entry {}", cut.sequence));
            let what = match self.elsewhere {
                Some(place) => format!("the anchor {anchor} is not in it: its hash is that of entry {place}"),
                None => format!(
                    "the anchor {anchor} is not in it: the end was cut off, or the chain was rewritten{}",
                    old.unwrap_or_default()
                ),
            };
            self.find(None, what);
        }
        let Self { sequence, hash, entries, findings, found, anchor_place, .. } = self;
        Report { entries, cut, head: (sequence, hash), anchor: anchor_place, findings, found }
    }

    /// The last entry so far.
    pub fn head(&self) -> (i64, &str) {
        (self.sequence, &self.hash)
    }

    fn look_for_anchor(&mut self, here: AnchorPlace) {
        let Some(anchor) = self.anchor.as_ref().filter(|anchor| anchor.hash == self.hash) else { return };
        if anchor.sequence.is_none_or(|sequence| sequence == self.sequence) {
            self.anchor = None;
            self.anchor_place = Some(here);
        } else {
            self.elsewhere = Some(self.sequence);
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}
