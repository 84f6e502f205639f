//! Things on their way, each taken out once, in places that are used again.

pub(crate) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(crate) fn put(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.places[at] = Some(value);
                at
            }
            None => {
                self.places.push(Some(value));
                self.places.len() - 1
            }
        }
    }

    pub(crate) fn take(&mut self, at: usize) -> Option<T> {
        let value = self.places[at].take()?;
        self.free.push(at);
        Some(value)
    }
}
