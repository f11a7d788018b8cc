//! What a writer knows of its value, kept until the value comes back as a committed event.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Fields, Labels};

/// Facts about a value that is about to be committed, so that taking it in need not parse it again.
struct Prepared {
    value: Bytes,
    labels: Labels,
    fields: Fields,
}

/// The facts of all values under way, by storage key.
#[derive(Default)]
pub struct Preparations(Mutex<HashMap<Bytes, Vec<Arc<Prepared>>>>);

/// Withdraws the facts when the transaction is over, whatever came of it.
pub struct PreparedGuard<'a> {
    all: &'a Preparations,
    key: Bytes,
    prepared: Arc<Prepared>,
}

impl Drop for PreparedGuard<'_> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(list) = all.get_mut(&self.key) {
            list.retain(|other| !Arc::ptr_eq(other, &self.prepared));
            if list.is_empty() {
                all.remove(&self.key);
            }
        }
    }
}

impl Preparations {
    /// Announces the facts of a value that is about to be written under `key`.
    pub fn announce(&self, key: Bytes, value: Bytes, labels: Labels, fields: Fields) -> PreparedGuard<'_> {
        let prepared = Arc::new(Prepared { value, labels, fields });
        self.0.lock().entry(key.clone()).or_default().push(prepared.clone());
        PreparedGuard { all: self, key, prepared }
    }

    /// The facts of this value, when its writer is in this process.
    pub fn facts(&self, key: &Bytes, value: &Bytes) -> Option<(Labels, Fields)> {
        let all = self.0.lock();
        let found = all.get(key)?.iter().find(|prepared| prepared.value == *value)?;
        Some((found.labels.clone(), found.fields.clone()))
    }
}
