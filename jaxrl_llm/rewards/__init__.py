"""Verifiers and other rewards, on the host."""
