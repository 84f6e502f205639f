//! The data files in the store of a simulated world.

use std::collections::BTreeMap;
use std::rc::Rc;

use crate::bus::Parts;

/// One file: what it holds, and when it came.
#[derive(Debug, Clone)]
pub(crate) struct StoredFile {
    pub(crate) parts: Rc<Parts>,
    pub(crate) born_ms: u64,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Files {
    lying: BTreeMap<String, StoredFile>,
    /// Deleted since somebody last looked.
    gone: Vec<String>,
}

impl Files {
    pub(crate) fn put(&mut self, path: &str, parts: Rc<Parts>, born_ms: u64) {
        self.lying.insert(path.to_owned(), StoredFile { parts, born_ms });
    }

    pub(crate) fn get(&self, path: &str) -> Option<&StoredFile> {
        self.lying.get(path)
    }

    pub(crate) fn delete(&mut self, path: &str) {
        if self.lying.remove(path).is_some() {
            self.gone.push(path.to_owned());
        }
    }

    /// By path, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &StoredFile)> {
        self.lying.iter()
    }

    pub(crate) fn take_gone(&mut self) -> Vec<String> {
        std::mem::take(&mut self.gone)
    }
}
