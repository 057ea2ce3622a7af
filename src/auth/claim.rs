//! For whom a caller says to act: the headers `Impersonate-User` and `Impersonate-Group`.

use std::collections::BTreeMap;

use crate::domain::{
    access::{SERVICE_ACCOUNT, service_account},
    actor::{Actor, Identity},
    key::Namespace,
};

/// The group that every authenticated user is in; Kubernetes adds it to whoever is impersonated.
const AUTHENTICATED: &str = "system:authenticated";

/// Before a namespace, the group of its service accounts.
const SERVICE_ACCOUNTS_OF: &str = "system:serviceaccounts:";

/// kubeadm binds it to cluster-admin.
const KUBEADM_ADMINS: &str = "kubeadm:cluster-admins";

/// Whether a user is the control plane's, a node, or anonymous.
fn is_privileged_user(user: &str) -> bool {
    match user.strip_prefix(SERVICE_ACCOUNT) {
        Some(account) => account.starts_with("kube-system:"),
        None => user.starts_with("system:"),
    }
}

/// Whether a group is none of people: of those that Kubernetes names itself, `system:authenticated` and the service
/// accounts of one namespace other than kube-system are left.
fn is_privileged_group(group: &str) -> bool {
    let people = match group.strip_prefix(SERVICE_ACCOUNTS_OF) {
        Some(namespace) => namespace != "kube-system" && Namespace::parse(namespace).is_ok(),
        None => group == AUTHENTICATED || !group.starts_with("system:"),
    };
    !people || group == KUBEADM_ADMINS
}

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
#[error("acting for {name} is not allowed here")]
pub struct NeverImpersonated {
    pub name: String,
}

impl Claim {
    /// Takes the headers' values.
    #[must_use]
    pub fn new(user: String, groups: Vec<String>) -> Self {
        Self { user, groups }
    }

    /// Checks that it names nobody who is never impersonated, as far as that can be seen without the cluster.
    /// `refused` are groups beside the known ones.
    pub(super) fn check(&self, refused: &[String]) -> Result<(), NeverImpersonated> {
        let refused = |group: &&String| refused.contains(group) || is_privileged_group(group);
        let user = Some(&self.user).filter(|user| is_privileged_user(user));
        match user.or_else(|| self.groups.iter().find(refused)) {
            Some(name) => Err(NeverImpersonated { name: name.clone() }),
            None => Ok(()),
        }
    }

    /// Whether it names service accounts, so that [`Claim::is_not`] has to be asked.
    pub(super) fn names_accounts(&self) -> bool {
        let accounts = |group: &String| group.starts_with(SERVICE_ACCOUNTS_OF);
        self.user.starts_with(SERVICE_ACCOUNT) || self.groups.iter().any(accounts)
    }

    /// Checks that it names neither rollbackd's own account, which may patch what it serves, nor its neighbours:
    /// an account of its namespace, or the group of them.
    pub(super) fn is_not(&self, own: &str) -> Result<(), NeverImpersonated> {
        let refused = |name: &str| Err(NeverImpersonated { name: name.to_owned() });
        if self.user == own {
            return refused(own);
        }
        let Some((namespace, _)) = service_account(own) else { return Ok(()) };
        if service_account(&self.user).is_some_and(|(of, _)| of == namespace) {
            return refused(&self.user);
        }
        let neighbours = format!("{SERVICE_ACCOUNTS_OF}{namespace}");
        if self.groups.contains(&neighbours) { refused(&neighbours) } else { Ok(()) }
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
        let refused = ["break-glass".to_owned()];
        let claim = |user: &str, group: &str| Claim::new(user.into(), vec![group.into()]).check(&refused);
        assert!(claim("alice", "oncall").is_ok());
        assert!(claim("alice", "system:authenticated").is_ok());
        assert!(claim("system:serviceaccount:ci:bot", "system:serviceaccounts:ci").is_ok());
        for (user, group) in [
            ("alice", "system:masters"),
            ("alice", "system:nodes"),
            ("alice", "system:serviceaccounts"),
            ("alice", "system:serviceaccounts:"),
            ("alice", "system:serviceaccounts:kube-system"),
            ("alice", "system:unauthenticated"),
            ("alice", "system:monitoring"),
            ("alice", "kubeadm:cluster-admins"),
            ("alice", "break-glass"),
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
    fn neither_rollbackds_account_nor_its_neighbours_are_impersonated() {
        let own = "system:serviceaccount:rollbackd:rollbackd";
        let claim = |user: &str, groups: &[&str]| {
            let claim = Claim::new(user.into(), groups.iter().map(|group| (*group).to_owned()).collect());
            (claim.names_accounts(), claim.is_not(own).is_ok())
        };
        assert_eq!(claim("alice", &["oncall"]), (false, true));
        assert_eq!(claim("system:serviceaccount:ci:bot", &[]), (true, true));
        assert_eq!(claim("alice", &["system:serviceaccounts:ci"]), (true, true));
        assert_eq!(claim(own, &[]), (true, false));
        assert_eq!(claim("system:serviceaccount:rollbackd:backup", &[]), (true, false));
        assert_eq!(claim("alice", &["oncall", "system:serviceaccounts:rollbackd"]), (true, false));
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
