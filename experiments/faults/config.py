"""Config of experiments/faults/."""

import dataclasses

from experiments.faults.targets import TARGETS, Target
from jaxrl_llm import checks

KINDS = ('kill', 'signal', 'damage', 'disk', 'invocation')


@dataclasses.dataclass
class Faults:
  """A campaign of faults.

  Attributes:
    seed: determines every case.
    targets: comma-separated names of targets; '' means all.
    kills: cases that kill -9 a run at a random moment.
    signals: cases that send SIGINT, SIGTERM or SIGHUP at a random moment.
    damages: cases that damage a file of an interrupted run.
    disks: cases that let the disk fill up.
    invocations: wrong commands, drawn from the table without repetition; -1 takes all.
    workers: cases at a time.
    time_limit: seconds after which a case counts as hung.
    note: a note on the config for readers; printed with its results.
  """

  seed: int = 0
  targets: str = ''
  kills: int = 60
  signals: int = 40
  damages: int = 450
  disks: int = 30
  invocations: int = 450
  workers: int = 2
  time_limit: float = 300.0
  note: str = ''

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, kills=0, signals=0, damages=0, disks=0, invocations=-1, workers=1)
    checks.at_most(self, 'config', workers=1_024)
    checks.positive(self, 'config', 'time_limit')
    if self.targets:
      checks.names_of(self, 'config', targets=[target.name for target in TARGETS])

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    count = self.kills + self.signals + self.damages + self.disks + max(self.invocations, 0)
    return {'the list of cases': 100 * count}

  def chosen(self) -> list[Target]:
    """Lists the targets in use."""
    names = self.targets.split(',') if self.targets else None
    return [target for target in TARGETS if names is None or target.name in names]
