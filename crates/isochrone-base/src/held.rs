//! How full the queues, caches and tables are that a node keeps in memory. Operators see it, and the simulator checks it.

/// One queue, cache or table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Which: `layer.name`.
    pub what: &'static str,
    /// Its entries; of a queue that is emptied all the time, the most there have been since the node began.
    pub entries: usize,
    /// The bound. `usize::MAX`: entries go with what they belong to, or with time.
    pub entries_max: usize,
    /// About how many bytes the entries take.
    pub bytes: usize,
    /// The bound; `usize::MAX`: that of the entries is enough.
    pub bytes_max: usize,
}

impl Held {
    /// Of entries of one size, which are bounded by their number.
    pub fn counted(what: &'static str, entries: usize, entries_max: usize, bytes_each: usize) -> Held {
        Held { what, entries, entries_max, bytes: entries * bytes_each, bytes_max: usize::MAX }
    }

    /// Does it keep its bounds?
    pub fn is_within(&self) -> bool {
        self.entries <= self.entries_max && self.bytes <= self.bytes_max
    }
}
