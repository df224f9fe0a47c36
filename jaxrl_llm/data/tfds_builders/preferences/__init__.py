"""TFDS builder of preference data sets."""
