//! The entries of the index in the order of namespace and name. What is asked of one namespace costs nothing of the
//! others.

use std::{
    collections::{BTreeMap, btree_map},
    ops::Bound,
};

use super::entry::Entry;
use crate::domain::key::{Key, Name, Namespace};

#[derive(Debug, Default)]
pub(super) struct Entries {
    namespaces: BTreeMap<Namespace, BTreeMap<Name, Entry>>,
}

impl Entries {
    pub fn get(&self, key: &Key) -> Option<&Entry> {
        self.namespaces.get(&key.namespace)?.get(&key.name)
    }

    pub fn get_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        self.namespaces.get_mut(&key.namespace)?.get_mut(&key.name)
    }

    /// The entry of a key, made if there is none.
    pub fn get_or_insert(&mut self, key: &Key) -> &mut Entry {
        let names = self.namespaces.entry(key.namespace.clone()).or_default();
        names.entry(key.name.clone()).or_insert_with(|| Entry::new(key.clone()))
    }

    pub fn remove(&mut self, key: &Key) -> Option<Entry> {
        let btree_map::Entry::Occupied(mut names) = self.namespaces.entry(key.namespace.clone()) else {
            return None;
        };
        let removed = names.get_mut().remove(&key.name);
        if names.get().is_empty() {
            names.remove();
        }
        removed
    }

    /// The entries of one namespace, or of all.
    pub fn within(&self, namespace: Option<&Namespace>) -> impl Iterator<Item = &Entry> {
        let bounds =
            |bound: fn(Namespace) -> Bound<Namespace>| namespace.cloned().map_or(Bound::Unbounded, bound);
        let namespaces = self.namespaces.range((bounds(Bound::Included), bounds(Bound::Included)));
        namespaces.flat_map(|(_, names)| names.values())
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.namespaces.values_mut().flat_map(BTreeMap::values_mut)
    }

    /// The entries after a key, in namespaces that `visible` holds for.
    pub fn after(
        &self,
        after: Option<&Key>,
        visible: impl Fn(&Namespace) -> bool,
    ) -> impl Iterator<Item = &Entry> {
        let from = after.map_or(Bound::Unbounded, |after| Bound::Included(after.namespace.clone()));
        let namespaces =
            self.namespaces.range((from, Bound::Unbounded)).filter(move |(namespace, _)| visible(namespace));
        namespaces.flat_map(move |(namespace, names)| {
            let within = after.filter(|after| after.namespace == *namespace);
            let from = within.map_or(Bound::Unbounded, |after| Bound::Excluded(after.name.clone()));
            names.range((from, Bound::Unbounded)).map(|(_, entry)| entry)
        })
    }

    pub fn namespaces(&self) -> impl Iterator<Item = (&Namespace, impl Iterator<Item = &Entry>)> {
        self.namespaces.iter().map(|(namespace, names)| (namespace, names.values()))
    }
}
