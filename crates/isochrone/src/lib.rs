//! Isochrone: a distributed SQL database. The binary, and the library to embed.
