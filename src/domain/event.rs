//! What a rollback's Kubernetes Events say: one at its request, one at its end, and one if it stalls, so that
//! `kubectl describe daemonset` shows who rolled it back, why, and what came of it.

use super::{
    rollback::{Origin, Rollback, RollbackState},
    text::{cut, escape},
};

/// Longest note, in bytes, that the API server takes (`noteLengthLimit` in Kubernetes' validation).
const NOTE: usize = 1024;
/// Of which what happened may have so many, so that a long refusal leaves room for who and why.
const MESSAGE: usize = 320;
/// And each name of a user so many.
const USER: usize = 128;

/// One Event, without the object that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub severity: Severity,
    /// What happened, in one word that never changes: people filter by it.
    pub reason: &'static str,
    /// For people: which rollback, what came of it, who asked for it and why. At most 1,024 bytes, without
    /// characters that mislead a terminal.
    pub note: String,
}

/// The type of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Normal,
    /// Somebody should look.
    Warning,
}

impl Severity {
    /// The name as Kubernetes writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

impl Event {
    /// The Event of the state that a rollback has come to; `None` on the way between two that are told.
    #[must_use]
    pub fn of(rollback: &Rollback) -> Option<Self> {
        let (severity, reason) = match rollback.state {
            RollbackState::Requested => (Severity::Normal, "RollbackRequested"),
            RollbackState::Unsettled | RollbackState::Progressing => return None,
            RollbackState::Stalled => (Severity::Warning, "RollbackStalled"),
            RollbackState::Succeeded => (Severity::Normal, "RollbackSucceeded"),
            RollbackState::Applied => (Severity::Normal, "RollbackApplied"),
            RollbackState::Skipped => (Severity::Normal, "RollbackSkipped"),
            // Whoever rolled back has lost: to a colleague, or to a tool that keeps the manifest.
            RollbackState::Superseded => (Severity::Warning, "RollbackSuperseded"),
            RollbackState::Deleted => (Severity::Normal, "RollbackDeleted"),
            RollbackState::Failed => (Severity::Warning, "RollbackFailed"),
            RollbackState::Abandoned => (Severity::Warning, "RollbackAbandoned"),
            RollbackState::Unknown => (Severity::Warning, "RollbackUnknown"),
        };
        Some(Self { severity, reason, note: note(rollback) })
    }
}

/// What must not be cut stands first.
fn note(rollback: &Rollback) -> String {
    let mut note = format!("rollback {}", rollback.id);
    let requested = rollback.state == RollbackState::Requested;
    if let Some(from) = rollback.from.as_ref().filter(|_| requested) {
        note += &format!(" from revision {}", from.revision);
    }
    note += &format!(" to revision {}", rollback.to.revision);
    if let Some(number) = rollback.new_revision {
        note += &format!(", now revision {number}");
    }
    if !requested {
        note += &format!(": {};", cut(&escape(&rollback.message), MESSAGE));
    }
    note += &format!(" requested by {}", who(&rollback.origin));
    if let Some(reason) = &rollback.origin.reason {
        note += &format!(": {}", escape(reason));
    }
    cut(&note, NOTE).into_owned()
}

fn who(origin: &Origin) -> String {
    let name = |user: &str| cut(&escape(user), USER).into_owned();
    let asked = name(&origin.requested_by.user);
    match &origin.on_behalf_of {
        Some(actor) => format!("{asked} on behalf of {}", name(&actor.user)),
        None => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{fixtures, revision::RevisionNumber};

    fn rollback(state: RollbackState) -> Rollback {
        Rollback { state, ..fixtures::rollback() }
    }

    #[test]
    fn the_first_says_who_wants_what_and_why() {
        let mut rollback = rollback(RollbackState::Requested);
        let event = Event::of(&rollback).unwrap();
        assert_eq!((event.severity, event.reason), (Severity::Normal, "RollbackRequested"));
        let id = rollback.id;
        assert_eq!(
            event.note,
            format!("rollback {id} from revision 2 to revision 1 requested by jane: it crashes")
        );
        rollback.from = None;
        rollback.origin.reason = None;
        rollback.origin.on_behalf_of = Some(fixtures::actor("bob"));
        let note = Event::of(&rollback).unwrap().note;
        assert_eq!(note, format!("rollback {id} to revision 1 requested by jane on behalf of bob"));
    }

    #[test]
    fn the_last_says_what_came_of_it() {
        let mut rollback = rollback(RollbackState::Succeeded);
        rollback.message = "daemon set \"web\" successfully rolled out".into();
        rollback.new_revision = Some(RevisionNumber(3));
        let expected = format!(
            "rollback {} to revision 1, now revision 3: daemon set \"web\" successfully rolled out; requested by jane: it crashes",
            rollback.id
        );
        assert_eq!(Event::of(&rollback).unwrap().note, expected);
    }

    #[test]
    fn each_end_has_one_and_what_needs_a_look_warns() {
        let mut warnings = Vec::new();
        for state in RollbackState::ALL {
            let event = Event::of(&rollback(state));
            let told = state.is_final() || matches!(state, RollbackState::Requested | RollbackState::Stalled);
            assert_eq!(event.is_some(), told, "{state:?}");
            let Some(event) = event else { continue };
            assert_eq!(event.reason.to_lowercase(), format!("rollback{}", state.as_str()));
            if event.severity == Severity::Warning {
                warnings.push(state.as_str());
            }
        }
        assert_eq!(warnings, ["stalled", "superseded", "failed", "abandoned", "unknown"]);
    }

    #[test]
    fn a_note_fits_whatever_it_is_made_of_and_misleads_nobody() {
        for piece in ["x", "ß", "🚀", "\u{202e}", "\n", "\u{1b}[2J"] {
            let long = piece.repeat(1024);
            let mut rollback = rollback(RollbackState::Failed);
            rollback.message.clone_from(&long);
            rollback.origin.requested_by = fixtures::actor(&long);
            rollback.origin.on_behalf_of = Some(fixtures::actor(&long));
            rollback.origin.reason = Some(long);
            let note = Event::of(&rollback).unwrap().note;
            assert!((NOTE - 4..=NOTE).contains(&note.len()), "{}: {note}", note.len());
            assert_eq!(escape(&note), note);
            let whole = ["; requested by ", " on behalf of ", "…: "].iter().all(|part| note.contains(part));
            assert!(whole && note.contains(&rollback.id.to_string()), "{note}");
        }
    }
}
