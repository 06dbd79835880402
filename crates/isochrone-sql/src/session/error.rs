//! One table: what the layers below say, and the SQLSTATE that the client hears.

use isochrone_txn::kv;
use isochrone_types::{Error, SqlState};

/// The SQL error of a store's error.
#[cold]
pub fn kv_error(e: kv::Error) -> Error {
    let message = e.to_string();
    match e {
        kv::Error::Serialization(_) => Error::new(SqlState::SERIALIZATION_FAILURE, message)
            .with_hint("The transaction might succeed if retried."),
        kv::Error::Deadlock => Error::new(SqlState::DEADLOCK_DETECTED, message),
        kv::Error::LockTimeout(_) => {
            Error::new(SqlState::LOCK_NOT_AVAILABLE, "canceling statement due to lock timeout")
                .with_detail(message)
        }
        kv::Error::Unknown(_) => Error::new(SqlState::STATEMENT_COMPLETION_UNKNOWN, message)
            .with_hint("Check whether the transaction's effects are there before repeating it."),
        kv::Error::TooLarge(_) => Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, message),
        kv::Error::ReadOnly => Error::new(SqlState::READ_ONLY_SQL_TRANSACTION, message),
        kv::Error::SnapshotTooOld(_) => Error::new(SqlState("72000"), message),
        kv::Error::Unavailable(_) => Error::new(SqlState::CANNOT_CONNECT_NOW, message),
        kv::Error::Stopped(why) if is_disk_full(&why) => Error::new(SqlState::DISK_FULL, message)
            .with_hint("Nothing more is written until the node is started again with room on its disk."),
        kv::Error::Stopped(_) => Error::new(SqlState::IO_ERROR, message),
        kv::Error::NoSuch(_) => Error::new(SqlState::UNDEFINED_OBJECT, message),
        kv::Error::Internal(_) => Error::internal(message),
    }
}

/// The layers below carry the operating system's refusal as its text; the number at its end is ENOSPC or EDQUOT.
fn is_disk_full(why: &str) -> bool {
    ["(os error 28)", "(os error 122)"].iter().any(|n| why.contains(n))
}

/// Can the transaction still go back to a savepoint after this error? Not when the store has given up on it.
pub fn survives_savepoint(e: &Error) -> bool {
    let code = e.sqlstate.code();
    !(code.starts_with("40") || matches!(code, "53100" | "57P03" | "58030" | "72000" | "XX000"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn every_kind_has_its_code() {
        let cases = [
            (kv::Error::Serialization("x".into()), "40001"),
            (kv::Error::Deadlock, "40P01"),
            (kv::Error::LockTimeout(Duration::from_secs(1)), "55P03"),
            (kv::Error::Unknown("x".into()), "40003"),
            (kv::Error::TooLarge("x".into()), "54000"),
            (kv::Error::ReadOnly, "25006"),
            (kv::Error::SnapshotTooOld("x".into()), "72000"),
            (kv::Error::Unavailable("x".into()), "57P03"),
            (kv::Error::Stopped("x".into()), "58030"),
            (kv::Error::Stopped(format!("write f: {}", std::io::Error::from_raw_os_error(28))), "53100"),
            (kv::Error::Internal("x".into()), "XX000"),
        ];
        for (e, code) in cases {
            assert_eq!(kv_error(e.clone()).sqlstate.code(), code, "{e}");
        }
        assert!(!survives_savepoint(&kv_error(kv::Error::Deadlock)));
        assert!(survives_savepoint(&Error::division_by_zero()));
    }
}
