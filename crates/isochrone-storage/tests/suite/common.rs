//! The engines under one face, so that every test runs on both.

use isochrone_storage::{Engine, LsmConfig, LsmEngine, MemEngine};

/// An engine that a test can crash and compact.
pub trait Rig {
    fn engine(&self) -> &dyn Engine;
    /// Loses what was not flushed, and opens again.
    fn crash(&mut self);
    fn compact(&self);
}

pub struct MemRig(pub MemEngine);

impl MemRig {
    pub fn new() -> MemRig {
        MemRig(MemEngine::new())
    }
}

impl Rig for MemRig {
    fn engine(&self) -> &dyn Engine {
        &self.0
    }
    fn crash(&mut self) {
        self.0.crash();
    }
    fn compact(&self) {}
}

pub struct LsmRig {
    engine: Option<LsmEngine>,
    dir: tempfile::TempDir,
}

/// So small that a test of some hundred rows flushes by itself.
pub fn tiny() -> LsmConfig {
    LsmConfig { cache_bytes: 1 << 20, memtable_bytes: 8 << 10, ..LsmConfig::default() }
}

impl LsmRig {
    pub fn new() -> LsmRig {
        let dir = tempfile::tempdir().unwrap();
        LsmRig { engine: Some(LsmEngine::open(dir.path(), tiny()).unwrap()), dir }
    }
}

impl Rig for LsmRig {
    fn engine(&self) -> &dyn Engine {
        self.engine.as_ref().unwrap()
    }
    fn crash(&mut self) {
        // Dropping flushes nothing, so what is on disk is what a crash would leave.
        drop(self.engine.take());
        self.engine = Some(LsmEngine::open(self.dir.path(), tiny()).unwrap());
    }
    fn compact(&self) {
        self.engine.as_ref().unwrap().compact().unwrap();
    }
}
