//! The catalog as one session sees it: a snapshot, the session's search path, and the functions that know the session.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isochrone_types::Type;

use super::snapshot::{CatalogSnapshot, PUBLIC};
use crate::descriptor::SequenceDescriptor;
use crate::pg_catalog::{self, SessionShared};
use crate::relation::{CatalogView, Relation, SessionFunction};
use crate::session::Database;

/// See the file's head.
pub struct SessionView {
    db: Arc<Database>,
    snapshot: Arc<CatalogSnapshot>,
    path: Arc<[String]>,
    shared: Arc<SessionShared>,
    bound: AtomicBool,
}

impl SessionView {
    /// A view of this snapshot.
    pub fn new(
        db: Arc<Database>,
        snapshot: Arc<CatalogSnapshot>,
        path: Arc<[String]>,
        shared: Arc<SessionShared>,
    ) -> SessionView {
        SessionView { db, snapshot, path, shared, bound: AtomicBool::new(false) }
    }

    /// Was a function looked up that belongs to this session alone? A plan made with it is not for others.
    pub fn is_session_bound(&self) -> bool {
        self.bound.load(Ordering::Relaxed)
    }

    fn in_path(&self, schema: &str) -> bool {
        self.path.iter().any(|p| p == schema)
    }
}

impl CatalogView for SessionView {
    #[expect(
        clippy::misnamed_getters,
        reason = "plans are cached under the stamp, which overlays do not share"
    )]
    fn version(&self) -> u64 {
        self.snapshot.stamp
    }

    fn relation(&self, schema: Option<&str>, name: &str) -> Option<Relation> {
        let stored = || self.snapshot.table(name).map(|e| Relation::Table(e.table.clone()));
        let computed =
            |schema: &str| self.db.virtual_tables().get(schema, name).map(|t| Relation::Virtual(t.clone()));
        match schema {
            Some(PUBLIC) => stored(),
            Some(schema) => computed(schema),
            None => {
                // pg_catalog comes first unless the path says where it stands.
                if !self.in_path("pg_catalog")
                    && let Some(found) = computed("pg_catalog")
                {
                    return Some(found);
                }
                self.path.iter().find_map(|p| if p == PUBLIC { stored() } else { computed(p) })
            }
        }
    }

    fn sequence(&self, schema: Option<&str>, name: &str) -> Option<Arc<SequenceDescriptor>> {
        let visible = match schema {
            Some(schema) => schema == PUBLIC,
            None => self.in_path(PUBLIC),
        };
        visible.then(|| self.snapshot.sequence(name).cloned()).flatten()
    }

    fn function(&self, name: &str, args: &[Type]) -> Option<Arc<SessionFunction>> {
        let found = pg_catalog::functions::find(name, args, &self.snapshot, &self.db, &self.shared)?;
        if found.session_bound {
            self.bound.store(true, Ordering::Relaxed);
        }
        Some(Arc::new(found.function))
    }

    fn snapshot(&self) -> Option<&Arc<CatalogSnapshot>> {
        Some(&self.snapshot)
    }
}
