use serde_json::json;

use super::*;
use crate::domain::fixtures::{daemonset, field_manager};

/// What is on the object.
enum On {
    Label(&'static str, &'static str),
    Annotation(&'static str, &'static str),
    Controller(&'static str),
    /// `Apply` of the template.
    Apply(&'static str),
    /// `Apply` of something else.
    ApplyElsewhere(&'static str),
    /// `Update` of the template.
    Update(&'static str),
    /// `Update` of the template and of the annotation that keeps the last manifest.
    ClientSide(&'static str),
    /// `Apply` of that annotation alone.
    KubectlLastApplied,
}

fn object(all: &[On]) -> DaemonSet {
    let mut object = daemonset("a");
    for on in all {
        let manager = match *on {
            On::Label(key, value) => {
                object.labels.insert(key.into(), value.into());
                continue;
            }
            On::Annotation(key, value) => {
                object.annotations.insert(key.into(), value.into());
                continue;
            }
            On::Controller(name) => {
                object.controller = Some(name.into());
                continue;
            }
            On::Apply(name) => FieldManager { applies: true, ..field_manager(name) },
            On::ApplyElsewhere(name) => {
                FieldManager { applies: true, owns_template: Some(false), ..field_manager(name) }
            }
            On::Update(name) => field_manager(name),
            On::ClientSide(name) => {
                object.annotations.insert(LAST_APPLIED.into(), "{}".into());
                FieldManager { owns_last_applied: Some(true), ..field_manager(name) }
            }
            On::KubectlLastApplied => {
                object.annotations.insert(LAST_APPLIED.into(), "{}".into());
                FieldManager {
                    applies: true,
                    owns_template: Some(false),
                    owns_last_applied: Some(true),
                    ..field_manager("kubectl-last-applied")
                }
            }
        };
        object.field_managers.push(manager);
    }
    object
}

/// Tool, id and field manager, as JSON shows them.
fn shown(object: &DaemonSet) -> serde_json::Value {
    let all = object.managed_by().into_iter().map(|by| json!([by.tool, by.id, by.field_manager]));
    all.collect()
}

const ARGO: On = On::Annotation("argocd.argoproj.io/tracking-id", "shop");
const RELEASE: On = On::Annotation("meta.helm.sh/release-name", "web");

#[test]
fn each_tool_is_recognised_by_what_it_leaves_on_the_object() {
    let last_applied = On::Annotation(LAST_APPLIED, "{}");
    let kustomization = || On::Label("kustomize.toolkit.fluxcd.io/name", "infra");
    for (on, expected) in [
        (vec![], json!([])),
        (vec![On::Controller("Agent/web")], json!([["operator", "Agent/web", null]])),
        (vec![ARGO], json!([["Argo CD", "shop", null]])),
        (vec![On::Apply("argocd-controller")], json!([["Argo CD", null, "argocd-controller"]])),
        (vec![On::Label("app.kubernetes.io/instance", "shop")], json!([])),
        (vec![kustomization()], json!([["Flux", "infra", null]])),
        (vec![On::Apply("kustomize-controller")], json!([["Flux", null, "kustomize-controller"]])),
        (
            vec![On::Label("helm.toolkit.fluxcd.io/name", "web"), On::Update("helm-controller")],
            json!([["Flux", "web", "helm-controller"]]),
        ),
        (vec![RELEASE], json!([["Helm", "web", null]])),
        (vec![RELEASE, On::Update("helm")], json!([["Helm", "web", "helm"]])),
        (vec![RELEASE, On::Apply("helm")], json!([["Helm", "web", "helm"]])),
        (vec![On::Label("kapp.k14s.io/app", "17")], json!([["kapp", "17", null]])),
        (vec![On::Label("objectset.rio.cattle.io/hash", "x")], json!([["Rancher", null, null]])),
        (
            vec![On::Annotation("objectset.rio.cattle.io/owner-name", "fleet")],
            json!([["Rancher", "fleet", null]]),
        ),
        (
            vec![On::Label("addonmanager.kubernetes.io/mode", "Reconcile")],
            json!([["add-on manager", null, null]]),
        ),
        (vec![On::Label("addonmanager.kubernetes.io/mode", "EnsureExists")], json!([])),
        (vec![On::Apply("portal")], json!([["server-side apply", "portal", "portal"]])),
        (vec![On::ApplyElsewhere("labeller")], json!([])),
        (vec![On::Update("kubectl-set")], json!([])),
        (vec![last_applied], json!([["kubectl apply", null, null]])),
        (
            vec![On::ClientSide("kubectl-client-side-apply")],
            json!([["kubectl apply", null, "kubectl-client-side-apply"]]),
        ),
    ] {
        let object = object(&on);
        assert_eq!(shown(&object), expected);
        // The watch keeps what is looked at.
        assert_eq!(object.clone().watched().managed_by(), object.managed_by());
    }
}

#[test]
fn all_tools_are_named_and_each_of_them_once() {
    for (on, expected) in [
        // Argo CD in client-side mode keeps the annotation of kubectl.
        (vec![ARGO, On::ClientSide("argocd-controller")], json!([["Argo CD", "shop", "argocd-controller"]])),
        // Both apply.
        (
            vec![On::ClientSide("kubectl-client-side-apply"), On::Apply("argocd-controller")],
            json!([
                ["Argo CD", null, "argocd-controller"],
                ["kubectl apply", null, "kubectl-client-side-apply"],
            ]),
        ),
        // After a migration kubectl keeps the annotation with an Apply manager of its own.
        (
            vec![On::KubectlLastApplied, On::Apply("kubectl")],
            json!([["server-side apply", "kubectl", "kubectl"]]),
        ),
        // The manager that applies is named, not the one that wrote later.
        (
            vec![On::Update("argocd-server"), On::Apply("argocd-controller")],
            json!([["Argo CD", null, "argocd-controller"]]),
        ),
        (
            vec![On::Apply("a"), On::Apply("b"), On::Apply("a")],
            json!([["server-side apply", "a", "a"], ["server-side apply", "b", "b"],]),
        ),
        // The annotation right after a rollback that wrote it.
        (vec![On::ClientSide(FIELD_MANAGER)], json!([["kubectl apply", null, null]])),
        (
            vec![
                On::Apply("portal"),
                On::ClientSide("kubectl-client-side-apply"),
                On::Label("addonmanager.kubernetes.io/mode", "Reconcile"),
                On::Label("objectset.rio.cattle.io/hash", "x"),
                On::Label("kapp.k14s.io/app", "17"),
                RELEASE,
                On::Apply("helm-controller"),
                ARGO,
                On::Controller("Agent/web"),
            ],
            json!([
                ["operator", "Agent/web", null],
                ["Argo CD", "shop", null],
                ["Flux", null, "helm-controller"],
                ["Helm", "web", null],
                ["kapp", "17", null],
                ["Rancher", null, null],
                ["add-on manager", null, null],
                ["server-side apply", "portal", "portal"],
                ["kubectl apply", null, "kubectl-client-side-apply"],
            ]),
        ),
    ] {
        assert_eq!(shown(&object(&on)), expected);
    }
}

#[test]
fn a_tool_has_one_name_in_json_and_in_sentences() {
    for tool in [
        Tool::ArgoCd,
        Tool::Flux,
        Tool::Helm,
        Tool::KubectlApply,
        Tool::ServerSideApply,
        Tool::Kapp,
        Tool::Rancher,
        Tool::AddonManager,
        Tool::Operator,
    ] {
        assert_eq!(serde_json::to_value(tool).unwrap(), tool.to_string());
    }
}

#[test]
fn a_manager_of_the_template_applies_it_on_the_server_or_on_the_client() {
    let object = object(&[
        On::Apply("server"),
        On::ApplyElsewhere("label"),
        On::ClientSide("client"),
        On::Update("other"),
        On::ClientSide(FIELD_MANAGER),
    ]);
    let applies = |name| object.applies_template(name);
    assert_eq!(applies("server"), Some(Applies::ServerSide));
    assert_eq!(applies("client"), Some(Applies::ClientSide));
    for name in ["label", "other", "unknown", FIELD_MANAGER] {
        assert_eq!(applies(name), None, "{name}");
    }
}
