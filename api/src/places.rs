//! A bound on how many things of one kind each key may have at a time: connections of an address, sockets of
//! a user.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The places there are. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Places<K> {
    most: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// One that is taken, until this is dropped.
#[derive(Debug)]
pub struct Place<K: Hash + Eq> {
    key: K,
    places: Places<K>,
}

impl<K: Hash + Eq + Clone> Places<K> {
    /// At most so many for each key.
    pub fn new(most: usize) -> Self {
        Self { most, taken: Arc::default() }
    }

    /// A place for `key`, if there is one.
    pub fn take(&self, key: K) -> Option<Place<K>> {
        let mut taken = self.lock();
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Place { key, places: Self { most: self.most, taken: self.taken.clone() } })
    }
}

impl<K> Places<K> {
    /// A lock whose holder panicked guards counts that are still right.
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_so_many_places_and_leaves_nothing_behind() {
        let places = Places::new(2);
        let taken = [places.take("a"), places.take("a"), places.take("b")];

        assert!(taken.iter().all(Option::is_some));
        assert!(places.take("a").is_none() && places.take("b").is_some());
        drop(taken);
        assert!(places.take("a").is_some());
        assert!(places.lock().is_empty());
    }
}
