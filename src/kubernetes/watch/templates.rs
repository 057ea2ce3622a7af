//! The pod templates of revisions, compressed, within a budget of bytes.
//!
//! The templates of one DaemonSet resemble each other: the first one is compressed by itself, and is the dictionary
//! of the others. So ten of 20 KiB take about a third of that together (zstd, level 1: 3.7 % of the raw bytes in a
//! measurement with random values, of which one by itself takes 35 %; lz4 6.1 % and 56 %, deflate 7.7 % and 51 %).
//! That holds for templates of up to 256 KiB: level 1 looks back 512 KiB.
//!
//! A template that is not here can be read from the API server: this is a cache, and says of none that there is none.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use zstd::bulk::{Compressor, Decompressor};

use super::budget::{Candidate, victims};
use crate::domain::{
    key::Key,
    template::{Fingerprint, Template, TemplateSummary},
};

const LEVEL: i32 = 1;
/// One DaemonSet may take so large a part of the budget.
const SHARE: usize = 16;
/// What an entry takes beside its bytes: keys, places in maps, and what an allocator adds.
const OVERHEAD: usize = 128;

/// Compressed templates by DaemonSet and fingerprint.
#[derive(Debug)]
pub(super) struct Templates {
    budget: usize,
    held: Mutex<Held>,
    /// Rises with each look at a group.
    clock: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    groups: HashMap<Arc<Key>, Group>,
    bytes: usize,
}

/// Templates of one DaemonSet.
#[derive(Debug, Default)]
struct Group {
    /// The first one, which the others are compressed with.
    base: Option<(Fingerprint, Packed)>,
    others: Vec<(Fingerprint, Packed)>,
    /// A base of which no revision is left is only the dictionary.
    base_is_gone: bool,
    bytes: usize,
    used_at: u64,
}

#[derive(Clone, Debug)]
struct Packed {
    bytes: Arc<[u8]>,
    /// Bytes before compression.
    raw: usize,
}

impl Packed {
    fn size(&self) -> usize {
        self.bytes.len() + OVERHEAD
    }

    fn pack(text: &str, dictionary: &[u8]) -> Option<Self> {
        let bytes = Compressor::with_dictionary(LEVEL, dictionary).ok()?.compress(text.as_bytes()).ok()?;
        Some(Self { bytes: bytes.into(), raw: text.len() })
    }

    fn unpack(&self, dictionary: &[u8]) -> Option<Vec<u8>> {
        Decompressor::with_dictionary(dictionary).ok()?.decompress(&self.bytes, self.raw).ok()
    }
}

impl Templates {
    /// None yet, and never more than `budget` bytes of them.
    pub fn new(budget: usize) -> Self {
        Self { budget, held: Mutex::default(), clock: AtomicU64::new(0) }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        self.held().bytes
    }

    /// Keeps a template of a DaemonSet, if there is room. Only the task that watches the DaemonSet's revisions and
    /// whoever has just read one of them call it; what both bring is the same.
    pub fn insert(&self, key: &Arc<Key>, template: &Template) {
        let (text, fingerprint) = (template.canonical(), template.fingerprint());
        let share = self.budget / SHARE;
        let base = {
            let mut held = self.held();
            let Some(group) = held.groups.get_mut(key) else {
                drop(held);
                return self.put_base(key, fingerprint, text);
            };
            if let Some((base, _)) = group.base.as_ref().filter(|(base, _)| *base == fingerprint) {
                debug_assert_eq!(*base, fingerprint);
                group.base_is_gone = false;
                return;
            }
            if group.others.iter().any(|(other, _)| *other == fingerprint) {
                return;
            }
            group.base.as_ref().map(|(_, packed)| packed.clone())
        };
        // Neither the watch nor a reader waits for the other's compression.
        let Some(dictionary) = base.and_then(|base| base.unpack(&[])) else { return };
        let Some(packed) = Packed::pack(text, &dictionary) else { return };
        let used_at = self.now();
        let mut held = self.held();
        let Some(group) = held.groups.get_mut(key) else { return };
        if group.bytes + packed.size() > share || group.others.iter().any(|(other, _)| *other == fingerprint)
        {
            return;
        }
        let size = packed.size();
        group.bytes += size;
        group.used_at = used_at;
        group.others.push((fingerprint, packed));
        held.bytes += size;
        self.make_room(&mut held);
    }

    fn put_base(&self, key: &Arc<Key>, fingerprint: Fingerprint, text: &str) {
        let Some(packed) = Packed::pack(text, &[]) else { return };
        if packed.size() > self.budget / SHARE {
            return;
        }
        let (bytes, used_at) = (packed.size(), self.now());
        let mut held = self.held();
        if !held.groups.contains_key(key) {
            let base = Some((fingerprint, packed));
            held.groups.insert(key.clone(), Group { base, bytes, used_at, ..Group::default() });
            held.bytes += bytes;
            self.make_room(&mut held);
        }
    }

    /// Takes out what has not been used for longest, from the namespaces that take most.
    fn make_room(&self, held: &mut Held) {
        if held.bytes <= self.budget {
            return;
        }
        // A tenth more, so that the next one does not have to look again.
        let excess = held.bytes - self.budget + self.budget / 10;
        let candidate = |(key, group): (&'_ Arc<Key>, &Group)| (key.clone(), group.bytes, group.used_at);
        let groups: Vec<(Arc<Key>, usize, u64)> = held.groups.iter().map(candidate).collect();
        let candidates = groups.iter().map(|(key, bytes, used_at)| Candidate {
            key: key.as_ref(),
            bytes: *bytes,
            rank: std::cmp::Reverse(*used_at),
        });
        for key in victims(candidates.collect(), excess) {
            held.forget(&key);
        }
    }

    /// The template that a summary was made of, if it is here.
    pub fn get(&self, key: &Key, summary: &TemplateSummary) -> Option<Template> {
        let wanted = summary.fingerprint();
        let (base, packed) = {
            let mut held = self.held();
            let group = held.groups.get_mut(key)?;
            group.used_at = self.now();
            let (fingerprint, base) = group.base.clone()?;
            if fingerprint == wanted {
                (base, None)
            } else {
                let (_, packed) = group.others.iter().find(|(other, _)| *other == wanted)?;
                (base, Some(packed.clone()))
            }
        };
        let dictionary = base.unpack(&[])?;
        let bytes = match packed {
            Some(packed) => packed.unpack(&dictionary)?,
            None => dictionary,
        };
        Template::restored(&String::from_utf8(bytes).ok()?, summary)
    }

    /// The revision that held a template is gone.
    pub fn remove(&self, key: &Key, fingerprint: Fingerprint) {
        let mut held = self.held();
        let Some(group) = held.groups.get_mut(key) else { return };
        let before = group.bytes;
        if group.base.as_ref().is_some_and(|(base, _)| *base == fingerprint) {
            group.base_is_gone = true;
        }
        if let Some(index) = group.others.iter().position(|(other, _)| *other == fingerprint) {
            let (_, packed) = group.others.swap_remove(index);
            group.bytes -= packed.size();
        }
        let (after, empty) = (group.bytes, group.base_is_gone && group.others.is_empty());
        held.bytes -= before - after;
        if empty {
            held.forget(key);
        }
    }

    /// The DaemonSet's history is not kept any more.
    pub fn remove_all(&self, key: &Key) {
        self.held().forget(key);
    }
}

impl Held {
    fn forget(&mut self, key: &Key) {
        if let Some(group) = self.groups.remove(key) {
            self.bytes -= group.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::key::{Name, Namespace};

    fn key(namespace: &str, name: &str) -> Arc<Key> {
        Key::new(Namespace::parse(namespace).unwrap(), Name::parse(name).unwrap()).into()
    }

    /// About `size` bytes that do not compress well, the same for each tag of one seed.
    fn template(seed: u64, size: usize, tag: &str) -> Template {
        let mut random = fastrand::Rng::with_seed(seed);
        let text: String = std::iter::repeat_with(|| random.alphanumeric()).take(size).collect();
        Template::new(json!({"spec": {"containers": [{"name": "main", "image": tag, "args": [text]}]}}))
    }

    #[test]
    fn templates_that_resemble_each_other_take_little_room() {
        let templates = Templates::new(10_000_000);
        let key = key("a", "web");
        let ten: Vec<Template> = (0..10).map(|tag| template(1, 20_000, &format!("img:{tag}"))).collect();
        for one in &ten {
            templates.insert(&key, one);
            templates.insert(&key, one);
        }
        assert!(templates.bytes() < 20_000, "{}", templates.bytes());
        for one in &ten {
            let got = templates.get(&key, one.summary()).unwrap();
            assert_eq!((got.value(), got.images()), (one.value(), one.images()));
        }
        assert!(templates.get(&key, template(2, 10, "x").summary()).is_none());
        // Without its revision the first one stays as the dictionary, as long as there is a use for it.
        for one in &ten[..9] {
            templates.remove(&key, one.fingerprint());
        }
        assert!(templates.get(&key, ten[9].summary()).is_some());
        templates.remove(&key, ten[9].fingerprint());
        assert_eq!(templates.bytes(), 0);
    }

    #[test]
    fn a_large_template_is_a_dictionary_too() {
        let templates = Templates::new(100_000_000);
        let key = key("a", "web");
        let two = ["img:1", "img:2"].map(|tag| template(1, 200_000, tag));
        templates.insert(&key, &two[0]);
        let one = templates.bytes();
        templates.insert(&key, &two[1]);
        assert!(templates.bytes() < one + 10_000, "{one} {}", templates.bytes());
        assert_eq!(templates.get(&key, two[1].summary()).unwrap().value(), two[1].value());
    }

    #[test]
    fn the_budget_holds_and_one_namespace_can_not_push_out_another() {
        let templates = Templates::new(1_000_000);
        let quiet = (key("quiet", "web"), template(0, 20_000, "img:1"));
        templates.insert(&quiet.0, &quiet.1);
        for seed in 1..=500 {
            templates.insert(&key("loud", &format!("web-{seed}")), &template(seed, 20_000, "img:1"));
            assert!(templates.bytes() <= 1_000_000);
        }
        assert!(templates.bytes() > 800_000, "{}", templates.bytes());
        assert!(templates.get(&quiet.0, quiet.1.summary()).is_some());
        // The newest ones are there, and the oldest are not.
        let here = |seed: u64| {
            let summary = template(seed, 20_000, "img:1").summary().clone();
            templates.get(&key("loud", &format!("web-{seed}")), &summary).is_some()
        };
        assert!(here(500) && !here(1));
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let templates = Templates::new(1_000_000);
        let key = key("a", "web");
        templates.insert(&key, &template(1, 200_000, "img:1"));
        assert_eq!(templates.bytes(), 0);
        for seed in 1..20 {
            templates.insert(&key, &template(seed, 20_000, "img:1"));
        }
        assert!((40_000..=1_000_000 / SHARE).contains(&templates.bytes()), "{}", templates.bytes());
    }
}
