"""Config of experiments/q_sharp/."""

import dataclasses

from experiments.q_sharp import baselines as baselines_lib
from jaxrl_llm import checks
from jaxrl_llm.algorithms import q_sharp
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_models
from jaxrl_llm.sampling import guided

DATA = ('roll_outs', 'pairs')


@dataclasses.dataclass
class Guidance:
  """Guided decoding; see `sampling.guided`.

  Attributes:
    eta: η, the weight of the KL penalty, of the roll-ins and of the headline numbers.
    num_candidates: K, tokens that the value model evaluates.
    tail: 'add' or 'truncate', for the other tokens.
    order: 'reference_first' or 'after', for the temperature.
    temperature: that of the reference, also of its responses as training data.
    top_p: its nucleus; 1 keeps all.
  """

  eta: float = 0.1
  num_candidates: int = 20
  tail: str = 'add'
  order: str = 'reference_first'
  temperature: float = 1.0
  top_p: float = 1.0

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.positive(self, prefix, 'eta', 'temperature')
    checks.at_least(self, prefix, num_candidates=1)
    checks.one_of(self, prefix, tail=guided.TAILS, order=guided.ORDERS)
    checks.interval(self, prefix, '(0, 1]', 'top_p')


@dataclasses.dataclass
class QSharp(config_lib.ReinforcementConfig):
  """Config of experiments/q_sharp/.

  Attributes:
    algorithm: head, parameterisation and tokens in the loss.
    value: the value model and its training.
    guidance: guided decoding.
    data: 'roll_outs', or 'pairs' of the right response and a wrong sample of the reference for each
      problem (the classifier of the paper's star graphs, whose probabilities are not those of the
      reference).
    rounds: rounds of collecting responses and training from scratch on all of them; the roll-ins
      of the first are those of the reference.
    samples_per_prompt: responses per problem and round.
    batch_size: problems per batch of responses.
    drop_constant: whether to drop problems whose responses, of all rounds, have the same reward
      (released code; it moves probabilities away from 0 and 1).
    etas: other η at which the guided policies are evaluated.
    rules: how the value model guides in the evaluation, separated by commas; see
      `sampling.guided`.
    baselines: policies trained from the reference.
  """

  algorithm: q_sharp.Config = dataclasses.field(default_factory=q_sharp.Config)
  value: value_models.ValueConfig = dataclasses.field(default_factory=value_models.ValueConfig)
  guidance: Guidance = dataclasses.field(default_factory=Guidance)
  data: str = 'roll_outs'
  rounds: int = 2
  samples_per_prompt: int = 16
  batch_size: int = 32
  drop_constant: bool = False
  etas: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 10.0)
  rules: str = 'q_sharp,cd'
  baselines: baselines_lib.Baselines = dataclasses.field(default_factory=baselines_lib.Baselines)

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    super().validate()
    checks.at_least(self, 'config', rounds=1, samples_per_prompt=1, batch_size=1)
    with checks.within('config.algorithm'):
      self.algorithm.validate()
    self.value.validate('config.value')
    self.guidance.validate('config.guidance')
    checks.increasing(self, 'config', 'etas')
    checks.names_of(self, 'config', rules=guided.RULES)
    checks.one_of(self, 'config', data=DATA)
    if self.data == 'pairs':
      checks.fixed(self, 'config', "with data 'pairs'", rounds=1, drop_constant=False)
    self.baselines.validate('config.baselines')

  def swept(self) -> tuple[float, ...]:
    """Returns all η of the evaluation, from large to small."""
    return tuple(sorted({*self.etas, self.guidance.eta}, reverse=True))

  def batch_sizes(self) -> dict[str, tuple[int, int]]:
    """See `config_lib.RunConfig.batch_sizes`."""
    return {
        **super().batch_sizes(), 'batch_size': (self.batch_size, 1),
        'value.batch_size': (self.value.batch_size, self.algorithm.num_micro_batches),
        'baselines.batch_size': (self.baselines.batch_size, 1)}

  def num_rows(self) -> dict[str, int]:
    """See `config_lib.RunConfig.num_rows`."""
    samples = self.batch_size * self.samples_per_prompt
    return {**super().num_rows(), 'samples_per_prompt': samples}

  def memory(self) -> dict[str, int]:
    """See `config_lib.RunConfig.memory`."""
    return super().memory() | self.value.memory()
