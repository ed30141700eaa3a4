//! Texts that many jobs share, each in memory once.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A text and how often it is used.
#[derive(Debug)]
struct Name {
    text: Bytes,
    uses: u32,
}

/// Texts by number, from 1; 0 is the empty one. A number is free again once nothing uses it.
#[derive(Debug, Default)]
pub(crate) struct Names {
    slots: Vec<Name>,
    free: Vec<u32>,
    /// By text, which clients choose: an order cannot be made to collide.
    numbers: BTreeMap<Bytes, u32>,
    /// The last one asked for: usually also the next one.
    last: u32,
    memory_bytes: u64,
}

impl Names {
    /// An estimate of what it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    fn cost(text: &Bytes) -> u64 {
        (size_of::<Name>() + 2 * size_of::<Bytes>() + 48 + text.len()) as u64
    }

    fn name(&self, number: u32) -> Option<&Name> {
        self.slots.get(number.checked_sub(1)? as usize)
    }

    /// The text of a number.
    pub fn text(&self, number: u32) -> Bytes {
        self.name(number).map_or_else(Bytes::new, |name| name.text.clone())
    }

    /// The number of a text that is used.
    pub fn number(&self, text: &[u8]) -> Option<u32> {
        self.numbers.get(text).copied()
    }

    /// How often a text is used.
    pub fn uses(&self, number: u32) -> u32 {
        self.name(number).map_or(0, |name| name.uses)
    }

    /// The number of a text, used once more.
    pub fn take(&mut self, text: &Bytes) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if self.name(self.last).is_none_or(|name| name.text != text || name.uses == 0) {
            self.last = self.number_or_new(text);
        }
        if let Some(name) = self.slots.get_mut(self.last as usize - 1) {
            name.uses += 1;
        }
        self.last
    }

    fn number_or_new(&mut self, text: &Bytes) -> u32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let text = Bytes::copy_from_slice(text);
        self.memory_bytes += Self::cost(&text);
        let name = Name { text: text.clone(), uses: 0 };
        let number = self.free.pop().unwrap_or(self.slots.len() as u32 + 1);
        match self.slots.get_mut(number as usize - 1) {
            Some(free) => *free = name,
            None => self.slots.push(name),
        }
        self.numbers.insert(text, number);
        number
    }

    /// Uses a number once less. Returns whether it is free now.
    pub fn give_back(&mut self, number: u32) -> bool {
        let Some(name) = number.checked_sub(1).and_then(|at| self.slots.get_mut(at as usize)) else {
            return false;
        };
        name.uses -= 1;
        if name.uses > 0 {
            return false;
        }
        let text = std::mem::take(&mut name.text);
        self.memory_bytes -= Self::cost(&text);
        self.numbers.remove(&text);
        self.free.push(number);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_one_number_as_long_as_it_is_used() {
        let mut names = Names::default();
        let [ada, bob] = [Bytes::from_static(b"ada"), Bytes::from_static(b"bob")];
        assert_eq!(names.take(&Bytes::new()), 0);
        assert_eq!([names.take(&ada), names.take(&bob), names.take(&ada), names.take(&ada)], [1, 2, 1, 1]);
        assert_eq!(
            (names.text(1), names.text(0), names.number(b"bob"), names.uses(1)),
            (ada.clone(), Bytes::new(), Some(2), 3)
        );
        assert!(!names.give_back(0) && !names.give_back(1) && !names.give_back(1) && names.give_back(1));
        assert_eq!(names.number(b"ada"), None);
        assert_eq!([names.take(&bob), names.take(&ada)], [2, 1], "a free number is used again");
        assert!(!names.give_back(2) && names.give_back(2) && names.give_back(1));
        assert_eq!(names.memory_bytes(), 0);
    }
}
