//! The revisions of a DaemonSet: its ControllerRevisions, numbered by the controller.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    daemonset::DaemonSet,
    key::Name,
    revision_data::DataDigest,
    template::{NotRestorable, Template, TemplateSummary},
};

/// The number of a revision. It is not a name: rolling back to 1 of 1, 2 makes it 3, and 1 is gone.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
#[schema(examples(3))]
pub struct RevisionNumber(pub i64);

impl fmt::Display for RevisionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One ControllerRevision, of whatever owner. `T` is what is held of its template: the whole, or its
/// [`TemplateSummary`].
#[derive(Clone, Debug)]
pub struct Revision<T = Template> {
    pub number: RevisionNumber,
    /// Name of the ControllerRevision, which stays when the number changes.
    pub controller_revision: String,
    /// Uid of the ControllerRevision, whose data never changes: one made again under the same name has
    /// another.
    pub uid: String,
    /// Uid of the object that controls it; `None` for an orphan.
    pub owner: Option<String>,
    /// Name of that object; of what is no DaemonSet, with its kind, as in `StatefulSet/web`.
    pub owner_name: Option<String>,
    /// Value of the label `controller-revision-hash`, which the pods of this revision carry too.
    pub hash: Option<String>,
    /// Value of `kubernetes.io/change-cause`, copied from the DaemonSet when the revision was new.
    pub change_cause: Option<String>,
    pub created_at: Option<Timestamp>,
    /// Id of the rollback that the annotation `rollbackd.dev/rollback` names.
    pub rollback: Option<String>,
    /// The annotation of client-side apply, copied when the revision was new. Only a fresh read has it.
    pub last_applied: Option<Arc<str>>,
    /// The template that it holds, or why it can't be rolled back to.
    pub template: Result<T, NotRestorable>,
    /// What tells its bytes from another revision's; `None` without `data`.
    pub data: Option<DataDigest>,
}

/// What a caller writes to name a revision: a number or a ControllerRevision's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevisionRef {
    Number(RevisionNumber),
    ControllerRevision(String),
}

/// A text that names no revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRevision {
    /// kubectl's words, from `rollout_history.go`.
    #[error("revision must be a positive integer: {0}")]
    NotPositive(String),
    /// Neither a number nor an RFC 1123 subdomain.
    #[error("expected a revision number or the name of a ControllerRevision")]
    NeitherNumberNorName,
}

/// The revisions of one DaemonSet, ascending by number, equal numbers by name.
#[derive(Clone, Debug)]
pub struct History<T = Template> {
    revisions: Vec<Arc<Revision<T>>>,
    current: Option<usize>,
}

impl<T> Default for History<T> {
    fn default() -> Self {
        Self { revisions: Vec::new(), current: None }
    }
}

/// Why no single revision answers to a [`RevisionRef`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoSuchRevision {
    Unknown,
    /// Several ControllerRevisions have the number; their names.
    Ambiguous(Vec<String>),
}

/// Whether the controller can record the templates of a DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recordability {
    Always,
    /// Only templates whose hash happens to be short.
    ByChance,
    Never,
}

impl Recordability {
    /// By the length of the DaemonSet's name. The controller names a ControllerRevision `NAME-HASH`, with a hash of 1
    /// to 10 characters, and the API server takes names of at most 253.
    #[must_use]
    pub fn of_name(length: usize) -> Self {
        match length {
            ..=242 => Self::Always,
            243..=251 => Self::ByChance,
            252.. => Self::Never,
        }
    }
}

impl FromStr for RevisionRef {
    type Err = InvalidRevision;

    fn from_str(text: &str) -> Result<Self, InvalidRevision> {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return match text.parse() {
                Ok(number) if number > 0 => Ok(Self::Number(RevisionNumber(number))),
                _ => Err(InvalidRevision::NotPositive(text.to_owned())),
            };
        }
        match Name::parse(text) {
            Ok(name) => Ok(Self::ControllerRevision(name.into())),
            Err(_) => Err(InvalidRevision::NeitherNumberNorName),
        }
    }
}

impl fmt::Display for RevisionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::ControllerRevision(name) => f.write_str(name),
        }
    }
}

impl Revision {
    /// The same without the whole of its template.
    #[must_use]
    pub fn summary(self) -> Revision<TemplateSummary> {
        Revision {
            number: self.number,
            controller_revision: self.controller_revision,
            uid: self.uid,
            owner: self.owner,
            owner_name: self.owner_name,
            hash: self.hash,
            change_cause: self.change_cause,
            created_at: self.created_at,
            rollback: self.rollback,
            last_applied: None,
            template: self.template.map(|template| template.summary().clone()),
            data: self.data,
        }
    }
}

impl Revision<TemplateSummary> {
    /// Bytes that it takes in memory.
    #[must_use]
    pub fn size(&self) -> usize {
        let optional = [&self.owner, &self.owner_name, &self.hash, &self.change_cause, &self.rollback];
        let texts: usize = optional.into_iter().flatten().map(String::len).sum();
        let template = match &self.template {
            Ok(template) => template.heap(),
            Err(NotRestorable::ForeignKey { path } | NotRestorable::Directive { path }) => path.len(),
            Err(NotRestorable::Unreadable | NotRestorable::NotAnObject)
            | Err(NotRestorable::NoTemplate | NotRestorable::NotReplacing) => 0,
        };
        size_of::<Self>() + self.controller_revision.len() + self.uid.len() + texts + template
    }
}

impl<T: AsRef<TemplateSummary>> History<T> {
    /// Picks a DaemonSet's own revisions from ControllerRevisions whose labels match its selector.
    ///
    /// The rule of kubectl's `controlledHistory`: only what the DaemonSet's uid controls. An orphan
    /// is listed once the controller has adopted it.
    #[must_use]
    pub fn of<D, R>(daemonset: &DaemonSet<D>, candidates: impl IntoIterator<Item = R>) -> Self
    where
        D: AsRef<TemplateSummary>,
        R: Into<Arc<Revision<T>>>,
    {
        let mut revisions: Vec<Arc<Revision<T>>> = candidates
            .into_iter()
            .map(Into::into)
            .filter(|revision| revision.owner.as_ref() == Some(&daemonset.uid))
            .collect();
        revisions.sort_by(|a, b| (a.number, &a.controller_revision).cmp(&(b.number, &b.controller_revision)));
        // Of several equal ones the controller keeps the highest number (`dedupCurHistories`).
        let live = daemonset.template.as_ref();
        let current = revisions
            .iter()
            .rposition(|revision| revision.template.as_ref().is_ok_and(|it| it.as_ref() == live));
        Self { revisions, current }
    }

    /// All revisions, ascending.
    #[must_use]
    pub fn revisions(&self) -> &[Arc<Revision<T>>] {
        &self.revisions
    }

    /// The revision that equals the live template; `None` while the controller has not recorded it.
    #[must_use]
    pub fn current(&self) -> Option<&Revision<T>> {
        self.current.map(|index| self.revisions[index].as_ref())
    }

    /// Whether this is the revision that equals the live template.
    #[must_use]
    pub fn is_current(&self, revision: &Revision<T>) -> bool {
        self.current().is_some_and(|current| current.controller_revision == revision.controller_revision)
    }

    /// Whether this can be the history of `daemonset` at its version: once the controller has acted on
    /// a spec, its template is recorded under the highest number. The two are watched apart, and either
    /// watch may be ahead.
    #[must_use]
    pub fn agrees_with<D>(&self, daemonset: &DaemonSet<D>) -> bool {
        let acted = daemonset.status.observed_generation >= daemonset.generation && !daemonset.being_deleted;
        !acted || self.current.is_some_and(|index| index + 1 == self.revisions.len())
    }

    /// Revisions that are one to the controller, because their bytes are the same: each group has at least
    /// two, in the order of the history.
    #[must_use]
    pub fn duplicates(&self) -> Vec<Vec<&Revision<T>>> {
        let mut groups: BTreeMap<DataDigest, Vec<&Revision<T>>> = BTreeMap::new();
        for revision in &self.revisions {
            if let Some(data) = revision.data {
                groups.entry(data).or_default().push(revision);
            }
        }
        groups.into_values().filter(|group| group.len() > 1).collect()
    }

    /// Finds one revision.
    ///
    /// # Errors
    /// When none or more than one answers to it.
    pub fn find(&self, wanted: &RevisionRef) -> Result<&Revision<T>, NoSuchRevision> {
        let answers = |revision: &&Arc<Revision<T>>| match wanted {
            RevisionRef::Number(number) => revision.number == *number,
            RevisionRef::ControllerRevision(name) => revision.controller_revision == *name,
        };
        let found: Vec<&Arc<Revision<T>>> = self.revisions.iter().filter(answers).collect();
        match *found.as_slice() {
            [] => Err(NoSuchRevision::Unknown),
            [one] => Ok(one),
            ref several => Err(NoSuchRevision::Ambiguous(
                several.iter().map(|revision| revision.controller_revision.clone()).collect(),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_named_by_number_or_by_controller_revision() {
        assert_eq!("3".parse(), Ok(RevisionRef::Number(RevisionNumber(3))));
        assert_eq!("web-6d9f".parse(), Ok(RevisionRef::ControllerRevision("web-6d9f".into())));
        for text in ["0", "-1", "+0", "9223372036854775808"] {
            let refused = text.parse::<RevisionRef>();
            assert_eq!(refused, Err(InvalidRevision::NotPositive(text.into())));
        }
        for text in ["", "a b", "-", "é"] {
            assert_eq!(text.parse::<RevisionRef>(), Err(InvalidRevision::NeitherNumberNorName));
        }
    }

    #[test]
    fn a_history_agrees_once_the_observed_template_is_its_newest() {
        use crate::domain::fixtures::{daemonset, revision};
        let mut live = daemonset("a");
        let lagging = History::of(&live, [revision(1, "a"), revision(2, "b")]);
        assert!(!lagging.agrees_with(&live));
        assert!(!History::of(&live, [] as [Revision; 0]).agrees_with(&live));
        assert!(History::of(&live, [revision(2, "b"), revision(3, "a")]).agrees_with(&live));
        live.generation = 2;
        assert!(lagging.agrees_with(&live));
    }
}
