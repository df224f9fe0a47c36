"""Shoestring on CiteSeer: LP, GCN, IGCN and GLP, 1 to 20 labels per class, 20 splits.

Backbones and heads are those of shoestring_cora.py. 15 nodes have no label, and are used neither
for training nor for testing.

Cost: about twice that of Cora.
Command: python -m experiments.shoestring --config=experiments/configs/shoestring_citeseer.py \
  --config.data_dir=DIR
"""

from experiments.shoestring import config as shoestring_config


def get_config() -> shoestring_config.Shoestring:
  return shoestring_config.Shoestring(
      dataset='citeseer', public_split=True, backbones='lp,gcn,igcn,igcn_ar,glp,glp_ar',
      ar_heads='softmax,cos')
