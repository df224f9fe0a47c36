"""The device mesh, and the sharding of parameters over it."""
