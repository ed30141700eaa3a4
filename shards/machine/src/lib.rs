//! The pure state machine of a shard: streams, queues, key-value stores, the catalog.
