"""Shoestring on Cora: LP, GCN, IGCN and GLP, 1 to 20 labels per class, 20 splits.

IGCN and GLP run with both filters. With the autoregressive one (igcn_ar, glp_ar) they run without
the heads l1 and l2, so that the study takes minutes rather than hours: `--config.ar_heads` adds
them. The plain MLP is left out, as it does not see the graph (`--config.backbones=...,mlp` runs
it).

The tables of arXiv 1910.12976 could not be confirmed, so there are no published values to compare
with. The authors' code, as released, evaluates with prototypes of the test labels; both evaluations
are reported. The public split is that of Kipf and Welling's 81.5 % (arXiv 1609.02907, table 2),
whose GCN decays only its first layer and stops early.

Cost: 13,200 epochs, each a step of 20 splits: 25 minutes of processor time on two CPU cores.
Finished arms are saved, and the same command resumes with the next one.
Command: python -m experiments.shoestring --config=experiments/configs/shoestring_cora.py \
  --config.data_dir=DIR
"""

from experiments.shoestring import config as shoestring_config


def get_config() -> shoestring_config.Shoestring:
  return shoestring_config.Shoestring(
      dataset='cora', public_split=True, backbones='lp,gcn,igcn,igcn_ar,glp,glp_ar',
      ar_heads='softmax,cos')
