//! ControllerRevisions that are one to the controller, and what that does to a rollback.

use std::fmt;

use crate::domain::{
    daemonset::DaemonSet,
    key::Key,
    revision::{Revision, RevisionNumber},
};

/// Two or more ControllerRevisions of one DaemonSet with the same bytes. See [`crate::domain::revision_data`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicates {
    key: Key,
    /// The label selector of the DaemonSet's pods.
    selector: String,
    revisions: Vec<(String, RevisionNumber, Option<String>)>,
}

impl Duplicates {
    /// Names the revisions of one of the groups that [`crate::domain::revision::History::duplicates`] finds.
    #[must_use]
    pub fn of(daemonset: &DaemonSet, group: &[&Revision]) -> Self {
        let named = |revision: &&Revision| {
            (revision.controller_revision.clone(), revision.number, revision.hash.clone())
        };
        Self {
            key: daemonset.key.clone(),
            selector: daemonset.selector.clone(),
            revisions: group.iter().map(named).collect(),
        }
    }
}

impl fmt::Display for Duplicates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key: Key { namespace, .. }, selector, revisions } = self;
        f.write_str("ControllerRevisions ")?;
        for (index, (name, number, hash)) in revisions.iter().enumerate() {
            let before = match index {
                0 => "",
                last if last + 1 == revisions.len() => " and ",
                _ => ", ",
            };
            let hash = hash.as_deref().map_or_else(|| "no hash".to_owned(), |hash| format!("hash {hash}"));
            write!(f, "{before}{name} (revision {number}, {hash})")?;
        }
        write!(
            f,
            " hold the same pod template: after a rollback to it, the DaemonSet controller would relabel all running pods and count them as updated without replacing them (kubernetes/kubernetes#111280). Delete the one whose hash no pod carries, then try again. The hashes of the pods: kubectl get pods --namespace={namespace} --selector='{selector}' --label-columns=controller-revision-hash (needs the right to list pods). To delete it: kubectl delete controllerrevision NAME --namespace={namespace} (needs the right to delete controllerrevisions.apps)"
        )
    }
}

/// What is said of a rollout during which such revisions existed, once all pods count as updated.
#[must_use]
pub fn relabelled(Key { namespace, name }: &Key, names: &[String]) -> String {
    format!(
        "all pods count as updated, but ControllerRevisions {} held the same pod template during the rollout: the DaemonSet controller may have relabelled pods of another template instead of replacing them (kubernetes/kubernetes#111280). Compare the images of the pods with the template; kubectl rollout restart daemonset/{name} --namespace={namespace} replaces all pods",
        listed(names)
    )
}

fn listed(names: &[String]) -> String {
    const MOST: usize = 10;
    match names.len().checked_sub(MOST) {
        None | Some(0) => names.join(" and "),
        Some(more) => format!("{} and {more} more", names[..MOST].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{fixtures, revision::History};

    #[test]
    fn duplicates_are_found_by_their_bytes_and_named() {
        let live = fixtures::daemonset("b");
        let first = Revision { hash: Some("aa".into()), ..fixtures::revision(1, "a") };
        let copy = Revision { data: first.data, hash: None, ..fixtures::revision(5, "a") };
        let same_template = fixtures::revision(6, "a");
        let history = History::of(&live, [first, fixtures::revision(2, "b"), copy, same_template]);
        let groups = history.duplicates();
        assert_eq!(groups.len(), 1);
        let said = Duplicates::of(&live, &groups[0]).to_string();
        let names = "ControllerRevisions web-1 (revision 1, hash aa) and web-5 (revision 5, no hash) hold";
        assert!(said.starts_with(names), "{said}");
        for command in [
            "kubectl get pods --namespace=default --selector='app=web' --label-columns=controller-revision-hash",
            "kubectl delete controllerrevision NAME --namespace=default",
        ] {
            assert!(said.contains(command), "{said}");
        }
    }

    #[test]
    fn revisions_without_data_are_no_duplicates() {
        let none = |number| Revision { data: None, ..fixtures::revision(number, "a") };
        let history = History::of(&fixtures::daemonset("b"), [none(1), none(2)]);
        assert!(history.duplicates().is_empty());
    }
}
