"""Hugging Face checkpoints in and out: one name map per family, read and written streaming."""
