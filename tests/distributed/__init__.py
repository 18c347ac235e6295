"""Two ranks over gloo: strategies, sharding, checkpoints, tensor parallelism."""
