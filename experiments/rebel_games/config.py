"""Config of experiments/rebel_games/."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.models import configs
from jaxrl_llm.runs import memory


@dataclasses.dataclass
class RebelGames:
  """One run of experiments/rebel_games/, with all seeds in parallel.

  Attributes:
    seed: the first seed.
    num_seeds: number of seeds: seed, seed + 1, ...
    initial_policy: π_0 of rock, paper, scissors.
    algorithm: config of REBEL. Each arm sets `signal` itself.
    model: the policy; its vocabulary is the three moves.
    learning_rate: learning rate of gradient descent on the head. The regression is linear there,
      with a curvature of at most 2 |hidden|² = 2 · width: descent diverges at 1 / width.
    steps: iterations, T.
    batch_size: pairs per iteration.
    num_comparators: M, responses that each pair is compared with.
    note: note for the reader, printed with the results.
  """

  seed: int = 0
  num_seeds: int = 5
  initial_policy: tuple[float, ...] = (0.6, 0.3, 0.1)
  algorithm: rebel.Config = dataclasses.field(
      default_factory=lambda: rebel.Config(
          eta=0.05, kl_coefficient=0.0, signal='preferences', offline_fraction=1.0,
          temperature=1.0, num_epochs=8, head_chunk=0))
  model: configs.TransformerConfig = dataclasses.field(
      default_factory=lambda: configs.TransformerConfig(
          vocab_size=3, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8,
          mlp_width=32, max_length=4, tie_embeddings=False))
  learning_rate: float = 0.03
  steps: int = 2_000
  batch_size: int = 64
  num_comparators: int = 1
  note: str = ''

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, num_seeds=1, steps=1, batch_size=1, num_comparators=1)
    checks.at_most(self, 'config', seed=2**31 - self.num_seeds)
    checks.positive(self, 'config', 'learning_rate')

    policy = self.initial_policy
    if len(policy) != 3 or not min(policy) > 0 or abs(sum(policy) - 1) > 1e-6:
      raise ValueError(
          f'config.initial_policy must be three positive numbers that sum to 1, got {policy}')

    algorithm, name = self.algorithm, 'config.algorithm'
    algorithm.validate()
    checks.fixed(algorithm, name, 'here: the arms set it', signal='preferences')
    checks.fixed(algorithm, name, 'here: a preference has no best of several', pairs='all')
    checks.fixed(
        algorithm, name, 'here: the bound is for plain preferences without a penalty',
        kl_coefficient=0, whiten_rewards=False)

    self.model.validate()
    checks.fixed(self.model, 'config.model', 'here: one token per move', vocab_size=3)
    checks.fixed(
        self.model, 'config.model', 'here: only the head is trained', tie_embeddings=False)
    checks.divisible(
        self, 'config', 'batch_size', algorithm.num_minibatches * algorithm.num_micro_batches,
        of='num_minibatches * num_micro_batches')

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    responses = self.batch_size * (2 + self.num_comparators)
    return {
        'the policies of all seeds (config.num_seeds, config.model)':
            self.num_seeds * 4 * memory.num_weights(self.model),
        'the responses of an iteration (config.batch_size)':
            self.num_seeds * responses * 4 * self.model.width,
        'the policies of all iterations (config.steps)': self.num_seeds * self.steps * 3 * 4,
    }
