"""Tokenizers, chat templates, data sets and batches on the host."""
