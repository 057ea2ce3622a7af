//! Objects for unit tests.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{
    actor::Actor,
    daemonset::{Counts, DaemonSet, FieldManager, UpdateStrategy},
    key::{Key, Name, Namespace},
    revision::{Revision, RevisionNumber},
    revision_data::DataDigest,
    rollback::{Origin, RevisionInfo, Rollback, RollbackState},
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
        controller: None,
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

/// A field manager that wrote the template by an update.
pub(crate) fn field_manager(name: &str) -> FieldManager {
    FieldManager {
        name: name.into(),
        time: None,
        applies: false,
        owns_template: Some(true),
        owns_last_applied: Some(false),
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
        last_applied: None,
        template: Ok(template(image)),
        // Each has bytes of its own, as if another Kubernetes had written each.
        data: Some(DataDigest::of(&format!("{number} {image}"))),
    }
}

/// The revision of `u1` whose ControllerRevision has this uid.
pub(crate) fn revision_of(uid: &str, image: &str) -> Revision {
    Revision { uid: uid.into(), ..revision(1, image) }
}

/// A user without groups.
pub(crate) fn actor(user: &str) -> Actor {
    Actor { user: user.into(), groups: Vec::new(), groups_omitted: 0, uid: None }
}

/// A rollback of `u1` from revision 2 to revision 1 that jane asked for.
pub(crate) fn rollback() -> Rollback {
    let info = |number| RevisionInfo::of(&revision(number, "a"));
    Rollback {
        id: Uuid::from_u128(0x0193_6b5e_7d0a_7f43_9c7e_0000_0000_0001),
        state: RollbackState::Requested,
        key: daemonset("a").key,
        uid: "u1".into(),
        generation: None,
        from: Some(info(2)),
        to: info(1),
        new_revision: None,
        warnings: Vec::new(),
        message: "requested".into(),
        origin: Origin {
            requested_by: actor("jane"),
            on_behalf_of: None,
            reason: Some("it crashes".into()),
            request_id: "r1".into(),
            source: None,
        },
        requested_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
        template: template("a").fingerprint(),
        pinned_to: None,
        pinned_generation: 1,
        pinned_rollback: None,
        ownership: None,
        newest_revision_at: None,
        epoch: 1,
        duplicates: Vec::new(),
    }
}
