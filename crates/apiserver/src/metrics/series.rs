//! Series whose labels are known only at run time: found by their values, kept as handles.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

/// Most series of one family: whoever makes up names must not fill the memory.
const MAX_SERIES: usize = 4096;

/// The series of one family, by the values of its labels.
#[derive(Debug)]
pub struct Family<T, const N: usize> {
    labels: [&'static str; N],
    make: fn() -> T,
    series: RwLock<BTreeMap<[Box<str>; N], Arc<T>>>,
}

impl<T, const N: usize> Family<T, N> {
    /// An empty family with these labels; `make` makes a series.
    pub fn new(labels: [&'static str; N], make: fn() -> T) -> Family<T, N> {
        Family { labels, make, series: RwLock::default() }
    }

    /// The series of these values; beyond the limit, one that nobody sees.
    pub fn of(&self, values: [&str; N]) -> Arc<T> {
        let key = values.map(Box::from);
        if let Some(series) = self.series.read().get(&key) {
            return series.clone();
        }
        let mut all = self.series.write();
        if all.len() >= MAX_SERIES && !all.contains_key(&key) {
            return Arc::new((self.make)());
        }
        all.entry(key).or_insert_with(|| Arc::new((self.make)())).clone()
    }

    /// Shows every series with its labels, in the order of their values.
    pub fn each(&self, mut show: impl FnMut(&[(&str, &str)], &T)) {
        for (values, series) in self.series.read().iter() {
            let labels: Vec<(&str, &str)> =
                self.labels.iter().copied().zip(values.iter().map(|value| &**value)).collect();
            show(&labels, series);
        }
    }
}
