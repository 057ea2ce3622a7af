//! Objects for unit tests.

use std::collections::BTreeMap;

use serde_json::json;

use super::{
    daemonset::{Counts, DaemonSet, UpdateStrategy},
    key::{Key, Name, Namespace},
    revision::{Revision, RevisionNumber},
    template::Template,
};

/// A template that runs one image.
pub(crate) fn template(image: &str) -> Template {
    Template::new(json!({"spec": {"containers": [{"name": "main", "image": image}]}}))
}

/// A DaemonSet `default/web` with uid `u1`, fully rolled out on three nodes.
pub(crate) fn daemonset(image: &str) -> DaemonSet {
    DaemonSet {
        key: Key::new(Namespace::parse("default").unwrap(), Name::parse("web").unwrap()),
        uid: "u1".into(),
        resource_version: "1".into(),
        generation: 1,
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        being_deleted: false,
        strategy: UpdateStrategy::RollingUpdate,
        min_ready_seconds: 0,
        template: template(image),
        selector: "app=web".into(),
        status: Counts {
            observed_generation: 1,
            desired_number_scheduled: 3,
            current_number_scheduled: 3,
            updated_number_scheduled: 3,
            number_ready: 3,
            number_available: 3,
            ..Counts::default()
        },
        field_managers: Vec::new(),
    }
}

/// A revision that is controlled by `u1`; its ControllerRevision is named after its number.
pub(crate) fn revision(number: i64, image: &str) -> Revision {
    Revision {
        number: RevisionNumber(number),
        controller_revision: format!("web-{number}"),
        uid: format!("r-{number}"),
        owner: Some("u1".into()),
        owner_name: Some("web".into()),
        hash: None,
        change_cause: None,
        created_at: None,
        rollback: None,
        template: Ok(template(image)),
    }
}

/// The revision of `u1` whose ControllerRevision has this uid.
pub(crate) fn revision_of(uid: &str, image: &str) -> Revision {
    Revision { uid: uid.into(), ..revision(1, image) }
}
