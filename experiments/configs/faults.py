"""A campaign of faults: kills, signals, damaged files, full disks and wrong commands.

Every case must end with the numbers of an undisturbed run, or with one line that says what is
wrong. Variants: none, and `quick`, a few cases of the cheapest program.

Cost: 48 minutes on two CPU cores that had other work too (results/faults).
Command: python -m experiments.faults
"""

from experiments.faults import config as faults_config

VARIANTS = ('quick',)


def get_config(variant: str = '') -> faults_config.Faults:
  if variant not in ('', *VARIANTS):
    raise ValueError(f'variant must be {" or ".join(VARIANTS)} or none, got {variant!r}')
  if variant == 'quick':
    return faults_config.Faults(
        targets='sft', kills=1, signals=1, damages=8, disks=1, invocations=20)
  return faults_config.Faults()
