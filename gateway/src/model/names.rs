//! A few names in order.

use super::ObjectName;

/// Names of objects, each once, in order. Almost always there is one: a tree would take ten times its memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names(Vec<ObjectName>);

impl Names {
    pub(super) fn insert(&mut self, name: ObjectName) {
        if let Err(at) = self.0.binary_search(&name) {
            if self.0.is_empty() {
                self.0.reserve_exact(1);
            }
            self.0.insert(at, name);
        }
    }

    pub(super) fn remove(&mut self, name: &ObjectName) {
        if let Ok(at) = self.0.binary_search(name) {
            self.0.remove(at);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn first(&self) -> Option<&ObjectName> {
        self.0.first()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, ObjectName> {
        self.0.iter()
    }
}

impl<'n> IntoIterator for &'n Names {
    type Item = &'n ObjectName;
    type IntoIter = std::slice::Iter<'n, ObjectName>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
