//! placeholder
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
/// numeric
pub struct Numeric { m: i64, scale: u16 }
impl Numeric {
    /// heap
    pub fn heap_bytes(&self) -> usize { let _ = (self.m, self.scale); 0 }
}
