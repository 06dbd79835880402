//! Transactions: the coordinator, buffered writes, recovery by anyone.
