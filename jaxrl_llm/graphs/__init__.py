"""Node classification with few labels: graph networks, prototypes, data sets."""
