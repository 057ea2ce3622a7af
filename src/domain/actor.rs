//! Who asks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Most bytes of group names that a record has of one user. Tokens bring up to hundreds of groups.
pub const RECORDED_GROUPS: usize = 4096;

/// The person or account behind a request, as the cluster's authentication names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Actor {
    /// User name; `local` where rollbackd runs with `--auth none`.
    #[schema(examples("system:serviceaccount:ci:deploy-bot"))]
    pub user: String,
    /// Groups of the user.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// How many more groups the user is in, which are left out here. All groups count where rights are reviewed.
    #[serde(default, skip_serializing_if = "is_none_omitted")]
    pub groups_omitted: usize,
    /// Unique id of the user, where the authenticator knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl Actor {
    /// rollbackd, as an entry has it that nobody asked for.
    #[must_use]
    pub fn rollbackd() -> Self {
        Self { user: "rollbackd".to_owned(), groups: Vec::new(), groups_omitted: 0, uid: None }
    }

    /// The same as it is recorded: with the first of its groups, up to [`RECORDED_GROUPS`] bytes, and the number of
    /// those left out.
    #[must_use]
    pub fn for_record(mut self) -> Self {
        let mut room = RECORDED_GROUPS;
        let fitting = self.groups.iter().take_while(|group| {
            let rest = room.checked_sub(group.len());
            room = rest.unwrap_or_default();
            rest.is_some()
        });
        let kept = fitting.count();
        self.groups_omitted += self.groups.len() - kept;
        self.groups.truncate(kept);
        self
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none_omitted(groups: &usize) -> bool {
    *groups == 0
}

/// All that a token's review says of its owner; passed on unchanged when RBAC is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Identity {
    pub actor: Actor,
    /// What an authenticator adds, such as the name of the pod that a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_has_the_first_groups_and_the_number_of_the_others() {
        let actor = |groups: Vec<String>| Actor { groups, ..Actor::rollbackd() };
        let few = actor(vec!["a".into(), "b".into()]);
        assert_eq!(few.clone().for_record(), few);
        let many = actor((0..500).map(|number| format!("group-{number:04}")).collect()).for_record();
        assert_eq!(
            (many.groups.len(), many.groups_omitted),
            (RECORDED_GROUPS / 10, 500 - RECORDED_GROUPS / 10)
        );
        assert_eq!(many.clone().for_record(), many, "only once");
        let long = actor(vec!["a".into(), "b".repeat(RECORDED_GROUPS), "c".into()]).for_record();
        assert_eq!((long.groups, long.groups_omitted), (vec!["a".to_owned()], 2));
        assert!(!serde_json::to_string(&few).unwrap().contains("groupsOmitted"));
    }
}
