//! kubectl's own output, for `Accept: text/plain`.
//!
//! Text that comes from the cluster is escaped ([`escape`]): a change-cause with a newline or an
//! escape sequence must not forge a row. That is the only departure from kubectl's bytes.

use std::fmt::Write;

use super::{
    describe,
    key::{Key, Name},
    revision::{History, Revision, RevisionRef},
    rollback::Target,
    template::Template,
    text::escape,
};

/// `kubectl rollout history daemonset/NAME`.
///
/// Where two ControllerRevisions have one number, both are shown; kubectl hides one of them.
#[must_use]
pub fn history(name: &Name, history: &History) -> String {
    if history.revisions().is_empty() {
        return format!("daemonset.apps/{name} \nNo rollout history found.\n");
    }
    const HEADER: &str = "REVISION";
    let widest = history.revisions().iter().map(|revision| revision.number.to_string().len()).max();
    let width = widest.unwrap_or_default().max(HEADER.len()) + 2;
    let mut out = format!("daemonset.apps/{name} \n{HEADER:width$}CHANGE-CAUSE\n");
    for revision in history.revisions() {
        let cause = revision.change_cause.as_deref().map_or("<none>".into(), escape);
        writeln!(out, "{:<width$}{cause}", revision.number.0).expect("a String takes all");
    }
    out.push('\n');
    out
}

/// `kubectl rollout history daemonset/NAME --revision=N`.
#[must_use]
pub fn revision(name: &Name, revision: &Revision, template: &Template) -> String {
    format!(
        "daemonset.apps/{name} with revision #{}\n{}",
        revision.number,
        describe::pod_template(&template.value())
    )
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

/// The command that does what a rollback does, for whoever can't wait for rollbackd.
#[must_use]
pub fn undo_command(key: &Key, to: &Target) -> String {
    let Key { namespace, name } = key;
    let number = match to {
        Target::Previous => String::new(),
        Target::Revision(RevisionRef::Number(number)) => format!(" --to-revision={number}"),
        // kubectl knows no other name of a revision; its history says which number this one has.
        Target::Revision(RevisionRef::ControllerRevision(_)) => {
            return format!("kubectl rollout history daemonset/{name} --namespace={namespace}");
        }
    };
    format!("kubectl rollout undo daemonset/{name} --namespace={namespace}{number}")
}
