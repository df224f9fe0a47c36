"""Decoders and their heads as pure functions; the only folder that imports flax."""
