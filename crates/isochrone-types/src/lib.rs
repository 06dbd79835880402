//! PostgreSQL's types: values, text and binary form, casts, functions, order-preserving and row encodings.
