//! A shard: the pump that joins the machine and the store.
