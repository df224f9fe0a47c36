"""Shoestring on a generated graph: for machines without the citation data.

This is not a table of the paper. It is a stochastic block model of 600 nodes in four classes, on
which the program runs in a minute. The numbers say nothing about citation graphs.

Cost: about a minute on two CPU cores.
Command: python -m experiments.shoestring
"""

from experiments.shoestring import config as shoestring_config


def get_config() -> shoestring_config.Shoestring:
  return shoestring_config.Shoestring(
      num_splits=10, heads='softmax,cos', labels_per_class=(1, 5, 20),
      note='A generated graph: see shoestring_cora and shoestring_citeseer for real ones.')
