//! A whole node under one seed: virtual time, simulated disk, crashes, checkers.
