//! PostgreSQL's wire protocol: bytes to session commands and back.
