"""TFDS builder for preference data sets."""
