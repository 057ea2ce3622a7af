//! Admission has the last word: it denies a rollback, changes what it restores, or takes it back.

use serde_json::{Value, json};

use crate::support::{
    space::{Space, daemonset},
    twins::{Twins, plant},
    wait::until,
};

const GROUP: &str = "admissionregistration.k8s.io";

/// Makes a policy for updates of DaemonSets in both namespaces and nowhere else.
async fn policy(twins: &Twins, version: &str, kind: &str, spec: Value, binding: Value) {
    let name = format!("{}.rollbackd.test", twins.ours.namespace);
    let api_version = format!("{GROUP}/{version}");
    let mut policy = json!({
        "apiVersion": api_version, "kind": kind, "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [
                {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["daemonsets"]},
            ]},
        },
    });
    extend(&mut policy["spec"], spec);
    let namespaces = [&twins.ours.namespace, &twins.theirs.namespace];
    let mut bound = json!({
        "apiVersion": api_version, "kind": format!("{kind}Binding"), "metadata": {"name": name},
        "spec": {
            "policyName": name,
            "matchResources": {"namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces},
            ]}},
        },
    });
    extend(&mut bound["spec"], binding);
    twins.ours.kubectl.create(&policy).await;
    twins.ours.kubectl.create(&bound).await;
}

fn extend(into: &mut Value, with: Value) {
    let (Value::Object(into), Value::Object(with)) = (into, with) else { panic!("objects") };
    into.extend(with);
}

/// Waits until what the API server answers to a rollback by kubectl that is only tried fits.
async fn in_force(space: &Space, fits: impl Fn(&str) -> bool) {
    // A change that admission sees: kubectl itself shows only what was before.
    let change =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "img:1"}]}}}});
    let change = change.to_string();
    let args = ["patch", "daemonset", "agent", "--dry-run=server", "-o", "json", "-p", &change];
    until("the policy to be in force", async || {
        let printed = space.kubectl.run(&args).await;
        let said = format!("{}{}", printed.stdout, printed.stderr);
        if fits(&said) { Ok(()) } else { Err(said) }
    })
    .await;
}

/// The version of the API in which mutating policies can be made, if there is one.
async fn mutating(twins: &Twins) -> Option<String> {
    let listed = twins.ours.kubectl.ok(&["api-resources", "--api-group", GROUP, "--no-headers"]).await;
    let line = listed.lines().find(|line| line.starts_with("mutatingadmissionpolicies "))?;
    let version = line.split_whitespace().find_map(|word| word.strip_prefix(&format!("{GROUP}/")))?;
    Some(version.to_owned())
}

fn mutation(expression: &str) -> Value {
    json!({
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
    })
}

#[tokio::test]
#[ignore = "needs admission policies"]
async fn a_policy_that_denies_it_is_quoted_and_nothing_is_changed() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    let spec = json!({"validations": [{
        "expression": "object.spec.template.spec.containers.all(c, c.image != 'img:1')",
        "message": "img:1 has a hole, see the postmortem",
    }]});
    let deny = json!({"validationActions": ["Deny"]});
    policy(&twins, "v1", "ValidatingAdmissionPolicy", spec, deny).await;
    for space in [&twins.ours, &twins.theirs] {
        in_force(space, |said| said.contains("see the postmortem")).await;
    }
    let answer = twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    assert!(answer.text.contains("denied request: img:1 has a hole, see the postmortem"), "{answer:?}");
    assert_eq!(answer.status, 422);
    twins.undo(&["--to-revision=1", "--dry-run=server"], json!({"toRevision": 1, "dryRun": true})).await;

    // To the previous one kubectl says "revision 0", we say which one that is.
    let theirs = twins.theirs.kubectl.run(&["rollout", "undo", "daemonset/agent"]).await;
    let problem = twins.rollbackd.api.post(&twins.path(), &json!({})).await;
    let problem = problem.problem(422, "refused-by-api-server");
    let detail = problem["detail"].as_str().unwrap();
    assert_eq!(
        theirs.stderr,
        format!("error: {}\n", detail.replace("restoring revision 1:", "restoring revision 0:"))
    );

    let api = &twins.rollbackd.api;
    let failed = ["rollback.requested", "rollback.failed"];
    let expected = [&failed[..], &["rollback.refused"], &failed].concat();
    assert_eq!(api.actions(&twins.ours.namespace).await, expected);
    let audit = api.audit(&twins.ours.namespace).await;
    assert_eq!((&audit[2]["dryRun"], &audit[2]["outcome"]), (&json!(true), &json!("refused")));
    assert_eq!((&audit[4]["message"], &audit[4]["outcome"]), (&problem["detail"], &json!("failure")));
    let listed = api.get(&format!("/rollbacks?namespace={}", twins.ours.namespace)).await.expect(200);
    assert!(listed["items"].as_array().unwrap().iter().all(|rollback| rollback["state"] == "failed"));
}

#[tokio::test]
#[ignore = "needs admission policies"]
async fn a_policy_that_changes_it_makes_a_new_revision_of_it() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    let Some(version) = mutating(&twins).await else {
        println!("skipped: this Kubernetes has no mutating admission policies switched on");
        return;
    };
    let spec = mutation(
        "Object{spec: Object.spec{template: Object.spec.template{metadata: Object.spec.template.metadata{annotations: {'seen': 'yes'}}}}}",
    );
    policy(&twins, &version, "MutatingAdmissionPolicy", spec, json!({})).await;
    for space in [&twins.ours, &twins.theirs] {
        in_force(space, |said| said.contains(r#""seen": "yes""#)).await;
    }
    let api = &twins.rollbackd.api;
    let preview = api.post(&twins.path(), &json!({"dryRun": true})).await.expect(200);
    let changed: Vec<&Value> =
        preview["diff"]["changes"].as_array().unwrap().iter().map(|change| &change["path"]).collect();
    assert_eq!(changed, ["/metadata/annotations", "/spec/containers/0/image"]);

    let answer = twins.undo(&["--to-revision=1"], json!({"toRevision": 1})).await;
    let record = twins.record(&answer).await;
    let audit = api.audit(&twins.ours.namespace).await;
    let message =
        "rolled back; admission changed the pod template on its way, so that it becomes a new revision";
    assert_eq!(audit[2]["message"], message);
    // It is not mistaken for somebody else's change.
    let ended = api.rollback_in(record["id"].as_str().unwrap(), &["succeeded"]).await;
    assert_eq!((&ended["to"]["revision"], &ended["newRevision"]), (&json!(1), &json!(3)));
    let numbers = twins.ours.revisions().await;
    assert_eq!(numbers.iter().map(|revision| &revision["revision"]).collect::<Vec<_>>(), [1, 2, 3]);
}

/// As after an upgrade to a version of Kubernetes in which a field has got a default.
#[tokio::test]
#[ignore = "needs the defaults of a real API server"]
async fn field_that_the_api_server_filled_in_is_not_put_down_to_admission() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    twins
        .both(async |space| {
            plant(space, "agent-older", 5, |data| {
                let spec = &mut data["spec"]["template"]["spec"];
                spec.as_object_mut().unwrap().remove("dnsPolicy").expect("it has a default");
                let container = spec["containers"][0].as_object_mut().unwrap();
                container.remove("terminationMessagePath").expect("it has a default");
                container.insert("image".into(), json!("img:older"));
            })
            .await;
        })
        .await;
    let answer = twins.undo(&["--to-revision=5"], json!({"toRevision": 5})).await;
    assert_eq!(answer.status, 202);
    let audit = twins.rollbackd.api.audit(&twins.ours.namespace).await;
    let applied = audit.iter().find(|entry| entry["action"] == "rollback.applied").unwrap();
    let message = "rolled back; fields were filled in that the revision does not hold, probably defaults of the API server that are newer than it (spec.containers[0].terminationMessagePath, spec.dnsPolicy), so that it becomes a new revision";
    assert_eq!(applied["message"], message);
}

#[tokio::test]
#[ignore = "needs admission policies"]
async fn a_policy_that_takes_it_back_leaves_nothing_changed() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    let Some(version) = mutating(&twins).await else {
        println!("skipped: this Kubernetes has no mutating admission policies switched on");
        return;
    };
    let spec = mutation(
        "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'main', image: 'img:2'}]}}}}",
    );
    policy(&twins, &version, "MutatingAdmissionPolicy", spec, json!({})).await;
    for space in [&twins.ours, &twins.theirs] {
        in_force(space, |said| said.contains(r#""image": "img:2""#)).await;
    }
    // kubectl says that it has rolled back.
    let printed = twins.theirs.kubectl.ok(&["rollout", "undo", "daemonset/agent"]).await;
    assert_eq!(printed, "daemonset.apps/agent rolled back\n");
    let api = &twins.rollbackd.api;
    let preview = api.post(&twins.path(), &json!({"dryRun": true})).await.expect(200);
    assert_eq!((&preview["skipped"], &preview["diff"]["changes"]), (&json!(true), &json!([])));
    let skipped = api.post(&twins.path(), &json!({})).await.expect(200);
    let message =
        "nothing has changed: as the API server admits it, the pod template of revision 1 is the running one";
    assert_eq!((&skipped["state"], &skipped["message"]), (&json!("skipped"), &json!(message)));
    assert_eq!(preview["message"], format!("{message} (server dry run)"));
    twins.same_objects().await;
    let actions = ["rollback.dryRun", "rollback.requested", "rollback.skipped"];
    assert_eq!(api.actions(&twins.ours.namespace).await, actions);
}

#[tokio::test]
#[ignore = "needs admission policies"]
async fn a_policy_that_warns_is_heard() {
    let twins = Twins::of(&["img:1", "img:2"]).await;
    let spec = json!({"validations": [{
        "expression": "!object.spec.template.spec.containers.exists(it, it.image == 'img:1')",
        "message": "img:1 has \"a hole\"",
    }]});
    policy(&twins, "v1", "ValidatingAdmissionPolicy", spec, json!({"validationActions": ["Warn"]})).await;
    for space in [&twins.ours, &twins.theirs] {
        in_force(space, |said| said.contains("a hole")).await;
    }
    let api = &twins.rollbackd.api;
    let preview = api.post(&twins.path(), &json!({"dryRun": true})).await.expect(200);
    let warning = &preview["warnings"][0];
    assert_eq!(warning["code"], "api-server");
    assert!(warning["message"].as_str().unwrap().ends_with("img:1 has \"a hole\""), "{warning}");
    for dry_run in [true, false] {
        let careful = json!({"failOnWarning": true, "dryRun": dry_run});
        let problem = api.post(&twins.path(), &careful).await.problem(422, "warned");
        assert_eq!(problem["warnings"], preview["warnings"]);
    }
    assert_eq!(twins.rollbackd.faults.patches(), 0);
    let ignoring = json!({"failOnWarning": true, "ignoreWarnings": ["api-server"], "dryRun": true});
    let ignored = api.post(&twins.path(), &ignoring).await.expect(200);
    assert_eq!(ignored["warnings"], preview["warnings"]);
    // kubectl prints it, too.
    let answer = twins.undo(&[], json!({})).await;
    assert_eq!(twins.record(&answer).await["warnings"], preview["warnings"]);
    // Nothing is said of the way back.
    let back = api.post(&twins.path(), &json!({"failOnWarning": true})).await.expect(202);
    assert_eq!(back["warnings"], json!([]));
}

#[tokio::test]
#[ignore = "needs admission policies"]
async fn rollback_is_made_without_last_applied_where_a_policy_refuses_to_change_it() {
    const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let twins = Twins::of(&["img:1"]).await;
    let space = &twins.ours;
    for image in ["img:1", "img:2"] {
        space.kubectl.apply(&daemonset("applied", image)).await;
        space.observed("applied").await;
    }
    let spec = json!({"validations": [{
        "expression": format!(
            "!has(oldObject.metadata.annotations) || !('{LAST_APPLIED}' in oldObject.metadata.annotations) || (has(object.metadata.annotations) && object.metadata.annotations['{LAST_APPLIED}'] == oldObject.metadata.annotations['{LAST_APPLIED}'])"
        ),
        "message": "last-applied is frozen",
    }]});
    policy(&twins, "v1", "ValidatingAdmissionPolicy", spec, json!({"validationActions": ["Deny"]})).await;
    let other = format!("{LAST_APPLIED}={{}}");
    let change = ["annotate", "daemonset", "applied", "--overwrite", "--dry-run=server", &other];
    until("the policy to be in force", async || {
        let printed = space.kubectl.run(&change).await;
        if printed.stderr.contains("last-applied is frozen") { Ok(()) } else { Err(printed) }
    })
    .await;
    let before = space.kubectl.get("daemonset", "applied").await;
    let api = &twins.rollbackd.api;
    let path = format!("{}/rollback", space.path("applied"));
    let codes = |answer: &Value| -> Vec<String> {
        let warnings = answer["warnings"].as_array().cloned().unwrap_or_default();
        warnings.iter().map(|warning| warning["code"].as_str().unwrap().to_owned()).collect()
    };
    let preview = api.post(&path, &json!({"dryRun": true})).await.expect(200);
    assert_eq!(codes(&preview), ["last-applied-not-restored"]);
    let made = api.post(&path, &json!({})).await.expect(202);
    assert_eq!(codes(&made), ["last-applied-not-restored"]);
    let after = space.kubectl.get("daemonset", "applied").await;
    assert_eq!(after["spec"]["template"]["spec"]["containers"][0]["image"], "img:1");
    let annotation = |object: &Value| object["metadata"]["annotations"][LAST_APPLIED].clone();
    assert_eq!(annotation(&after), annotation(&before));
}
