"""What the configs of experiments/icl_hmm/ can set; the type of the settings says what is run."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import icl_hmm
from jaxrl_llm.models import configs
from jaxrl_llm.training import optim


@dataclasses.dataclass
class IclHmmPublished:
  """One comparison with a published file of results (`icl_hmm_published`).

  Attributes:
    seed: of the simulation.
    results_file: a CSV file of the published schema (`tasks.hmm_results`).
    num_sequences: trajectories a model (4,096 in the published file).
    baum_welch_sequences: how many of them Baum-Welch is fitted to, at each length anew, from one
      random start as there.
    baum_welch_best5_sequences: how many of these also from five, of which the likeliest end counts.
    baum_welch_steps: of EM, at most (100 there).
    note: what a reader must know; printed with the results.
  """

  seed: int = 0
  results_file: str = ''
  num_sequences: int = 1_024
  baum_welch_sequences: int = 64
  baum_welch_best5_sequences: int = 8
  baum_welch_steps: int = 100
  note: str = ''

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    checks.at_least(self, 'config', seed=0, num_sequences=1, baum_welch_sequences=1,
                      baum_welch_best5_sequences=1, baum_welch_steps=1)
    if not self.results_file:
      raise ValueError('a CSV file of published results is needed: --config.results_file=FILE.csv')
    if self.baum_welch_sequences > self.num_sequences:
      raise ValueError(
          f'config.baum_welch_sequences must be at most config.num_sequences '
          f'({self.num_sequences}), got {self.baum_welch_sequences}')
    if self.baum_welch_best5_sequences > self.baum_welch_sequences:
      raise ValueError(
          f'config.baum_welch_best5_sequences must be at most config.baum_welch_sequences '
          f'({self.baum_welch_sequences}), got {self.baum_welch_best5_sequences}')


@dataclasses.dataclass
class IclHmm:
  """Meta-training of a small network on fresh HMMs (`icl_hmm_scratch`).

  Attributes:
    model: the network; its vocabulary is the symbols.
    optimizer: of the network.
    steps: of the optimizer.
    num_states: M.
    num_symbols: L.
    length: T, symbols that a prediction may have seen at most.
    lambda2_low: of the second eigenvalue, drawn uniformly from here ...
    lambda2_high: ... to here.
    batch_size: fresh HMMs a step, one trajectory each.
    num_evaluation: held-out HMMs.
    baum_welch_sequences: how many of them Baum-Welch is fitted to, at each length up to 64 anew.
    baum_welch_restarts: random starts of a fit, of which the likeliest end counts.
    baum_welch_steps: of EM, at most.
    results_file: a CSV file of the published schema (`tasks.hmm_results`), whose HMMs with so many
      symbols are predicted too; '' is none.
    recorded_sequences: trajectories of each of those, symbols permuted anew in each.
    log_every: steps between lines of metrics.jsonl.
    save_every: steps between checkpoints.
    seed: of everything.
    algorithm: the loss.
    note: what a reader must know; printed with the results.
  """

  model: configs.TransformerConfig
  optimizer: optim.OptimizerConfig
  steps: int
  num_states: int = 4
  num_symbols: int = 4
  length: int = 64
  lambda2_low: float = 0.3
  lambda2_high: float = 0.99
  batch_size: int = 64
  num_evaluation: int = 4_096
  baum_welch_sequences: int = 128
  baum_welch_restarts: int = 5
  baum_welch_steps: int = 100
  results_file: str = ''
  recorded_sequences: int = 256
  log_every: int = 50
  save_every: int = 500
  seed: int = 0
  algorithm: icl_hmm.Config = dataclasses.field(default_factory=icl_hmm.Config)
  note: str = ''

  @property
  def network(self) -> configs.TransformerConfig:
    """The network's shape with its vocabulary."""
    return dataclasses.replace(self.model, vocab_size=self.num_symbols)

  def validate(self) -> None:
    """Raises ValueError with one line for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, steps=1, num_states=2, num_symbols=2, length=8, batch_size=1,
        num_evaluation=2, baum_welch_sequences=0, baum_welch_restarts=1, baum_welch_steps=1,
        recorded_sequences=1, log_every=1, save_every=0)
    if not 0 <= self.lambda2_low <= self.lambda2_high < 1:
      raise ValueError(
          'config.lambda2_low and config.lambda2_high must be a range within [0, 1), got '
          f'{self.lambda2_low} and {self.lambda2_high}')
    if self.model.vocab_size:
      raise ValueError(
          'config.model.vocab_size must be 0: the vocabulary is config.num_symbols, got '
          f'{self.model.vocab_size}')
    if self.model.max_length < self.length:
      raise ValueError(f'config.model.max_length must be at least config.length ({self.length}), '
                       f'got {self.model.max_length}')
    self.network.validate()
    self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
