"""The receiving side: parameter-server shards, and the coordinator of an all-reduce."""
