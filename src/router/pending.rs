//! Requests that other cores have not answered yet: a slab of sinks.

use flowmesh_engine::ReplySink;

/// Sinks by number. A number is used again once its request was answered.
#[derive(Default)]
pub struct Pending {
    sinks: Vec<Option<Box<dyn ReplySink>>>,
    free: Vec<u32>,
}

impl Pending {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.sinks.len() - self.free.len()
    }

    /// Keeps a sink and gives it a number.
    pub fn insert(&mut self, sink: Box<dyn ReplySink>) -> u32 {
        if let Some(id) = self.free.pop() {
            if let Some(place) = self.sinks.get_mut(id as usize) {
                debug_assert!(place.is_none(), "a free number has no sink");
                *place = Some(sink);
            }
            id
        } else {
            self.sinks.push(Some(sink));
            (self.sinks.len() - 1) as u32
        }
    }

    /// Takes the sink of a number.
    pub fn take(&mut self, id: u32) -> Option<Box<dyn ReplySink>> {
        let sink = self.sinks.get_mut(id as usize)?.take()?;
        self.free.push(id);
        Some(sink)
    }

    /// The numbers of sinks that nobody listens to any more.
    pub fn closed(&self) -> Vec<u32> {
        (0u32..)
            .zip(&self.sinks)
            .filter(|(_, sink)| sink.as_ref().is_some_and(|sink| sink.is_closed()))
            .map(|(id, _)| id)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flowmesh_engine::SinkFn;

    #[test]
    fn numbers_are_used_again_once_answered() {
        let mut pending = Pending::default();
        let sink = || Box::new(SinkFn(|_| {}));
        let (a, b) = (pending.insert(sink()), pending.insert(sink()));
        assert_ne!(a, b);
        assert!(pending.take(a).is_some());
        assert!(pending.take(a).is_none());
        assert_eq!(pending.insert(sink()), a);
        assert_eq!(pending.len(), 2);
    }
}
