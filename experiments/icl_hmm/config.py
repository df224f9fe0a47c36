"""Configs of experiments/icl_hmm/; the type of the config decides which study runs."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import icl_hmm
from jaxrl_llm.models import configs
from jaxrl_llm.runs import memory
from jaxrl_llm.training import optim


@dataclasses.dataclass
class IclHmmPublished:
  """Comparison with a published file of results (`experiments.icl_hmm.published`).

  Attributes:
    seed: seed of the simulation.
    results_file: a CSV file of the published schema (`hmm.published_results`).
    num_sequences: trajectories per model (4,096 in the published file).
    baum_welch_sequences: number of them that Baum-Welch is fitted to, separately at each length,
      from one random start as in the file.
    baum_welch_best5_sequences: number of these fitted from five starts too; the likeliest fit wins.
    baum_welch_steps: maximum number of EM steps (100 in the file).
    note: comment that is printed with the results.
  """

  seed: int = 0
  results_file: str = ''
  num_sequences: int = 1_024
  baum_welch_sequences: int = 64
  baum_welch_best5_sequences: int = 8
  baum_welch_steps: int = 100
  note: str = ''

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, num_sequences=1, baum_welch_sequences=1,
        baum_welch_best5_sequences=1, baum_welch_steps=1)
    checks.at_most(self, 'config', baum_welch_steps=2**31 - 1)
    checks.required(self, 'config', 'results_file')

    if self.baum_welch_sequences > self.num_sequences:
      raise ValueError(
          f'config.baum_welch_sequences must be at most config.num_sequences '
          f'({self.num_sequences}), got {self.baum_welch_sequences}')
    if self.baum_welch_best5_sequences > self.baum_welch_sequences:
      raise ValueError(
          f'config.baum_welch_best5_sequences must be at most config.baum_welch_sequences '
          f'({self.baum_welch_sequences}), got {self.baum_welch_best5_sequences}')

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    return {'the sequences of a model (config.num_sequences)': 4 * self.num_sequences}


@dataclasses.dataclass
class IclHmm:
  """Meta-training of a small network on fresh HMMs (`experiments.icl_hmm.scratch`).

  Attributes:
    model: the network; its vocabulary is the set of symbols.
    optimizer: optimizer of the network.
    steps: optimizer steps.
    num_states: M.
    num_symbols: L.
    length: T, the maximum number of symbols before a prediction.
    lambda2_low: lower end of the uniform distribution of the second eigenvalue.
    lambda2_high: its upper end.
    batch_size: fresh HMMs per step, one trajectory each.
    num_evaluation: number of held-out HMMs.
    baum_welch_sequences: number of them that Baum-Welch is fitted to, separately at each length up
      to 64.
    baum_welch_restarts: random starts per fit; the likeliest fit wins.
    baum_welch_steps: maximum number of EM steps.
    results_file: a CSV file of the published schema (`hmm.published_results`), whose HMMs with
      `num_symbols` symbols are predicted too; '' for none.
    recorded_sequences: trajectories of each of those; each one has its own permutation of symbols.
    log_every: steps between lines of metrics.jsonl.
    save_every: steps between checkpoints.
    seed: seed of the whole run.
    algorithm: the loss.
    note: comment that is printed with the results.
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
    """Shape of the network, vocabulary included."""
    return dataclasses.replace(self.model, vocab_size=self.num_symbols)

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, steps=1, num_states=2, num_symbols=2, length=8, batch_size=1,
        num_evaluation=2, baum_welch_sequences=0, baum_welch_restarts=1, baum_welch_steps=1,
        recorded_sequences=1, log_every=1, save_every=0)

    if not 0 <= self.lambda2_low <= self.lambda2_high < 1:
      raise ValueError(
          'config.lambda2_low and config.lambda2_high must be a range in [0, 1), got '
          f'{self.lambda2_low} and {self.lambda2_high}')

    checks.fixed(
        self.model, 'config.model', 'because the vocabulary is config.num_symbols', vocab_size=0)
    if self.model.max_length < self.length:
      raise ValueError(f'config.model.max_length must be at least config.length ({self.length}), '
                       f'got {self.model.max_length}')

    self.network.validate()
    self.algorithm.validate()
    self.optimizer.validate('config.optimizer')
    checks.at_most(self, 'config', steps=2**31 - 1, baum_welch_steps=2**31 - 1)

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    sequences = 4 * self.length * self.num_symbols
    return {
        'the network with its optimizer (config.model)': 3 * 4 * memory.num_weights(self.network),
        'a batch of models and sequences (config.batch_size)': self.batch_size * sequences,
        'the held-out models (config.num_evaluation, config.num_states)':
            self.num_evaluation * 4 * self.num_states**2,
        'the sequences for Baum-Welch (config.baum_welch_sequences, config.baum_welch_restarts)':
            self.baum_welch_sequences * self.baum_welch_restarts * 4 * self.num_states,
        'the sequences of a published model (config.recorded_sequences)':
            self.recorded_sequences * sequences,
    }
