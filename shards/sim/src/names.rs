//! Names of files and directories. A change is durable when its directory was synced; before that a crash keeps any
//! part of the changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::random::Random;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File(u64),
    Dir,
}

#[derive(Clone, Debug)]
enum Change {
    Add(PathBuf, Node),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    now: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    /// Not durable yet, in order, by directory.
    changes: Vec<(PathBuf, Change)>,
}

impl Names {
    pub fn get(&self, path: &Path) -> Option<Node> {
        if path.parent().is_none() { Some(Node::Dir) } else { self.now.get(path).copied() }
    }

    /// The bare names in a directory.
    pub fn list(&self, dir: &Path) -> Vec<PathBuf> {
        let inside = self.now.keys().filter(|path| path.parent() == Some(dir));
        inside.filter_map(|path| path.file_name().map(PathBuf::from)).collect()
    }

    pub fn files(&self) -> impl Iterator<Item = (&PathBuf, u64)> {
        self.now.iter().filter_map(|(path, node)| match node {
            Node::File(id) => Some((path, *id)),
            Node::Dir => None,
        })
    }

    pub fn add(&mut self, path: &Path, node: Node) {
        self.change(path, Change::Add(path.to_path_buf(), node));
    }

    pub fn rename(&mut self, from: &Path, to: &Path) {
        assert_eq!(from.parent(), to.parent(), "renames stay within a directory");
        self.change(from, Change::Rename(from.to_path_buf(), to.to_path_buf()));
    }

    pub fn remove(&mut self, path: &Path) {
        self.change(path, Change::Remove(path.to_path_buf()));
    }

    fn change(&mut self, path: &Path, change: Change) {
        apply(&mut self.now, &change);
        let dir = path.parent().expect("the root is never changed").to_path_buf();
        self.changes.push((dir, change));
    }

    pub fn sync(&mut self, dir: &Path) {
        self.sync_where(|of| of == dir);
    }

    /// The same for a directory and all below it.
    pub fn sync_below(&mut self, dir: &Path) {
        self.sync_where(|of| of.starts_with(dir));
    }

    fn sync_where(&mut self, is_synced: impl Fn(&Path) -> bool) {
        let (synced, open) = std::mem::take(&mut self.changes).into_iter().partition(|(of, _)| is_synced(of));
        self.changes = open;
        let synced: Vec<(PathBuf, Change)> = synced;
        for (_, change) in &synced {
            apply(&mut self.durable, change);
        }
    }

    /// Makes everything durable: a test's starting point.
    pub fn sync_all(&mut self) {
        self.changes.clear();
        self.durable.clone_from(&self.now);
    }

    /// Any part of the changes that were not durable, in order.
    pub fn after_crash(&self, random: &mut Random) -> Self {
        let mut now = self.durable.clone();
        for (_, change) in &self.changes {
            if random.coin() {
                apply(&mut now, change);
            }
        }
        // What is in a directory that is gone is gone.
        let all = now.clone();
        let is_dir = |path: &Path| path.parent().is_none() || all.get(path) == Some(&Node::Dir);
        now.retain(|path, _| path.ancestors().skip(1).all(is_dir));
        Self { durable: now.clone(), now, changes: Vec::new() }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, change: &Change) {
    match change {
        Change::Add(path, node) => {
            names.insert(path.clone(), *node);
        }
        Change::Rename(from, to) => {
            if let Some(node) = names.remove(from) {
                names.insert(to.clone(), node);
            }
        }
        Change::Remove(path) => {
            names.remove(path);
        }
    }
}
