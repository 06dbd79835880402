//! Hybrid logical timestamps in 64 bits (design D8): 52 bits of microseconds since 1970, 12 logical bits.

use std::fmt;

/// Bits of the logical counter below the microseconds.
pub const LOGICAL_BITS: u32 = 12;

/// A point in the order of commits. The numeric order is the order in time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Before every timestamp that a transaction can have.
    pub const MIN: Timestamp = Timestamp(0);
    /// After every timestamp that a transaction can have.
    pub const MAX: Timestamp = Timestamp(u64::MAX);

    /// The first timestamp of a microsecond. Microseconds past the year 2112 saturate.
    pub fn from_micros(micros: u64) -> Timestamp {
        Timestamp(micros.min(u64::MAX >> LOGICAL_BITS) << LOGICAL_BITS)
    }

    /// Microseconds since 1970 (the logical part is dropped).
    pub fn micros(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The logical counter within the microsecond.
    pub fn logical(self) -> u64 {
        self.0 & ((1 << LOGICAL_BITS) - 1)
    }

    /// The next timestamp; saturates at [`Timestamp::MAX`].
    pub fn next(self) -> Timestamp {
        Timestamp(self.0.saturating_add(1))
    }

    /// The timestamp before; saturates at [`Timestamp::MIN`].
    pub fn prev(self) -> Timestamp {
        Timestamp(self.0.saturating_sub(1))
    }

    /// This timestamp moved into the future by a number of microseconds; saturates.
    pub fn plus_micros(self, micros: u64) -> Timestamp {
        Timestamp(self.0.saturating_add(micros.saturating_mul(1 << LOGICAL_BITS)))
    }

    /// This timestamp moved into the past by a number of microseconds; saturates.
    pub fn minus_micros(self, micros: u64) -> Timestamp {
        Timestamp(self.0.saturating_sub(micros.saturating_mul(1 << LOGICAL_BITS)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:04}", self.micros(), self.logical())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ts:{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_survive() {
        let ts = Timestamp(Timestamp::from_micros(1_700_000_000_000_000).0 + 5);
        assert_eq!(ts.micros(), 1_700_000_000_000_000);
        assert_eq!(ts.logical(), 5);
        assert_eq!(ts.next().prev(), ts);
        assert!(ts.plus_micros(1) > ts && ts.minus_micros(1) < ts);
        assert_eq!(Timestamp::MAX.next(), Timestamp::MAX);
        assert_eq!(Timestamp::MIN.minus_micros(1), Timestamp::MIN);
    }
}
