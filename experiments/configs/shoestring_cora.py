"""Shoestring on Cora: every backbone and head, 1 to 20 labels a class, 20 splits.

The tables of arXiv 1910.12976 could not be confirmed, so that no published value stands beside
these; the authors' code, as released, evaluates with prototypes of the test labels. Both
evaluations are reported. The public split is that of Kipf and Welling's 81.5 % (arXiv
1609.02907, table 2), whose GCN decays its first layer alone and stops early.

Cost: see README; the arms are kept, and the same command goes on with the next one.
Command: python -m experiments.shoestring --config=experiments/configs/shoestring_cora.py \
  --config.data_dir=DIR
"""

from experiments import settings_shoestring


def get_config() -> settings_shoestring.Shoestring:
  return settings_shoestring.Shoestring(dataset='cora', public_split=True)
