//! The arrows between crates point down (ARCHITECTURE.md). A new arrow is a decision: it gets an ADR and a line here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What each crate may lean on (normal dependencies; tests may lean on more).
const ARROWS: &[(&str, &[&str])] = &[
    ("isochrone-base", &[]),
    ("isochrone-check", &[]),
    ("isochrone-api", &["isochrone-base"]),
    ("isochrone-env", &["isochrone-base"]),
    ("isochrone-clock", &["isochrone-base", "isochrone-env"]),
    ("isochrone-net", &["isochrone-base", "isochrone-env"]),
    ("isochrone-wal", &["isochrone-base", "isochrone-env"]),
    ("isochrone-storage", &["isochrone-base"]),
    ("isochrone-consensus", &["isochrone-base", "isochrone-env", "isochrone-wal"]),
    ("isochrone-shard", &["isochrone-base", "isochrone-env", "isochrone-clock", "isochrone-storage"]),
    ("isochrone-txn", &["isochrone-base", "isochrone-env", "isochrone-clock", "isochrone-shard"]),
    ("isochrone-model", &["isochrone-base", "isochrone-env", "isochrone-shard"]),
    ("isochrone-types", &["isochrone-base"]),
    ("isochrone-sql", &["isochrone-base", "isochrone-env", "isochrone-txn", "isochrone-types"]),
    ("isochrone-pgwire", &["isochrone-base", "isochrone-env", "isochrone-sql", "isochrone-types"]),
    (
        "isochrone-server",
        &[
            "isochrone-api",
            "isochrone-base",
            "isochrone-env",
            "isochrone-clock",
            "isochrone-net",
            "isochrone-wal",
            "isochrone-storage",
            "isochrone-consensus",
            "isochrone-shard",
            "isochrone-txn",
            "isochrone-types",
            "isochrone-sql",
            "isochrone-pgwire",
        ],
    ),
    (
        "isochrone-cli",
        &[
            "isochrone-api",
            "isochrone-base",
            "isochrone-env",
            "isochrone-net",
            "isochrone-wal",
            "isochrone-shard",
        ],
    ),
    (
        "isochrone-sim",
        &[
            "isochrone-base",
            "isochrone-env",
            "isochrone-check",
            "isochrone-clock",
            "isochrone-net",
            "isochrone-wal",
            "isochrone-storage",
            "isochrone-consensus",
            "isochrone-shard",
            "isochrone-txn",
            "isochrone-types",
            "isochrone-sql",
            "isochrone-server",
        ],
    ),
    (
        "isochrone",
        &[
            "isochrone-base",
            "isochrone-env",
            "isochrone-txn",
            "isochrone-types",
            "isochrone-sql",
            "isochrone-server",
            "isochrone-cli",
            "isochrone-sim",
        ],
    ),
];

/// Crates of others that stop at one crate of ours.
const FOREIGN: &[(&str, &str)] = &[
    ("raft", "isochrone-consensus"),
    ("lsm-tree", "isochrone-storage"),
    ("sqlparser", "isochrone-sql"),
    ("pgwire", "isochrone-pgwire"),
    ("axum", "isochrone-server"),
    ("num-bigint", "isochrone-types"),
    ("jiff", "isochrone-types"),
    ("rustyline", "isochrone-cli"),
];

fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split("\n[").find_map(|s| s.strip_prefix("dependencies]")).unwrap_or_default();
    let names = section.lines().filter_map(|l| l.split(['.', '=', ' ']).next());
    names.filter(|n| !n.is_empty() && !n.starts_with('#')).map(str::to_string).collect()
}

#[test]
fn arrows_point_down() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ARROWS.iter().map(|(c, d)| (*c, d.iter().copied().collect())).collect();
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(crates).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        let manifest = std::fs::read_to_string(path.join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}: folder and package have one name");
        let allowed = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in ARROWS"));
        for dependency in dependencies(&manifest) {
            if dependency.starts_with("isochrone") {
                assert!(allowed.contains(dependency.as_str()), "{name} may not lean on {dependency}");
            }
            for (foreign, home) in FOREIGN {
                assert!(
                    dependency != *foreign || name == *home,
                    "{foreign} stops at {home}, but {name} uses it"
                );
            }
        }
        seen.insert(name);
    }
    assert_eq!(seen, ARROWS.iter().map(|(c, _)| c.to_string()).collect(), "every crate of ARROWS exists");
}

#[test]
fn arrows_have_no_cycle() {
    // A crate may lean only on crates above it in the list.
    let order: Vec<&str> = ARROWS.iter().map(|(c, _)| *c).collect();
    for (i, (name, deps)) in ARROWS.iter().enumerate() {
        for dep in *deps {
            assert!(order[..i].contains(dep), "{name} leans on {dep}, which comes after it");
        }
    }
}
