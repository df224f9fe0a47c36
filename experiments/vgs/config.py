"""Config of experiments/vgs/."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import vgs
from jaxrl_llm.evaluation import search
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_models
from jaxrl_llm.tasks import noisy_sum

SCORERS = ('value', 'exact', 'random')


@dataclasses.dataclass
class Collection:
  """Responses that the value model is trained on.

  Attributes:
    temperatures: temperatures of the roll-ins, increasing; each makes `responses` per problem.
    init_from: directories of further roll-in policies, separated by commas; as `policy_init_from`,
      of the reference's shape and tokenizer. Each makes `responses` at the reference's temperature.
    responses: roll-ins per problem and policy.
    cuts: cuts of each roll-in.
    cut_power: a cut after c tokens has a probability proportional to (c + 1)^cut_power.
    batch_size: problems per batch.
    drop_unsolved: whether to drop problems without a right roll-out.
  """

  temperatures: tuple[float, ...] = (1.0,)
  init_from: str = ''
  responses: int = 14
  cuts: int = 4
  cut_power: float = 0.5
  batch_size: int = 32
  drop_unsolved: bool = True

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.increasing(self, prefix, 'temperatures')
    checks.at_least(self, prefix, responses=1, cuts=1, batch_size=1)
    checks.finite(self, prefix, 'cut_power')


@dataclasses.dataclass
class Vgs(config_lib.ReinforcementConfig):
  """Config of experiments/vgs/.

  Attributes:
    algorithm: loss of the value model.
    value: the value model and its training.
    collection: the responses that it is trained on.
    temperature: that of the reference.
    top_p: its nucleus; 1 keeps all.
    budgets: N, blocks per problem and depth, of search; samples per problem of its baselines.
    width: w, blocks of each beam; divides all budgets.
    block_tokens: tokens of a block.
    trees: M of diverse verifier tree search at the largest budget, which they divide; 1: none.
    scorers: what ranks blocks, separated by commas: the 'value' model; the 'exact' value, where it
      is known (noisy sums); or 'random', a control.
  """

  algorithm: vgs.Config = dataclasses.field(default_factory=vgs.Config)
  value: value_models.ValueConfig = dataclasses.field(default_factory=value_models.ValueConfig)
  collection: Collection = dataclasses.field(default_factory=Collection)
  temperature: float = 0.6
  top_p: float = 0.95
  budgets: tuple[int, ...] = (4, 8, 16)
  width: int = 2
  block_tokens: int = 4_096
  trees: int = 1
  scorers: str = 'value,random'

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    with checks.within('config.algorithm'):
      self.algorithm.validate()
    self.value.validate('config.value')
    self.collection.validate('config.collection')

    checks.positive(self, 'config', 'temperature')
    checks.interval(self, 'config', '(0, 1]', 'top_p')
    checks.increasing(self, 'config', 'budgets')
    checks.at_least(self, 'config', width=1, block_tokens=1, trees=1)
    checks.names_of(self, 'config', scorers=SCORERS)
    if 'exact' in self.scorers.split(',') and not isinstance(self.task, noisy_sum.Config):
      raise ValueError(
          "config.scorers must not have 'exact' for this task: only the exact values of noisy sums "
          f'are known, got {self.scorers!r}')

    for budget in self.budgets:
      with checks.within('config.budgets, config.width'):
        self.search(budget).validate()
    if self.budgets[-1] % (self.trees * self.width):
      raise ValueError(
          f'config.trees * config.width must divide the largest budget, {self.budgets[-1]}, got '
          f'{self.trees} * {self.width}')

  def search(self, budget: int, *, trees: int = 1) -> search.Config:
    """Returns the config of a search with N = `budget` blocks in all trees together."""
    return search.Config(budget // trees, self.width, trees, self.block_tokens)

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {
        **super().batch_sizes(), 'collection.batch_size': (self.collection.batch_size, 1),
        'value.batch_size': (self.value.batch_size, self.algorithm.num_micro_batches)}

  def num_rows(self) -> dict[str, int]:
    """See `config_lib.RunConfig.num_rows`."""
    part = self.collection
    return {**super().num_rows(), 'collection.responses':
            part.batch_size * part.responses * part.cuts}

  def memory(self) -> dict[str, int]:
    """See `config_lib.RunConfig.memory`."""
    return super().memory() | self.value.memory()
