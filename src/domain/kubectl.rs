//! kubectl's own output, for `Accept: text/plain`.
//!
//! Text that comes from the cluster is escaped ([`escape`]): a change-cause with a newline or an
//! escape sequence must not forge a row. That is the only departure from kubectl's bytes.

use std::fmt::Write;

use super::{
    describe,
    key::{Key, Name},
    revision::{History, RevisionNumber, RevisionRef},
    rollback::{Mode, OnWarning, Precondition, RollbackRequest, Target},
    template::{Template, TemplateSummary},
    text::escape,
};

/// `kubectl rollout history daemonset/NAME`.
///
/// Where two ControllerRevisions have one number, both are shown; kubectl hides one of them.
#[must_use]
pub fn history<T: AsRef<TemplateSummary>>(name: &Name, history: &History<T>) -> String {
    if history.revisions().is_empty() {
        return format!("daemonset.apps/{name} \nNo rollout history found.\n");
    }
    const HEADER: &str = "REVISION";
    let widest = history.revisions().iter().map(|revision| revision.number.to_string().len()).max();
    let width = widest.unwrap_or_default().max(HEADER.len()) + 2;
    let mut out = format!("daemonset.apps/{name} \n{HEADER:width$}CHANGE-CAUSE\n");
    for revision in history.revisions() {
        let cause = revision.change_cause.as_deref().map_or("<none>".into(), escape);
        // To kubectl's table a tab ends a column, which is two spaces wider than its text. Several such rows in
        // succession are not aligned here: the width of one row would multiply with the number of others.
        let cause = cause.replace('\t', "  ");
        writeln!(out, "{:<width$}{cause}", revision.number.0).expect("a String takes all");
    }
    out.push('\n');
    out
}

/// `kubectl rollout history daemonset/NAME --revision=N`.
#[must_use]
pub fn revision(name: &Name, number: RevisionNumber, template: &Template) -> String {
    format!("daemonset.apps/{name} with revision #{number}\n{}", describe::pod_template(&template.value()))
}

/// How `kubectl rollout undo` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    RolledBack,
    /// The template equals the one asked for, named by this number; 0 for "the previous one".
    Skipped(i64),
}

/// `kubectl rollout undo daemonset/NAME`, with `--dry-run=server` if it was one.
#[must_use]
pub fn undo(name: &Name, undo: Undo, dry_run: bool) -> String {
    let dry_run = if dry_run { " (server dry run)" } else { "" };
    match undo {
        Undo::RolledBack => format!("daemonset.apps/{name} rolled back{dry_run}\n"),
        Undo::Skipped(number) => format!("daemonset.apps/{name} {}{dry_run}\n", skipped(number)),
    }
}

/// kubectl's words for a rollback that would change nothing.
#[must_use]
pub fn skipped(number: i64) -> String {
    format!("skipped rollback (current template already matches revision {number})")
}

/// kubectl's words for a name that the API server does not know.
#[must_use]
pub fn not_found(name: &Name) -> String {
    format!("daemonsets.apps \"{name}\" not found")
}

/// The command that does what a rollback does, for whoever can't wait for rollbackd. Who asked for a check
/// that kubectl can't make, or for a revision that it can't name, gets the command that looks: its history.
#[must_use]
pub fn undo_command(key: &Key, request: &RollbackRequest) -> String {
    let Key { namespace, name } = key;
    let checked = request.expected_revision.is_some()
        || matches!(request.precondition, Precondition::OneOf(_))
        || matches!(request.on_warning, OnWarning::Refuse { .. });
    let number = match &request.to {
        Target::Previous => String::new(),
        Target::Revision(RevisionRef::Number(number)) if number.0 > 0 => format!(" --to-revision={number}"),
        Target::Revision(_) => return history_command(key),
    };
    match request.mode {
        Mode::Apply if checked => history_command(key),
        Mode::Apply => format!("kubectl rollout undo daemonset/{name} --namespace={namespace}{number}"),
        Mode::DryRun => {
            format!("kubectl rollout undo daemonset/{name} --namespace={namespace}{number} --dry-run=server")
        }
    }
}

fn history_command(Key { namespace, name }: &Key) -> String {
    format!("kubectl rollout history daemonset/{name} --namespace={namespace}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{fixtures::daemonset, revision::RevisionNumber};

    #[test]
    fn the_command_to_use_meanwhile_does_no_more_than_was_asked_for() {
        let key = daemonset("a").key;
        let number = |number| Target::Revision(RevisionRef::Number(RevisionNumber(number)));
        let request = |to, mode, expected| RollbackRequest {
            to,
            reason: None,
            mode,
            expected_revision: expected,
            precondition: Precondition::Unconditional,
            on_warning: OnWarning::Proceed,
        };
        let undo = format!("kubectl rollout undo daemonset/{} --namespace={}", key.name, key.namespace);
        let history = format!("kubectl rollout history daemonset/{} --namespace={}", key.name, key.namespace);
        let careful = RollbackRequest {
            on_warning: OnWarning::Refuse { ignore: [].into() },
            ..request(Target::Previous, Mode::Apply, None)
        };
        for (request, expected) in [
            (request(Target::Previous, Mode::Apply, None), undo.clone()),
            (request(number(3), Mode::Apply, None), format!("{undo} --to-revision=3")),
            (request(number(3), Mode::DryRun, None), format!("{undo} --to-revision=3 --dry-run=server")),
            (request(Target::Previous, Mode::DryRun, None), format!("{undo} --dry-run=server")),
            (request(number(3), Mode::Apply, Some(RevisionNumber(2))), history.clone()),
            (request(number(-1), Mode::Apply, None), history.clone()),
            (careful, history),
        ] {
            assert_eq!(undo_command(&key, &request), expected, "{request:?}");
        }
    }
}
