"""Few-shot episodes over frozen features: 5-way, 1 and 5 shots, 15 queries per class.

arXiv 1910.12976 reports gains on miniImageNet and tieredImageNet; no code for them was released,
and neither the images nor their features are available offline. The default generates features;
`--config.data_dir=DIR --config.features_file=FILE.npz` uses those of any network ('features' [M, D]
and 'labels' [M], of classes that it was not trained on).

Cost: about a minute on two CPU cores.
Command: python -m experiments.shoestring_few_shot
"""

from experiments.shoestring_few_shot import config as few_shot_config


def get_config() -> few_shot_config.FewShot:
  return few_shot_config.FewShot()
