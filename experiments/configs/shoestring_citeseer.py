"""Shoestring on CiteSeer: every backbone and head, 1 to 20 labels a class, 20 splits.

As shoestring_cora.py; 15 of its nodes have no label, and are neither trained nor tested on.

Cost: about twice that of Cora.
Command: python -m experiments.shoestring --config=experiments/configs/shoestring_citeseer.py \
  --config.data_dir=DIR
"""

from experiments import settings_shoestring


def get_config() -> settings_shoestring.Shoestring:
  return settings_shoestring.Shoestring(dataset='citeseer', public_split=True)
