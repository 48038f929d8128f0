"""Which samples a worker trains on: what stands behind `paceline.shard`."""
