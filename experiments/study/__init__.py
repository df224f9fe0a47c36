"""Several arms and seeds of a program, one process each."""
