//! What has to go when a budget of bytes is exceeded.

use std::collections::{BinaryHeap, HashMap};

use crate::domain::key::{Key, Namespace};

/// Something that takes room and can do without it.
#[derive(Debug)]
pub(super) struct Candidate<'a, R> {
    pub key: &'a Key,
    pub bytes: usize,
    /// Of one namespace, the highest goes first.
    pub rank: R,
}

/// Chooses what goes so that at least `excess` bytes get free: from the namespace that takes most at the time. So a
/// namespace that is full of large things pays for them before any other does.
pub(super) fn victims<R: Ord>(candidates: Vec<Candidate<'_, R>>, excess: usize) -> Vec<Key> {
    let mut namespaces: HashMap<&Namespace, Vec<Candidate<'_, R>>> = HashMap::new();
    for candidate in candidates {
        namespaces.entry(&candidate.key.namespace).or_default().push(candidate);
    }
    let mut largest = BinaryHeap::new();
    for (namespace, held) in &mut namespaces {
        held.sort_by(|a, b| a.rank.cmp(&b.rank));
        largest.push((held.iter().map(|it| it.bytes).sum::<usize>(), *namespace));
    }
    let (mut chosen, mut freed) = (Vec::new(), 0);
    while freed < excess {
        let Some((total, namespace)) = largest.pop() else { break };
        let Some(victim) = namespaces.get_mut(namespace).and_then(Vec::pop) else { continue };
        freed += victim.bytes;
        chosen.push(victim.key.clone());
        largest.push((total - victim.bytes, namespace));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::Name;

    #[test]
    fn the_largest_namespace_pays_first() {
        let key = |namespace: &str, name: &str| {
            Key::new(Namespace::parse(namespace).unwrap(), Name::parse(name).unwrap())
        };
        let keys = [key("a", "x"), key("b", "x"), key("b", "y"), key("b", "z")];
        let sizes = [30, 20, 10, 40];
        let chosen = |excess| {
            let held = keys.iter().zip(sizes);
            let candidates = held.map(|(key, bytes)| Candidate { key, bytes, rank: bytes }).collect();
            victims(candidates, excess)
        };
        assert_eq!(chosen(0), []);
        assert_eq!(chosen(1), [key("b", "z")]);
        // Thirty each now.
        assert_eq!(chosen(41), [key("b", "z"), key("b", "x")]);
        assert_eq!(chosen(61), [key("b", "z"), key("b", "x"), key("a", "x")]);
        assert_eq!(chosen(1000).len(), 4);
    }
}
