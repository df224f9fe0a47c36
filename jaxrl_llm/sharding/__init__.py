"""The device mesh, and which parameter lies where on it."""
