//! Joins the layers of one node, as a library; owns threads, sockets, shutdown.
