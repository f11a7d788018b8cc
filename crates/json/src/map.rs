//! Maps that keep the order of their fields.

use std::fmt;

use indexmap::IndexMap;

use crate::{Key, Value};

/// Fields up to which a map is a plain list.
pub const SMALL: usize = 16;

/// A map from names to values, in the order in which the names came. Two maps are equal when they hold the same, in any
/// order.
#[derive(Clone)]
pub struct Map(Repr<List, Table>);

type List = Vec<(Key, Value)>;
type Table = Box<IndexMap<Key, Value>>;

/// A map, or an iterator over one.
#[derive(Clone, Debug)]
enum Repr<S, L> {
    /// It has at most [`SMALL`] fields.
    Small(S),
    /// It had more once.
    Large(L),
}

use Repr::{Large, Small};

impl Map {
    /// An empty map.
    pub const fn new() -> Map {
        Map(Small(Vec::new()))
    }

    /// An empty map with room for so many fields.
    pub fn with_capacity(fields: usize) -> Map {
        if fields <= SMALL {
            Map(Small(Vec::with_capacity(fields)))
        } else {
            Map(Large(Box::new(IndexMap::with_capacity(fields))))
        }
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Small(list) => list.len(),
            Large(map) => map.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes all fields out.
    pub fn clear(&mut self) {
        *self = Map::new();
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match &self.0 {
            Small(list) => list.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            Large(map) => map.get(name),
        }
    }

    /// The value of a field, to change it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        match &mut self.0 {
            Small(list) => list.iter_mut().find(|(key, _)| key == name).map(|(_, value)| value),
            Large(map) => map.get_mut(name),
        }
    }

    /// Whether there is such a field.
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Sets a field; the value it had. A field that is there keeps its place.
    pub fn insert(&mut self, name: Key, value: Value) -> Option<Value> {
        if let Some(present) = self.get_mut(&name) {
            return Some(std::mem::replace(present, value));
        }
        self.push(name, value);
        None
    }

    /// Adds a field that is not there.
    fn push(&mut self, name: Key, value: Value) {
        match &mut self.0 {
            Small(list) if list.len() < SMALL => list.push((name, value)),
            Small(list) => {
                let mut map: IndexMap<Key, Value> = std::mem::take(list).into_iter().collect();
                map.insert(name, value);
                self.0 = Large(Box::new(map));
            }
            Large(map) => {
                map.insert(name, value);
            }
        }
    }

    /// Sets a field at a place; it is moved there if it is elsewhere. Panics when the place lies beyond the end.
    pub fn shift_insert(&mut self, at: usize, name: Key, value: Value) -> Option<Value> {
        let before = self.remove(&name);
        match &mut self.0 {
            Small(list) if list.len() < SMALL => list.insert(at, (name, value)),
            Small(list) => {
                let mut map: IndexMap<Key, Value> = std::mem::take(list).into_iter().collect();
                map.shift_insert(at, name, value);
                self.0 = Large(Box::new(map));
            }
            Large(map) => {
                map.shift_insert(at, name, value);
            }
        }
        before
    }

    /// Takes a field out; the others keep their order.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        match &mut self.0 {
            Small(list) => {
                let at = list.iter().position(|(key, _)| key == name)?;
                Some(list.remove(at).1)
            }
            Large(map) => map.shift_remove(name),
        }
    }

    /// Takes a field out in a time that does not grow with the map, and says whether the others have lost their order
    /// for it ([`order_as`](Map::order_as) gives it back).
    pub fn swap_remove(&mut self, name: &str) -> Option<(Value, bool)> {
        match &mut self.0 {
            Small(_) => self.remove(name).map(|value| (value, false)),
            Large(map) => map.swap_remove(name).map(|value| (value, true)),
        }
    }

    /// Puts the fields in the order that they have in another map, those that are not there behind.
    pub fn order_as(&mut self, other: &Map) {
        if let (Large(map), Large(other)) = (&mut self.0, &other.0) {
            map.sort_by_cached_key(|name, _| other.get_index_of(name).unwrap_or(usize::MAX));
        }
    }

    /// The field of this name, there or not.
    pub fn entry(&mut self, name: impl Into<Key>) -> Entry<'_> {
        Entry { map: self, name: name.into() }
    }

    /// Keeps the fields of which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&Key, &mut Value) -> bool) {
        match &mut self.0 {
            Small(list) => list.retain_mut(|(key, value)| keep(key, value)),
            Large(map) => map.retain(|key, value| keep(key, value)),
        }
    }

    /// Moves all fields of another map into this one.
    pub fn append(&mut self, other: &mut Map) {
        self.extend(std::mem::take(other));
    }

    /// Orders the fields by name.
    pub fn sort_keys(&mut self) {
        match &mut self.0 {
            Small(list) => list.sort_unstable_by(|(a, _), (b, _)| a.cmp(b)),
            Large(map) => map.sort_unstable_keys(),
        }
    }

    /// The fields.
    pub fn iter(&self) -> Iter<'_> {
        Iter(match &self.0 {
            Small(list) => Small(list.iter()),
            Large(map) => Large(map.iter()),
        })
    }

    /// Does something with all fields, until it fails. It looks once at what kind of map this is, not for each field.
    pub(crate) fn try_for_each<E>(
        &self,
        mut with: impl FnMut(&Key, &Value) -> Result<(), E>,
    ) -> Result<(), E> {
        match &self.0 {
            Small(list) => list.iter().try_for_each(|(name, value)| with(name, value)),
            Large(map) => map.iter().try_for_each(|(name, value)| with(name, value)),
        }
    }

    /// The fields, to change their values.
    pub fn iter_mut(&mut self) -> IterMut<'_> {
        IterMut(match &mut self.0 {
            Small(list) => Small(list.iter_mut()),
            Large(map) => Large(map.iter_mut()),
        })
    }

    /// The names.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Key> + ExactSizeIterator + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// The values.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Value> + ExactSizeIterator + Clone {
        self.iter().map(|(_, value)| value)
    }

    /// The values, to change them.
    pub fn values_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Value> + ExactSizeIterator {
        self.iter_mut().map(|(_, value)| value)
    }

    /// The values alone.
    pub fn into_values(self) -> impl DoubleEndedIterator<Item = Value> + ExactSizeIterator {
        self.into_iter().map(|(_, value)| value)
    }
}

impl Default for Map {
    fn default() -> Map {
        Map::new()
    }
}

impl PartialEq for Map {
    fn eq(&self, other: &Map) -> bool {
        // Most equal maps have the same order: a field is looked for only when its place holds another.
        let here = |((name, value), (other_name, other_value)): ((&Key, &Value), (&Key, &Value))| {
            if name == other_name { value == other_value } else { other.get(name) == Some(value) }
        };
        self.len() == other.len() && self.iter().zip(other).all(here)
    }
}

impl Eq for Map {}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl std::ops::Index<&str> for Map {
    type Output = Value;

    /// Null when there is no such field.
    fn index(&self, name: &str) -> &Value {
        self.get(name).unwrap_or(&crate::value::NULL)
    }
}

/// A field of a map, there or not.
#[derive(Debug)]
pub struct Entry<'a> {
    map: &'a mut Map,
    name: Key,
}

impl<'a> Entry<'a> {
    /// Its value; this one if it is not there.
    pub fn or_insert(self, value: Value) -> &'a mut Value {
        self.or_insert_with(|| value)
    }

    /// Its value; made if it is not there.
    pub fn or_insert_with(self, make: impl FnOnce() -> Value) -> &'a mut Value {
        let Entry { map, name } = self;
        let at = match &map.0 {
            Small(list) => list.iter().position(|(key, _)| *key == name),
            Large(all) => all.get_index_of(&name),
        };
        let at = at.unwrap_or_else(|| {
            map.push(name, make());
            map.len() - 1
        });
        match &mut map.0 {
            Small(list) => &mut list[at].1,
            Large(all) => &mut all[at],
        }
    }
}

macro_rules! iterator {
    ($(#[$doc:meta])* $name:ident $(<$life:lifetime>)?, $small:ty, $large:ty, $item:ty, |$field:pat_param| $make:expr) => {
        $(#[$doc])*
        pub struct $name $(<$life>)? (Repr<$small, $large>);

        impl $(<$life>)? Iterator for $name $(<$life>)? {
            type Item = $item;

            fn next(&mut self) -> Option<$item> {
                match &mut self.0 {
                    Small(list) => list.next().map(|$field| $make),
                    Large(map) => map.next(),
                }
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                match &self.0 {
                    Small(list) => list.size_hint(),
                    Large(map) => map.size_hint(),
                }
            }
        }

        impl $(<$life>)? DoubleEndedIterator for $name $(<$life>)? {
            fn next_back(&mut self) -> Option<$item> {
                match &mut self.0 {
                    Small(list) => list.next_back().map(|$field| $make),
                    Large(map) => map.next_back(),
                }
            }
        }

        impl $(<$life>)? ExactSizeIterator for $name $(<$life>)? {}
    };
}

iterator!(
    /// The fields of a map.
    #[derive(Clone, Debug)]
    Iter<'a>, std::slice::Iter<'a, (Key, Value)>, indexmap::map::Iter<'a, Key, Value>, (&'a Key, &'a Value),
    |(key, value)| (key, value)
);
iterator!(
    /// The fields of a map, to change their values.
    #[derive(Debug)]
    IterMut<'a>, std::slice::IterMut<'a, (Key, Value)>, indexmap::map::IterMut<'a, Key, Value>,
    (&'a Key, &'a mut Value), |(key, value)| (&*key, value)
);
iterator!(
    /// What a map held.
    #[derive(Debug)]
    IntoIter, std::vec::IntoIter<(Key, Value)>, indexmap::map::IntoIter<Key, Value>, (Key, Value), |field| field
);

impl IntoIterator for Map {
    type Item = (Key, Value);
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter(match self.0 {
            Small(list) => Small(list.into_iter()),
            Large(map) => Large(map.into_iter()),
        })
    }
}

impl<'a> IntoIterator for &'a Map {
    type Item = (&'a Key, &'a Value);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl<'a> IntoIterator for &'a mut Map {
    type Item = (&'a Key, &'a mut Value);
    type IntoIter = IterMut<'a>;

    fn into_iter(self) -> IterMut<'a> {
        self.iter_mut()
    }
}

impl Extend<(Key, Value)> for Map {
    fn extend<I: IntoIterator<Item = (Key, Value)>>(&mut self, fields: I) {
        for (name, value) in fields {
            self.insert(name, value);
        }
    }
}

impl FromIterator<(Key, Value)> for Map {
    fn from_iter<I: IntoIterator<Item = (Key, Value)>>(fields: I) -> Map {
        let fields = fields.into_iter();
        let mut map = Map::with_capacity(fields.size_hint().0.min(SMALL));
        map.extend(fields);
        map
    }
}

impl<K: Into<Key>, V: Into<Value>, const N: usize> From<[(K, V); N]> for Map {
    fn from(fields: [(K, V); N]) -> Map {
        fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }
}
