//! The plan: DaemonSet and history and request in, what to do or why not out.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    Bookkeeping, Duplicates, OnWarning, Precondition, RevisionInfo, Warning,
    predict::Prediction,
    warning::{distrust, warnings},
};
use crate::domain::{
    bookkeeping::{FieldOwnership, last_applied},
    daemonset::DaemonSet,
    revision::{History, NoSuchRevision, Recordability, Revision, RevisionNumber, RevisionRef},
    template::{NotRestorable, Template},
};

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollbackRequest {
    pub to: Target,
    /// Why, in the caller's words.
    pub reason: Option<String>,
    pub mode: Mode,
    /// The number that the caller believes to be running now.
    pub expected_revision: Option<RevisionNumber>,
    pub precondition: Precondition,
    pub on_warning: OnWarning,
}

/// Which revision to restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one before the live template.
    Previous,
    Revision(RevisionRef),
}

/// Whether the rollback is made, or only tried by a server-side dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Apply,
    DryRun,
}

/// What else the one who asks may do to the DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Roll it back, and nothing else.
    RollBack,
    /// Change anything of it.
    Patch,
}

/// How far a revision can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its template has been live, or it was there before rollbackd watched.
    Trusted,
    /// It came up while rollbackd could not watch.
    Unwatched,
    /// It came up while rollbackd watched, and its template was never live.
    Planted,
    /// The watch has not shown it yet, or not yet what was live before.
    NotSeen,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Decision {
    /// The live template is the one asked for: nothing is sent.
    Skip {
        current: RevisionInfo,
        /// The number in kubectl's sentence.
        number: RevisionNumber,
    },
    Restore(Box<Plan>),
}

/// A rollback that makes sense.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What runs now; `None` while no revision holds the live template.
    pub from: Option<RevisionInfo>,
    pub to: RevisionInfo,
    pub live: Template,
    pub template: Template,
    pub warnings: Vec<Warning>,
    /// What must still hold when it is sent.
    pub precondition: Precondition,
    /// The last-applied annotation of the target's time, where the bookkeeping is restored.
    pub target_last_applied: Option<Arc<str>>,
    pub field_ownership: FieldOwnership,
    /// When the newest revision was created; `None` while the live template is not among them.
    pub newest_revision_at: Option<Timestamp>,
}

impl Plan {
    /// The last-applied annotation to write to a DaemonSet that the plan still holds for; `None` if it stays as it is.
    #[must_use]
    pub fn last_applied(&self, daemonset: &DaemonSet) -> Option<String> {
        match self.field_ownership {
            FieldOwnership::Keep => None,
            // Bookkeeping never makes a rollback fail; the plan has warned.
            FieldOwnership::Return => {
                last_applied::restored(daemonset, self.target_last_applied.as_deref(), &self.template).ok()?
            }
        }
    }
}

/// Why a rollback is not made. The answer is no; nothing is broken.
///
/// `Display` uses kubectl's words where it has them (`rollback.go`, `DaemonSetRollbacker`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("unable to find specified revision {0} in history")]
    UnknownRevision(RevisionRef),
    #[error("no last revision to roll back to")]
    NoPreviousRevision,
    #[error(
        "revision {number} is ambiguous: {} have this number; name one of them as toRevision",
        names.join(", ")
    )]
    Ambiguous { number: RevisionNumber, names: Vec<String> },
    #[error("ControllerRevision {name} can't be restored: {reason}")]
    NotRestorable { name: String, reason: NotRestorable },
    #[error("the DaemonSet is being deleted")]
    BeingDeleted,
    /// The controller has not made a revision of the live template yet, so that which one is the
    /// previous can't be told and the live template would be lost.
    #[error(
        "the controller has not recorded the running template as a revision yet; try again, or name a revision as toRevision"
    )]
    NotRecorded,
    /// As [`Refusal::NotRecorded`], of a DaemonSet whose name leaves no room for that of a revision.
    #[error("{}", not_recordable(*name_length))]
    NotRecordable { name_length: usize },
    #[error("expected revision {expected} to be running, but {}", running(*actual))]
    UnexpectedRevision { expected: RevisionNumber, actual: Option<RevisionNumber> },
    #[error("the DaemonSet has been changed or made again: it is {uid} at generation {generation} now")]
    PreconditionFailed { uid: String, generation: i64 },
    /// Whoever may create ControllerRevisions could have made it, and not everybody who may roll back may
    /// run anything.
    #[error(
        "ControllerRevision {name} was put there by hand: it appeared while rollbackd was watching, and its template was never the running one; rolling back to it needs the right to patch daemonsets"
    )]
    Planted { name: String },
    /// Whether it is that can't be told yet.
    #[error("rollbackd has not seen yet where ControllerRevision {name} comes from; try again")]
    NotSeen { name: String },
    /// The controller would relabel running pods instead of replacing them.
    #[error("{0}")]
    DuplicateRevision(Duplicates),
    #[error("{}", warnings.iter().map(|warning| warning.message.as_str()).collect::<Vec<_>>().join("; "))]
    Warned { warnings: Vec<Warning> },
}

impl Refusal {
    /// Whether it may be another one soon, when controller and watch have caught up.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotRecorded | Self::NotSeen { .. } => true,
            Self::NotRecordable { name_length } => {
                Recordability::of_name(*name_length) != Recordability::Never
            }
            _ => false,
        }
    }

    /// Says what the DaemonSet is instead of what the caller has seen.
    #[must_use]
    pub fn precondition_failed(daemonset: &DaemonSet) -> Self {
        Self::PreconditionFailed { uid: daemonset.uid.clone(), generation: daemonset.generation }
    }
}

fn not_recordable(name_length: usize) -> String {
    let probably = if Recordability::of_name(name_length) == Recordability::Never { "" } else { "probably " };
    format!(
        "the controller has not recorded the running template as a revision and {probably}never will: a revision is named after its DaemonSet, with a dash and a hash of up to 10 characters, and of the 253 characters that a name may have this DaemonSet's name takes {name_length}. Name a revision as toRevision, or make the DaemonSet again under a name of at most 242 characters"
    )
}

fn running(actual: Option<RevisionNumber>) -> String {
    actual.map_or_else(
        || "no revision of the running template is recorded yet".to_owned(),
        |number| format!("revision {number} is"),
    )
}

/// Decides what a rollback would do.
///
/// *Previous* is the highest-numbered revision whose template differs from the live one. kubectl
/// takes the second-highest number, which is the same wherever kubectl is right; while the
/// controller lags it would lose the live template. A caller who may not use a revision gets the one before
/// it, and a warning, so that a revision that was made by hand keeps nobody from the previous one.
///
/// `standing` tells how far the target can be trusted, and `power` whether that matters: who may patch
/// could run the same template without any revision.
///
/// # Errors
/// Why the rollback makes no sense.
pub fn plan(
    daemonset: &DaemonSet,
    history: &History,
    request: &RollbackRequest,
    power: Power,
    field_ownership: FieldOwnership,
    standing: impl Fn(&Revision) -> Standing,
) -> Result<Decision, Refusal> {
    if daemonset.being_deleted {
        return Err(Refusal::BeingDeleted);
    }
    if !request.precondition.holds(daemonset) {
        return Err(Refusal::precondition_failed(daemonset));
    }
    let current = history.current();
    if let Some(expected) = request.expected_revision {
        let actual = current.map(|revision| revision.number);
        if actual != Some(expected) {
            return Err(Refusal::UnexpectedRevision { expected, actual });
        }
    }
    let refused = |revision: &Revision| power == Power::RollBack && standing(revision) == Standing::Planted;
    let Found { revision: target, skipped } = match &request.to {
        Target::Previous => previous(daemonset, history, refused)?,
        Target::Revision(wanted) => Found { revision: named(history, wanted)?, skipped: Vec::new() },
    };
    let template = match &target.template {
        Ok(template) => template.clone(),
        Err(reason) => {
            let name = target.controller_revision.clone();
            return Err(Refusal::NotRestorable { name, reason: reason.clone() });
        }
    };
    if template == daemonset.template {
        return Ok(Decision::Skip { current: RevisionInfo::of(target), number: target.number });
    }
    let standing = standing(target);
    let name = || target.controller_revision.clone();
    match (standing, power) {
        (Standing::Planted, Power::RollBack) => return Err(Refusal::Planted { name: name() }),
        (Standing::NotSeen, Power::RollBack) => return Err(Refusal::NotSeen { name: name() }),
        (Standing::Trusted | Standing::Unwatched, _) | (_, Power::Patch) => {}
    }
    let bookkeeping = bookkeeping(daemonset, target, &template, field_ownership);
    let prediction =
        Prediction { daemonset, number: target.number, restored: &template, bookkeeping: &bookkeeping };
    let mut warnings = [prediction.warnings(), warnings(daemonset, current)].concat();
    warnings.extend(distrust(target, standing));
    warnings.extend(Warning::of_skipped(target, &skipped));
    let refusing = request.on_warning.refusing(&warnings);
    if !refusing.is_empty() {
        return Err(Refusal::Warned { warnings: refusing });
    }
    Ok(Decision::Restore(Box::new(Plan {
        from: current.map(RevisionInfo::of),
        to: RevisionInfo::of(target),
        live: daemonset.template.clone(),
        template,
        warnings,
        precondition: request.precondition.clone(),
        target_last_applied: target.last_applied.clone(),
        field_ownership,
        newest_revision_at: current
            .and_then(|_| history.revisions().iter().filter_map(|revision| revision.created_at).max()),
    })))
}

fn bookkeeping(
    daemonset: &DaemonSet,
    target: &Revision,
    template: &Template,
    field_ownership: FieldOwnership,
) -> Bookkeeping {
    match field_ownership {
        FieldOwnership::Keep => Bookkeeping::Kept,
        FieldOwnership::Return => {
            match last_applied::restored(daemonset, target.last_applied.as_deref(), template) {
                Ok(_) => target
                    .last_applied
                    .as_deref()
                    .and_then(|manifest| last_applied::difference(manifest, template))
                    .map_or(Bookkeeping::Restored, Bookkeeping::Changed),
                Err(reason) => Bookkeeping::NotRestored(reason.to_string()),
            }
        }
    }
}

/// The target of a rollback.
struct Found<'a> {
    revision: &'a Revision,
    /// Newer ones that the caller may not use.
    skipped: Vec<&'a Revision>,
}

fn previous<'a>(
    daemonset: &DaemonSet,
    history: &'a History,
    refused: impl Fn(&Revision) -> bool,
) -> Result<Found<'a>, Refusal> {
    if history.current().is_none() {
        let name_length = daemonset.key.name.as_str().len();
        return Err(match Recordability::of_name(name_length) {
            Recordability::Always => Refusal::NotRecorded,
            Recordability::ByChance | Recordability::Never => Refusal::NotRecordable { name_length },
        });
    }
    let differs = |revision: &&Revision| revision.template.as_ref() != Ok(&daemonset.template);
    let mut skipped = Vec::new();
    let revisions = || history.revisions().iter().map(|revision| &**revision);
    for revision in revisions().rev().filter(differs) {
        if refused(revision) {
            skipped.push(revision);
            continue;
        }
        let same_number = |other: &&Revision| other.number == revision.number && !refused(other);
        let others: Vec<&Revision> = revisions().filter(same_number).collect();
        return if others.len() > 1 {
            let names = others.iter().map(|other| other.controller_revision.clone()).collect();
            Err(Refusal::Ambiguous { number: revision.number, names })
        } else {
            Ok(Found { revision, skipped })
        };
    }
    Err(match skipped.first() {
        Some(newest) => Refusal::Planted { name: newest.controller_revision.clone() },
        None => Refusal::NoPreviousRevision,
    })
}

fn named<'a>(history: &'a History, wanted: &RevisionRef) -> Result<&'a Revision, Refusal> {
    history.find(wanted).map_err(|missing| match (missing, wanted) {
        (NoSuchRevision::Ambiguous(names), RevisionRef::Number(number)) => {
            Refusal::Ambiguous { number: *number, names }
        }
        _ => Refusal::UnknownRevision(wanted.clone()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::{
        daemonset::{LAST_APPLIED, UpdateStrategy},
        fixtures::{daemonset, revision, template},
        key::Name,
        rollback::{Version, WarningCode},
    };

    fn request(to: Target) -> RollbackRequest {
        RollbackRequest {
            to,
            reason: None,
            mode: Mode::Apply,
            expected_revision: None,
            precondition: Precondition::Unconditional,
            on_warning: OnWarning::Proceed,
        }
    }

    fn number(number: i64) -> Target {
        Target::Revision(RevisionRef::Number(RevisionNumber(number)))
    }

    fn decide(live: &DaemonSet, revisions: Vec<Revision>, to: Target) -> Result<Decision, Refusal> {
        plan(
            live,
            &History::of(live, revisions),
            &request(to),
            Power::RollBack,
            FieldOwnership::Return,
            |_| Standing::Trusted,
        )
    }

    fn restored(decision: Result<Decision, Refusal>) -> i64 {
        match decision.unwrap() {
            Decision::Restore(plan) => plan.to.revision.0,
            Decision::Skip { .. } => panic!("skipped"),
        }
    }

    #[test]
    fn previous_is_the_newest_revision_with_another_template() {
        let three = || vec![revision(1, "a"), revision(2, "b"), revision(3, "c")];
        assert_eq!(restored(decide(&daemonset("c"), three(), Target::Previous)), 2);
        // Two equal templates: kubectl would take the twin and change nothing.
        let twins = vec![revision(1, "a"), revision(2, "c"), revision(3, "c")];
        assert_eq!(restored(decide(&daemonset("c"), twins, Target::Previous)), 1);
        // The current template is not the newest revision: the controller has yet to raise its number.
        assert_eq!(restored(decide(&daemonset("a"), three(), Target::Previous)), 3);
    }

    #[test]
    fn previous_of_a_template_that_is_not_recorded_is_refused_and_a_number_is_warned_about() {
        let recorded = || vec![revision(1, "a"), revision(2, "b")];
        let live = daemonset("not yet");
        assert_eq!(decide(&live, recorded(), Target::Previous).unwrap_err(), Refusal::NotRecorded);
        match decide(&live, recorded(), number(2)).unwrap() {
            Decision::Restore(plan) => {
                assert_eq!(plan.from, None);
                assert_eq!(plan.warnings[0].code, WarningCode::NotRecorded);
            }
            Decision::Skip { .. } => panic!("skipped"),
        }
    }

    #[test]
    fn previous_skips_revisions_that_the_caller_may_not_use_and_says_so() {
        let live = daemonset("b");
        let decide = |power, revisions: &[Revision]| {
            let planted = |revision: &Revision| {
                let by_hand = revision.controller_revision.contains("planted");
                if by_hand { Standing::Planted } else { Standing::Trusted }
            };
            let history = History::of(&live, revisions.to_vec());
            plan(&live, &history, &request(Target::Previous), power, FieldOwnership::Return, planted)
        };
        let planted = |number: i64| Revision {
            controller_revision: format!("web-planted-{number}"),
            ..revision(number, "evil")
        };
        // One of them has the number of the right one.
        let revisions = [revision(1, "a"), planted(1), revision(2, "b"), planted(7), planted(8)];
        let Decision::Restore(plan) = decide(Power::RollBack, &revisions).unwrap() else { panic!("skipped") };
        assert_eq!(plan.to.controller_revision, "web-1");
        let warning = plan.warnings.last().unwrap();
        assert_eq!(warning.code, WarningCode::RevisionsSkipped);
        let named = ["web-planted-8 (revision 8)", "web-planted-7 (revision 7)", "revision 1"];
        assert!(named.iter().all(|name| warning.message.contains(name)), "{}", warning.message);
        // Who may patch could run the same without any revision, and is warned of it.
        assert_eq!(restored(decide(Power::Patch, &revisions)), 8);
        let none_left = decide(Power::RollBack, &revisions[1..]).unwrap_err();
        assert_eq!(none_left, Refusal::Planted { name: "web-planted-8".into() });
    }

    #[test]
    fn name_without_room_for_a_hash_is_named_as_the_cause() {
        let refused = |length: usize| {
            let mut live = daemonset("not yet");
            live.key.name = Name::parse(&"a".repeat(length)).unwrap();
            decide(&live, vec![revision(1, "a")], Target::Previous).unwrap_err()
        };
        assert_eq!(refused(242), Refusal::NotRecorded);
        for (length, may_pass, said) in [(243, true, "probably never will"), (252, false, " and never will")]
        {
            let refusal = refused(length);
            assert_eq!(
                (&refusal, refusal.may_pass()),
                (&Refusal::NotRecordable { name_length: length }, may_pass)
            );
            let text = refusal.to_string();
            assert!(text.contains(said) && text.contains(&format!("takes {length}")), "{text}");
            assert!(!text.contains("try again"), "{text}");
        }
    }

    #[test]
    fn refusals_speak_as_kubectl_does() {
        let says = |revisions, to| decide(&daemonset("b"), revisions, to).unwrap_err().to_string();
        let two = || vec![revision(1, "a"), revision(2, "b")];
        assert_eq!(says(two(), number(99)), "unable to find specified revision 99 in history");
        assert_eq!(says(two(), number(-1)), "unable to find specified revision -1 in history");
        assert_eq!(says(vec![revision(2, "b")], Target::Previous), "no last revision to roll back to");
    }

    #[test]
    fn a_number_that_two_revisions_have_is_refused_until_one_is_named() {
        let mut twin = revision(1, "c");
        twin.controller_revision = "web-twin".into();
        let revisions = || vec![revision(1, "a"), twin.clone(), revision(2, "b")];
        let refusal = decide(&daemonset("b"), revisions(), number(1)).unwrap_err();
        assert!(matches!(&refusal, Refusal::Ambiguous { names, .. } if *names == ["web-1", "web-twin"]));
        assert!(matches!(
            decide(&daemonset("b"), revisions(), Target::Previous),
            Err(Refusal::Ambiguous { .. })
        ));
        let named = Target::Revision(RevisionRef::ControllerRevision("web-twin".into()));
        assert_eq!(restored(decide(&daemonset("b"), revisions(), named)), 1);
    }

    #[test]
    fn the_running_revision_is_skipped_and_foreign_data_refused() {
        let decision = decide(&daemonset("b"), vec![revision(1, "a"), revision(2, "b")], number(2)).unwrap();
        assert!(matches!(decision, Decision::Skip { number: RevisionNumber(2), .. }));
        let mut foreign = revision(1, "a");
        foreign.template = Err(NotRestorable::NotReplacing);
        let refusal = decide(&daemonset("b"), vec![foreign, revision(2, "b")], Target::Previous).unwrap_err();
        assert!(matches!(refusal, Refusal::NotRestorable { .. }));
    }

    #[test]
    fn revisions_of_another_owner_do_not_exist() {
        let mut stranger = revision(1, "a");
        stranger.owner = Some("u2".into());
        let mut orphan = revision(3, "c");
        orphan.owner = None;
        let history = History::of(&daemonset("b"), [stranger, orphan, revision(2, "b")]);
        assert_eq!(history.revisions().len(), 1);
    }

    #[test]
    fn expected_revision_and_deletion_are_checked_first() {
        let mut live = daemonset("b");
        let history = History::of(&live, vec![revision(1, "a"), revision(2, "b")]);
        let mut expecting = request(number(99));
        expecting.expected_revision = Some(RevisionNumber(1));
        let refusal =
            plan(&live, &history, &expecting, Power::RollBack, FieldOwnership::Return, |_| Standing::Trusted)
                .unwrap_err();
        assert_eq!(refusal.to_string(), "expected revision 1 to be running, but revision 2 is");
        live.being_deleted = true;
        assert_eq!(
            plan(&live, &history, &expecting, Power::RollBack, FieldOwnership::Return, |_| Standing::Trusted)
                .unwrap_err(),
            Refusal::BeingDeleted
        );
    }

    #[test]
    fn what_the_caller_has_seen_must_hold() {
        let live = daemonset("b");
        let history = History::of(&live, vec![revision(1, "a"), revision(2, "b")]);
        let decide = |precondition| {
            let request = RollbackRequest { precondition, ..request(Target::Previous) };
            plan(&live, &history, &request, Power::RollBack, FieldOwnership::Return, |_| Standing::Trusted)
                .map(drop)
        };
        let version = |uid: &str, generation| Version { uid: uid.into(), generation };
        let (same, older) = (version(&live.uid, live.generation), version(&live.uid, live.generation - 1));
        let other = version("another", live.generation);
        let changed = || Err(Refusal::precondition_failed(&live));
        assert_eq!(decide(Precondition::Exists), Ok(()));
        assert_eq!(decide(Precondition::OneOf(vec![older.clone(), same])), Ok(()));
        assert_eq!(decide(Precondition::OneOf(vec![older, other])), changed());
        assert_eq!(decide(Precondition::OneOf(Vec::new())), changed());
    }

    #[test]
    fn warnings_say_what_will_happen_and_can_refuse() {
        let mut live = daemonset("b");
        live.annotations.insert(LAST_APPLIED.into(), "{}".into());
        live.min_ready_seconds = 30;
        live.status.number_available = 1;
        let history = History::of(&live, vec![revision(1, "a"), revision(2, "b")]);
        let mut careful = request(Target::Previous);
        careful.on_warning = OnWarning::Refuse { ignore: [WarningCode::Managed].into() };
        let Err(Refusal::Warned { warnings }) =
            plan(&live, &history, &careful, Power::RollBack, FieldOwnership::Return, |_| Standing::Trusted)
        else {
            panic!("not refused")
        };
        let codes: Vec<_> = warnings.iter().map(|warning| warning.code).collect();
        assert_eq!(codes, [WarningCode::LastAppliedNotRestored, WarningCode::MinReadySeconds]);
        live.strategy = UpdateStrategy::OnDelete;
        let again = request(Target::Previous);
        let decision =
            plan(&live, &history, &again, Power::RollBack, FieldOwnership::Return, |_| Standing::Trusted)
                .unwrap();
        let Decision::Restore(plan) = decision else { panic!("skipped") };
        let codes: Vec<_> = plan.warnings.iter().map(|warning| warning.code).collect();
        assert_eq!(codes, [WarningCode::LastAppliedNotRestored, WarningCode::OnDelete]);
    }

    #[test]
    fn warning_about_the_next_apply_depends_on_the_bookkeeping() {
        let manifest = |image: &str| {
            let spec = json!({"template": template(image).value()});
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web"}, "spec": spec})
        };
        let mut live = daemonset("b");
        live.annotations.insert(LAST_APPLIED.into(), manifest("b").to_string());
        let warning = |of_revision: Option<&str>, field_ownership| {
            let last_applied = of_revision.map(|image| manifest(image).to_string().into());
            let revisions = vec![Revision { last_applied, ..revision(1, "a") }, revision(2, "b")];
            let history = History::of(&live, revisions);
            let request = request(Target::Previous);
            let decision =
                plan(&live, &history, &request, Power::RollBack, field_ownership, |_| Standing::Trusted);
            let Decision::Restore(mut plan) = decision.unwrap() else { panic!("skipped") };
            assert_eq!(plan.warnings.len(), 1, "{:?}", plan.warnings);
            plan.warnings.remove(0)
        };
        let restored = warning(Some("a"), FieldOwnership::Return);
        assert_eq!(restored.code, WarningCode::LastApplied);
        assert!(restored.message.contains("back exactly"), "{}", restored.message);
        let missing = warning(None, FieldOwnership::Return);
        assert_eq!(missing.code, WarningCode::LastAppliedNotRestored);
        assert!(missing.message.contains("the revision carries no last-applied"), "{}", missing.message);
        let kept = warning(Some("a"), FieldOwnership::Keep);
        assert_eq!(kept.code, WarningCode::LastApplied);
        assert!(kept.message.contains("merges two pod templates"), "{}", kept.message);
    }

    #[test]
    fn a_revision_that_was_never_running_is_for_those_who_may_patch_anyway() {
        let live = daemonset("b");
        let history = History::of(&live, vec![revision(1, "a"), revision(2, "b")]);
        let decide = |power, standing| {
            plan(&live, &history, &request(Target::Previous), power, FieldOwnership::Return, |_| standing)
        };
        let codes = |power, standing| match decide(power, standing).unwrap() {
            Decision::Restore(plan) => plan.warnings.iter().map(|warning| warning.code).collect::<Vec<_>>(),
            Decision::Skip { .. } => panic!("skipped"),
        };
        let name = || "web-1".to_owned();
        assert_eq!(
            decide(Power::RollBack, Standing::Planted).unwrap_err(),
            Refusal::Planted { name: name() }
        );
        assert_eq!(
            decide(Power::RollBack, Standing::NotSeen).unwrap_err(),
            Refusal::NotSeen { name: name() }
        );
        assert_eq!(codes(Power::Patch, Standing::Planted), [WarningCode::NeverRunning]);
        assert_eq!(codes(Power::Patch, Standing::NotSeen), []);
        for power in [Power::RollBack, Power::Patch] {
            assert_eq!(codes(power, Standing::Unwatched), [WarningCode::NotWatched]);
            assert_eq!(codes(power, Standing::Trusted), []);
        }
    }
}
