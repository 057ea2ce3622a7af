//! For whom a caller says to act: the headers `Impersonate-User` and `Impersonate-Group`.

use std::collections::BTreeMap;

use crate::domain::{
    access::{SERVICE_ACCOUNT, service_account},
    actor::{Actor, Identity},
};

/// The group that every authenticated user is in; Kubernetes adds it to whoever is impersonated.
const AUTHENTICATED: &str = "system:authenticated";

/// A person for whom a caller says to act. Nothing of it is true before the caller's right to do so is
/// reviewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    user: String,
    /// As the headers name them.
    groups: Vec<String>,
}

/// A name that nobody may act for, whatever RBAC says: it is as good as the administrator's, a node's, or one of the
/// control plane's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody can act for {name} here")]
pub struct NeverImpersonated {
    pub name: String,
}

impl Claim {
    /// Takes the headers' values.
    #[must_use]
    pub fn new(user: String, groups: Vec<String>) -> Self {
        Self { user, groups }
    }

    /// Checks that nobody is named who is never impersonated.
    pub(super) fn check(&self) -> Result<(), NeverImpersonated> {
        let never = |name: &&String| {
            let privileged = ["system:masters", "system:anonymous", "system:unauthenticated"];
            privileged.contains(&name.as_str()) || name.starts_with("system:node")
        };
        // Who may act for any user means people. What runs the cluster may patch every DaemonSet.
        let system = |user: &&String| match user.strip_prefix(SERVICE_ACCOUNT) {
            Some(account) => account.starts_with("kube-system:"),
            None => user.starts_with("system:"),
        };
        let mut named = std::iter::once(&self.user).chain(&self.groups);
        match named.find(never).or_else(|| Some(&self.user).filter(system)) {
            Some(name) => Err(NeverImpersonated { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// Whether it is an account that is named, and no person.
    pub(super) fn is_account(&self) -> bool {
        self.user.starts_with(SERVICE_ACCOUNT)
    }

    /// Checks that it is not rollbackd's own account that is named, which may patch what it serves.
    pub(super) fn is_not(&self, own: &str) -> Result<(), NeverImpersonated> {
        if self.user == own { Err(NeverImpersonated { name: own.to_owned() }) } else { Ok(()) }
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    pub(super) fn groups(&self) -> &[String] {
        &self.groups
    }

    /// The person, with the groups that Kubernetes gives to who is impersonated
    /// (`WithImpersonation` in the API server).
    pub(super) fn person(&self) -> Identity {
        let mut groups = self.groups.clone();
        if let Some((namespace, _)) = service_account(&self.user)
            && groups.is_empty()
        {
            groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.into());
        }
        let actor = Actor { user: self.user.clone(), groups, groups_omitted: 0, uid: None };
        Identity { actor, extra: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_administrators_the_nodes_and_the_control_plane_are_never_impersonated() {
        let claim = |user: &str, group: &str| Claim::new(user.into(), vec![group.into()]).check();
        assert!(claim("alice", "oncall").is_ok());
        assert!(claim("system:serviceaccount:ci:bot", "system:serviceaccounts:ci").is_ok());
        for (user, group) in [
            ("alice", "system:masters"),
            ("alice", "system:nodes"),
            ("system:node:n1", "oncall"),
            ("system:anonymous", "oncall"),
            ("system:masters", "oncall"),
            ("system:kube-controller-manager", "oncall"),
            ("system:serviceaccount:kube-system:daemon-set-controller", "oncall"),
        ] {
            assert!(claim(user, group).is_err(), "{user} {group}");
        }
    }

    #[test]
    fn who_is_impersonated_has_the_groups_that_kubernetes_gives() {
        let groups = |user: &str, groups: &[&str]| {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            Claim::new(user.into(), groups).person().actor.groups
        };
        assert_eq!(groups("alice", &["oncall"]), ["oncall", "system:authenticated"]);
        assert_eq!(groups("alice", &["system:authenticated"]), ["system:authenticated"]);
        assert_eq!(
            groups("system:serviceaccount:ci:bot", &[]),
            ["system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"]
        );
    }
}
