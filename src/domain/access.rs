//! What is asked of the cluster's RBAC: one verb on one resource.
//!
//! The constructors are the whole table of who may do what. Each asks by name wherever there is one,
//! so that `resourceNames` of a Role works.

use super::key::{Key, Namespace};

/// The API group of the resources that only rollbackd knows.
const OWN: &str = "rollbackd.dev";
/// The prefix of a service account's user name, before `NAMESPACE:NAME`.
pub const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Namespace and name of the service account that a user name is of.
#[must_use]
pub fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')
}

/// One verb on one resource, as a SubjectAccessReview names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    pub verb: &'static str,
    /// API group; empty for the core group.
    pub group: &'static str,
    pub resource: &'static str,
    pub subresource: Option<&'static str>,
    /// `None` is the cluster scope, or all namespaces.
    pub namespace: Option<Namespace>,
    /// `None` is all objects.
    pub name: Option<String>,
}

impl Access {
    fn new(verb: &'static str, group: &'static str, resource: &'static str) -> Self {
        Self { verb, group, resource, subresource: None, namespace: None, name: None }
    }

    fn within(self, namespace: Option<&Namespace>) -> Self {
        Self { namespace: namespace.cloned(), ..self }
    }

    fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// List the DaemonSets of one namespace, or of all.
    #[must_use]
    pub fn list_daemonsets(namespace: Option<&Namespace>) -> Self {
        Self::new("list", "apps", "daemonsets").within(namespace)
    }

    /// Read any DaemonSet of one namespace, or of all.
    #[must_use]
    pub fn get_daemonsets(namespace: Option<&Namespace>) -> Self {
        Self::new("get", "apps", "daemonsets").within(namespace)
    }

    /// Read one DaemonSet: summary, status, and the rollbacks made of it.
    #[must_use]
    pub fn get_daemonset(key: &Key) -> Self {
        Self::get_daemonsets(Some(&key.namespace)).named(key.name.as_str())
    }

    /// List revisions.
    #[must_use]
    pub fn list_revisions(namespace: &Namespace) -> Self {
        Self::new("list", "apps", "controllerrevisions").within(Some(namespace))
    }

    /// Read pod templates of revisions, and the images in them.
    #[must_use]
    pub fn get_revisions(namespace: &Namespace) -> Self {
        Self::new("get", "apps", "controllerrevisions").within(Some(namespace))
    }

    /// Read the pod template of one revision that is named by its ControllerRevision.
    #[must_use]
    pub fn get_revision(namespace: &Namespace, controller_revision: &str) -> Self {
        Self::get_revisions(namespace).named(controller_revision)
    }

    /// Roll back one DaemonSet, and nothing else: a subresource that only RBAC knows.
    #[must_use]
    pub fn roll_back(key: &Key) -> Self {
        Self {
            subresource: Some("rollback"),
            ..Self::new("create", "apps", "daemonsets").within(Some(&key.namespace)).named(key.name.as_str())
        }
    }

    /// Change anything of one DaemonSet. Whoever may do that may roll it back.
    #[must_use]
    pub fn patch_daemonset(key: &Key) -> Self {
        Self::new("patch", "apps", "daemonsets").within(Some(&key.namespace)).named(key.name.as_str())
    }

    /// Read the audit of one namespace, or of all.
    #[must_use]
    pub fn read_audit(namespace: Option<&Namespace>) -> Self {
        Self::new("get", OWN, "audit").within(namespace)
    }

    /// Act for a user: here alone, or, by Kubernetes' own right, everywhere.
    #[must_use]
    pub fn impersonate_user(user: &str) -> [Self; 2] {
        let own = Self::new("impersonate", OWN, "users").named(user);
        let account = service_account(user)
            .and_then(|(namespace, name)| Some((Namespace::parse(namespace).ok()?, name)));
        let kubernetes = match account {
            Some((namespace, name)) => {
                Self::new("impersonate", "", "serviceaccounts").within(Some(&namespace)).named(name)
            }
            None => Self::new("impersonate", "", "users").named(user),
        };
        [own, kubernetes]
    }

    /// Act as a member of a group: here alone, or, by Kubernetes' own right, everywhere.
    #[must_use]
    pub fn impersonate_group(group: &str) -> [Self; 2] {
        [OWN, ""].map(|api| Self::new("impersonate", api, "groups").named(group))
    }

    /// Kubernetes' own words for a missing right (`NewForbidden` in apimachinery, `forbiddenMessage` in
    /// the API server).
    #[must_use]
    pub fn forbidden(&self, user: &str) -> String {
        let Self { verb, group, resource, subresource, namespace, name } = self;
        let dot = if group.is_empty() { "" } else { "." };
        let name = name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        let subresource = subresource.map(|subresource| format!("/{subresource}")).unwrap_or_default();
        let place = namespace.as_ref().map_or_else(
            || "at the cluster scope".to_owned(),
            |namespace| format!("in the namespace \"{namespace}\""),
        );
        format!(
            "{resource}{dot}{group}{name} is forbidden: User {user:?} cannot {verb} resource \"{resource}{subresource}\" in API group {group:?} {place}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::Name;

    #[test]
    fn a_missing_right_is_told_in_kubernetes_words() {
        let key = Key::new(Namespace::parse("default").unwrap(), Name::parse("agent").unwrap());
        for (access, expected) in [
            (
                Access::get_daemonset(&key),
                r#"daemonsets.apps "agent" is forbidden: User "alice" cannot get resource "daemonsets" in API group "apps" in the namespace "default""#,
            ),
            (
                Access::list_daemonsets(None),
                r#"daemonsets.apps is forbidden: User "alice" cannot list resource "daemonsets" in API group "apps" at the cluster scope"#,
            ),
            (
                Access::roll_back(&key),
                r#"daemonsets.apps "agent" is forbidden: User "alice" cannot create resource "daemonsets/rollback" in API group "apps" in the namespace "default""#,
            ),
            (
                Access::impersonate_user("bob")[1].clone(),
                r#"users "bob" is forbidden: User "alice" cannot impersonate resource "users" in API group "" at the cluster scope"#,
            ),
        ] {
            assert_eq!(access.forbidden("alice"), expected);
        }
    }

    #[test]
    fn a_service_account_is_impersonated_by_its_own_resource() {
        let [own, kubernetes] = Access::impersonate_user("system:serviceaccount:ci:bot");
        assert_eq!((own.resource, own.name.as_deref()), ("users", Some("system:serviceaccount:ci:bot")));
        assert_eq!(kubernetes.resource, "serviceaccounts");
        assert_eq!(kubernetes.namespace.unwrap().as_str(), "ci");
        assert_eq!(Access::impersonate_user("system:serviceaccount:x")[1].resource, "users");
    }
}
