use serde_json::json;

use super::*;
use crate::domain::{
    daemonset::FieldManager,
    fixtures::{daemonset, field_manager},
};

const EXACT: &str = " back exactly; a manifest that describes revision 1 changes nothing in the pod template";
const REMAIN: &str = "; at least these parts of revision 1 would remain: container helper-old";
const APPLY_FIRST: &str =
    "apply the manifest of revision 1 before any other: a later apply then removes what it no longer holds";

fn server(name: &str) -> FieldManager {
    FieldManager { applies: true, ..field_manager(name) }
}

fn client(name: &str) -> FieldManager {
    FieldManager { owns_last_applied: Some(true), ..field_manager(name) }
}

/// A DaemonSet whose live template has lost a container.
fn live(managers: &[FieldManager]) -> DaemonSet {
    let mut live = daemonset("b");
    live.field_managers = managers.to_vec();
    if managers.iter().any(|manager| manager.owns_last_applied == Some(true)) {
        live.annotations.insert(LAST_APPLIED.into(), "{}".into());
    }
    live
}

fn annotated(mut live: DaemonSet, key: &str, value: &str) -> DaemonSet {
    live.annotations.insert(key.into(), value.into());
    live
}

fn release(managers: &[FieldManager]) -> DaemonSet {
    annotated(live(managers), "meta.helm.sh/release-name", "web")
}

fn tracked(managers: &[FieldManager]) -> DaemonSet {
    annotated(live(managers), "argocd.argoproj.io/tracking-id", "shop")
}

fn labelled(mut live: DaemonSet, key: &str, value: &str) -> DaemonSet {
    live.labels.insert(key.into(), value.into());
    live
}

fn warnings(daemonset: &DaemonSet, bookkeeping: &Bookkeeping) -> Vec<Warning> {
    let containers = json!([{"name": "main", "image": "a"}, {"name": "helper-old", "image": "a"}]);
    let restored = Template::new(json!({"spec": {"containers": containers}}));
    Prediction { daemonset, number: RevisionNumber(1), restored: &restored, bookkeeping }.warnings()
}

fn one(daemonset: &DaemonSet, bookkeeping: &Bookkeeping) -> Warning {
    let mut warnings = warnings(daemonset, bookkeeping);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    warnings.remove(0)
}

#[test]
fn tools_that_apply_bring_back_exactly_what_was_live_once_their_records_are_restored() {
    let argo = "daemonsets/web is managed by Argo CD (shop): its next sync, which it may start by itself, brings the pod template that was live before the rollback";
    for (live, code, begins) in [
        (
            live(&[client("kubectl-client-side-apply")]),
            WarningCode::LastApplied,
            "daemonsets/web is managed by kubectl apply: the next 'kubectl apply' of the manifest that was live before the rollback brings its pod template",
        ),
        (
            live(&[server("portal")]),
            WarningCode::Managed,
            "daemonsets/web is managed by server-side apply (field manager portal): its next apply of the manifest that was live before the rollback brings its pod template",
        ),
        (tracked(&[server("argocd-controller")]), WarningCode::Managed, argo),
        (tracked(&[client("argocd-controller")]), WarningCode::Managed, argo),
        (
            live(&[server("kustomize-controller")]),
            WarningCode::Managed,
            "daemonsets/web is managed by Flux (field manager kustomize-controller): its next reconciliation, which it starts by itself, brings the pod template that was live before the rollback",
        ),
        (
            live(&[server("helm-controller")]),
            WarningCode::Managed,
            "daemonsets/web is managed by Flux (field manager helm-controller): the next upgrade of its HelmRelease brings the pod template that was live before the rollback",
        ),
        (
            release(&[server("helm")]),
            WarningCode::Managed,
            "daemonsets/web is managed by Helm (release web): the next 'helm upgrade' brings the pod template that was live before the rollback",
        ),
    ] {
        let warning = one(&live, &Bookkeeping::Restored);
        assert_eq!(warning.message, format!("{begins}{EXACT}"));
        assert_eq!((warning.code, warning.severity), (code, Severity::Warning));
        assert!(!warning.fix.is_empty() && !warning.fix.contains("by hand"), "{warning:?}");
    }
}

#[test]
fn ownership_that_is_kept_makes_conflicts_and_mixtures() {
    for (live, expected, fix) in [
        (
            live(&[server("portal")]),
            "its next apply of the manifest that was live before the rollback fails with a conflict that names rollbackd; a forced one, and any client-side apply, merges two pod templates",
            "change the manifest back to revision 1 before it is applied again; after the next apply remove by hand what remains",
        ),
        (
            release(&[server("helm")]),
            "the next 'helm upgrade' fails with a conflict that names rollbackd; a forced one, and any client-side apply, merges two pod templates",
            "roll the release back as well: helm rollback web; after the next apply remove by hand what remains",
        ),
        (
            tracked(&[server("argocd-controller")]),
            "its next sync, which it may start by itself, merges two pod templates",
            "revert the change in the repository that it syncs from, or switch its automatic sync off before; after the next apply remove by hand what remains",
        ),
        (
            live(&[client("kubectl-client-side-apply")]),
            "the next 'kubectl apply' of the manifest that was live before the rollback merges two pod templates",
            APPLY_FIRST,
        ),
    ] {
        let warning = one(&live, &Bookkeeping::Kept);
        assert!(warning.message.ends_with(&format!(": {expected}{REMAIN}")), "{}", warning.message);
        assert_eq!(warning.fix, fix);
    }
}

#[test]
fn record_of_client_side_apply_that_is_not_restored_leads_to_a_mixture() {
    let not_restored = Bookkeeping::NotRestored("revision 1 has none.".into());
    let by_kubectl = live(&[client("kubectl-client-side-apply")]);
    let warning = one(&by_kubectl, &not_restored);
    let message = format!(
        "the annotation {LAST_APPLIED} of daemonsets/web can't be restored: revision 1 has none; the next client-side 'kubectl apply' merges two pod templates{REMAIN}"
    );
    assert_eq!(
        (warning.code, warning.message, warning.fix.as_str()),
        (WarningCode::LastAppliedNotRestored, message, APPLY_FIRST)
    );
    let both = warnings(&tracked(&[client("argocd-controller")]), &not_restored);
    assert_eq!(
        both[0].message,
        format!(
            "daemonsets/web is managed by Argo CD (shop): its next sync, which it may start by itself, merges two pod templates{REMAIN}"
        )
    );
    assert_eq!(both[1].code, WarningCode::LastAppliedNotRestored);
    // A server-side apply goes by the ownership.
    let server = warnings(&live(&[server("portal")]), &not_restored);
    assert!(server[0].message.ends_with(EXACT), "{}", server[0].message);
}

#[test]
fn what_came_back_stays_where_two_managers_apply() {
    let two = warnings(&live(&[server("a"), server("b")]), &Bookkeeping::Restored);
    for (warning, name) in two.iter().zip(["a", "b"]) {
        let message = format!(
            "daemonsets/web is managed by server-side apply (field manager {name}): its next apply of the manifest that was live before the rollback merges two pod templates{REMAIN}"
        );
        assert_eq!(warning.message, message);
    }
    // Client-side apply goes by its annotation.
    let mixed = warnings(&live(&[server("a"), client("kubectl")]), &Bookkeeping::Restored);
    assert!(mixed[0].message.ends_with(REMAIN) && mixed[1].message.ends_with(EXACT), "{mixed:?}");
    let mut same = live(&[server("a"), server("b")]);
    same.template = Template::new(json!({"spec": {"containers": [
        {"name": "main", "image": "b"}, {"name": "helper-old", "image": "b"},
    ]}}));
    for warning in warnings(&same, &Bookkeeping::Restored) {
        assert!(warning.message.ends_with(EXACT), "{}", warning.message);
    }
}

#[test]
fn helm_3_merges_against_its_stored_release_whatever_is_returned() {
    for bookkeeping in [Bookkeeping::Restored, Bookkeeping::Kept] {
        for managers in [vec![], vec![field_manager("helm")]] {
            let warning = one(&release(&managers), &bookkeeping);
            let message = format!(
                "daemonsets/web is managed by Helm (release web): the next 'helm upgrade' merges against the stored release, which holds the pod template that was live before the rollback{REMAIN}"
            );
            assert_eq!(warning.message, message);
            assert_eq!(warning.fix, "roll the release back as well: helm rollback web");
        }
    }
    // A release of Flux is upgraded by Flux.
    let warning = one(&release(&[field_manager("helm-controller")]), &Bookkeeping::Restored);
    let message = format!(
        "daemonsets/web is managed by Flux (field manager helm-controller): the next upgrade of its HelmRelease merges two pod templates{REMAIN}"
    );
    assert_eq!(warning.message, message);
}

#[test]
fn of_an_apply_that_is_not_tested_nothing_more_than_probably_is_said() {
    for (live, message) in [
        (tracked(&[]), "Argo CD (shop): its next sync, which it may start by itself, will"),
        (labelled(live(&[]), "kapp.k14s.io/app", "17"), "kapp (app 17): it will"),
        (labelled(live(&[]), "objectset.rio.cattle.io/hash", "x"), "Rancher: it will"),
        (labelled(live(&[]), "addonmanager.kubernetes.io/mode", "Reconcile"), "the add-on manager: it will"),
    ] {
        for bookkeeping in [Bookkeeping::Restored, Bookkeeping::Kept] {
            let warning = one(&live, &bookkeeping);
            let expected =
                format!("daemonsets/web is managed by {message} probably restore its own pod template");
            assert_eq!(warning.message, expected);
            assert_eq!((warning.code, warning.severity), (WarningCode::Managed, Severity::Warning));
        }
    }
}

#[test]
fn rollback_of_an_object_that_an_operator_controls_is_blocked() {
    let mut owned = live(&[server("portal")]);
    owned.controller = Some("Agent/web".into());
    let both = warnings(&owned, &Bookkeeping::Restored);
    assert_eq!(both[0].severity, Severity::Blocking);
    assert_eq!(
        both[0].message,
        "daemonsets/web is controlled by Agent/web: its operator will probably restore its own pod template within seconds, so that the rollback will not last"
    );
    assert_eq!(both[0].fix, "change Agent/web instead");
    assert_eq!((both.len(), both[1].severity), (2, Severity::Warning));
}

#[test]
fn ids_are_shown_without_control_characters_and_not_in_full_length() {
    let long = tracked(&[]);
    let long = annotated(long, "argocd.argoproj.io/tracking-id", &"\u{1b}[2J".repeat(10_000));
    let message = one(&long, &Bookkeeping::Restored).message;
    assert!(message.len() < 400 && !message.contains('\u{1b}'), "{message}");
    assert!(warnings(&live(&[]), &Bookkeeping::Kept).is_empty());
}

#[test]
fn fields_that_others_wrote_are_a_conflict_for_an_apply_that_does_not_force() {
    let conflict =
        "; unless it is forced, it fails with a conflict where it changes fields that kubectl-set wrote";
    let set = || field_manager("kubectl-set");
    let says = |daemonset: &DaemonSet| one(daemonset, &Bookkeeping::Restored).message;
    assert!(says(&live(&[server("kubectl"), set()])).ends_with(conflict));
    for other in [
        live(&[server("kubectl")]),
        live(&[server("kubectl"), field_manager(FIELD_MANAGER)]),
        live(&[client("kubectl-client-side-apply"), set()]),
        tracked(&[server("argocd-controller"), set()]),
    ] {
        assert!(!says(&other).contains("conflict"), "{other:?}");
    }
}

#[test]
fn client_side_apply_of_a_revision_that_was_changed_after_its_apply_is_not_called_exact() {
    let changed = Bookkeeping::Changed("spec.containers.image".into());
    let message = one(&live(&[client("kubectl-client-side-apply")]), &changed).message;
    let said = "brings its pod template back; revision 1 was changed after its manifest was applied (spec.containers.image), and what only that change had may remain";
    assert!(message.ends_with(said), "{message}");
    // Server-side apply goes by the fields, not by the annotation.
    assert!(one(&live(&[server("kubectl")]), &changed).message.contains(EXACT));
}
