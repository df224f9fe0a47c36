"""TFDS builders for real data sets, without TensorFlow: array_record files, as_data_source."""
