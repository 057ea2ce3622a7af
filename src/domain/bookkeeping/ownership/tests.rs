use super::*;

fn entry(manager: &str, operation: &str, template: Value, annotations: &[&str]) -> Value {
    let annotations: Map<String, Value> =
        annotations.iter().map(|name| (format!("f:{name}"), json!({}))).collect();
    json!({
        "manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
        "time": "2026-01-01T00:00:00Z",
        "fieldsV1": {"f:metadata": {"f:annotations": annotations}, "f:spec": {"f:template": template}},
    })
}

fn fields(entries: &[Value]) -> ManagedFields {
    ManagedFields::new(entries.iter().map(raw).collect())
}

/// What an entry has of the template afterwards.
fn template(entries: &ManagedFields, manager: &str) -> Value {
    let found = entries.0.iter().filter_map(|raw| Entry::read(raw)).find(|entry| entry.manager == manager);
    found.and_then(|entry| entry.template().cloned()).map_or(Value::Null, Value::Object)
}

fn container(name: &str, fields: Value) -> Value {
    json!({"f:spec": {"f:containers": {format!("k:{{\"name\":\"{name}\"}}"): fields}}})
}

const ROLLBACK: &str = "rollbackd.dev/rollback";

#[test]
fn changed_field_goes_back_to_its_apply_managers() {
    let image = || container("main", json!({"f:image": {}}));
    let before = [
        entry("kubectl", "Apply", image(), &[]),
        entry("flux", "Apply", image(), &[]),
        entry("kubectl-set", "Update", image(), &[]),
    ];
    let now = [
        entry("kubectl", "Apply", container("main", json!({".": {}, "f:name": {}})), &[]),
        entry(FIELD_MANAGER, "Update", image(), &[ROLLBACK]),
    ];
    let returned = Ownership::of(&fields(&before)).returned(&fields(&now)).unwrap();
    let whole = container("main", json!({".": {}, "f:name": {}, "f:image": {}}));
    assert_eq!(template(&returned, "kubectl"), whole);
    assert_eq!(template(&returned, "flux"), image());
    assert_eq!(template(&returned, "kubectl-set"), Value::Null);
    assert_eq!(template(&returned, FIELD_MANAGER), Value::Null);
    let ours: Value = serde_json::from_str(returned.0[1].get()).unwrap();
    assert_eq!(ours["fieldsV1"], json!({"f:metadata": {"f:annotations": {"f:rollbackd.dev/rollback": {}}}}));
    assert_eq!(ours["time"], "2026-01-01T00:00:00Z");
    // Nothing is left to return.
    assert!(Ownership::of(&fields(&before)).returned(&returned).is_none());
}

#[test]
fn field_of_client_side_apply_goes_back_with_last_applied() {
    let image = || container("main", json!({"f:image": {}}));
    let before = [entry("kubectl-client-side-apply", "Update", image(), &[LAST_APPLIED])];
    let now = [entry(FIELD_MANAGER, "Update", image(), &[ROLLBACK, LAST_APPLIED])];
    let returned = Ownership::of(&fields(&before)).returned(&fields(&now)).unwrap();
    assert_eq!(template(&returned, "kubectl-client-side-apply"), image());
    assert!(Ownership::of(&returned).0[0].last_applied);
    assert_eq!(template(&returned, FIELD_MANAGER), Value::Null);
}

#[test]
fn field_of_another_update_manager_stays() {
    let image = || container("main", json!({"f:image": {}}));
    let before = [
        entry("kubectl", "Apply", container("main", json!({".": {}, "f:name": {}})), &[]),
        entry("kubectl-set", "Update", image(), &[]),
    ];
    let now = [before[0].clone(), entry(FIELD_MANAGER, "Update", image(), &[])];
    let ownership = Ownership::of(&fields(&before));
    assert!(ownership.returned(&fields(&now)).is_none());
    assert!(ownership.kept(&fields(&now)).is_empty());
}

#[test]
fn item_that_came_back_moves_whole_to_the_only_applier() {
    let old = || {
        let env = json!({"k:{\"name\":\"OLD\"}": {".": {}, "f:name": {}, "f:value": {}}});
        container("helper", json!({".": {}, "f:name": {}, "f:image": {}, "f:env": env}))
    };
    let kept = container("main", json!({".": {}, "f:name": {}}));
    let before = [entry("kubectl", "Apply", kept.clone(), &[])];
    let now = [before[0].clone(), entry(FIELD_MANAGER, "Update", old(), &[])];
    let ownership = Ownership::of(&fields(&before));
    let returned = ownership.returned(&fields(&now)).unwrap();
    let theirs = template(&returned, "kubectl");
    assert_eq!(theirs["f:spec"]["f:containers"].as_object().unwrap().len(), 2);
    assert_eq!(template(&returned, FIELD_MANAGER), Value::Null);
    assert!(ownership.kept(&fields(&now)).is_empty());

    // With two appliers it stays whole, and is named.
    let before = [before[0].clone(), entry("flux", "Apply", kept, &[])];
    let ownership = Ownership::of(&fields(&before));
    assert!(ownership.returned(&fields(&now)).is_none());
    assert_eq!(ownership.kept(&fields(&now)), ["spec.containers[name=helper]"]);
}

#[test]
fn restarted_at_stays_and_is_named() {
    let restarted = json!({"f:metadata": {"f:annotations": {RESTARTED_AT: {}}}});
    let before = [entry("kubectl", "Apply", container("main", json!({".": {}})), &[])];
    let now = [before[0].clone(), entry(FIELD_MANAGER, "Update", restarted, &[])];
    let ownership = Ownership::of(&fields(&before));
    assert!(ownership.returned(&fields(&now)).is_none());
    assert_eq!(ownership.kept(&fields(&now)), ["metadata.annotations.kubectl.kubernetes.io/restartedAt"]);
}

#[test]
fn other_entries_are_copied_and_a_lost_entry_comes_back() {
    let image = || container("main", json!({"f:image": {}}));
    let mut status = entry("kube-controller-manager", "Update", json!({}), &[]);
    status["subresource"] = json!("status");
    let odd =
        json!({"manager": "kubectl", "operation": "Apply", "apiVersion": "apps/v1beta9", "fieldsV1": 7});
    let before = [entry("kubectl", "Apply", image(), &[]), status.clone(), odd.clone()];
    let now = [entry(FIELD_MANAGER, "Update", image(), &[]), status.clone(), odd.clone()];
    let returned = Ownership::of(&fields(&before)).returned(&fields(&now)).unwrap();
    let values: Vec<Value> = returned.0.iter().map(|raw| serde_json::from_str(raw.get()).unwrap()).collect();
    assert_eq!(values[1..3], [status, odd]);
    assert_eq!(values[3], {
        let mut back = entry("kubectl", "Apply", image(), &[]);
        back["fieldsV1"].as_object_mut().unwrap().remove("f:metadata");
        back
    });
}

#[test]
fn what_is_stored_reads_back() {
    let before = [entry("kubectl", "Apply", container("main", json!({"f:image": {}})), &[LAST_APPLIED])];
    let ownership = Ownership::of(&fields(&before));
    let text = serde_json::to_string(&ownership).unwrap();
    assert_eq!(serde_json::from_str::<Ownership>(&text).unwrap(), ownership);
}
