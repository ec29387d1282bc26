//! Channels by key: a vector with reused places, so that a push costs one index and no hashing.

/// Identifies a channel inside one inbox; never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelKey {
    /// Counts up over the inbox's life, so keys order by age.
    serial: u64,
    place: u32,
}

#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Option<(u64, T)>>,
    free: Vec<u32>,
    next_serial: u64,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), next_serial: 0 }
    }
}

impl<T> Slab<T> {
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Stores `value`; `None` when four billion are stored already.
    pub(super) fn insert(&mut self, value: T) -> Option<ChannelKey> {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                let place = u32::try_from(self.places.len()).ok()?;
                self.places.push(None);
                place
            }
        };
        let serial = self.next_serial;
        self.next_serial += 1;
        *self.places.get_mut(place as usize)? = Some((serial, value));
        Some(ChannelKey { serial, place })
    }

    pub(super) fn get(&self, key: ChannelKey) -> Option<&T> {
        match self.places.get(key.place as usize) {
            Some(Some((serial, value))) if *serial == key.serial => Some(value),
            _ => None,
        }
    }

    pub(super) fn get_mut(&mut self, key: ChannelKey) -> Option<&mut T> {
        match self.places.get_mut(key.place as usize) {
            Some(Some((serial, value))) if *serial == key.serial => Some(value),
            _ => None,
        }
    }

    pub(super) fn remove(&mut self, key: ChannelKey) -> Option<T> {
        self.get(key)?;
        let (_, value) = self.places.get_mut(key.place as usize)?.take()?;
        self.free.push(key.place);
        Some(value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ChannelKey, &T)> {
        self.places.iter().zip(0..).filter_map(|(place, number)| {
            place.as_ref().map(|(serial, value)| (ChannelKey { serial: *serial, place: number }, value))
        })
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (ChannelKey, &mut T)> {
        self.places.iter_mut().zip(0..).filter_map(|(place, number)| {
            place.as_mut().map(|(serial, value)| (ChannelKey { serial: *serial, place: number }, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_place_has_another_key() {
        let mut slab = Slab::default();
        let first = slab.insert('a').unwrap();
        let second = slab.insert('b').unwrap();
        assert_eq!(slab.remove(first), Some('a'));
        let third = slab.insert('c').unwrap();
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(third), Some(&mut 'c'));
        assert!(first < second && second < third, "keys order by age");
        assert_eq!(slab.len(), 2);
        assert_eq!(slab.iter().count(), 2);
    }
}
