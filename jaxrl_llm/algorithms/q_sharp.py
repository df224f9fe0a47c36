"""Q#: the distribution of the return after each token, under the reference, as a value function.

Zhou et al. (2025), Q#: Provably Optimal Distributional RL for LLM Post-Training, arXiv 2502.20548.

With Z(x, y) the return after token y in state x if the reference π_ref chooses all later tokens,
the optimal policy of max E[R] − η KL(π ‖ π_ref) is

  π*(y | x) ∝ π_ref(y | x) E[exp(Z(x, y) / η)],

so that only the distribution of Z has to be learned, from data of π_ref, for all η at once. A
response is rolled in by the guided policy up to a random token, and rolled out by π_ref from there
(`experiments/q_sharp/`). In a batch, a rollout is the whole response with its return; its mask is 1
from the token at the switch on, the last one that the guided policy chose. The loss is

  L(θ) = mean over responses of (1 / |M|) Σ_{t ∈ M} ℓ(f_θ(x, y_≤t), R)

with M the tokens from the switch on, and ℓ and f of a head of `rl/return_heads.py`. The tokens
before the switch are in no loss: the returns after them are also those of guided tokens.

Departures from the released code (jinpz/q_sharp), and why:
- The nearest atom of a histogram is found for any range of returns, not only [0, 1].
- η is the weight of the KL penalty everywhere.
"""

import dataclasses

import chex
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import batches, return_heads, sequence_scores
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, Batch, ModelFns, TrainState

HEADS = ('bernoulli', 'squared_error', 'histogram')
FUNCTIONS = ('value', 'q_function')
POSITIONS = ('all', 'first')


@dataclasses.dataclass
class Config:
  """Q# config; the defaults are the paper's.

  Attributes:
    head: 'bernoulli' for returns of 0 or 1; 'histogram'; 'squared_error' (an ablation).
    num_atoms: values of the histogram.
    low: its smallest value.
    high: its largest value.
    function: 'value' reads the outputs after a token; 'q_function' (an ablation) where the token is
      chosen, from a head with outputs for every token. It is also the role of the network.
    positions: tokens in the loss: 'all' from the switch on, or only the 'first' (an ablation).
    num_micro_batches: micro-batches per batch; divides the batch size.
  """

  head: str = 'bernoulli'
  num_atoms: int = 11
  low: float = 0.0
  high: float = 1.0
  function: str = 'value'
  positions: str = 'all'
  num_micro_batches: int = 1

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.one_of(self, '', head=HEADS, function=FUNCTIONS, positions=POSITIONS)
    if self.head == 'histogram':
      self.make_head()
    else:
      checks.fixed(self, '', f'with head {self.head!r}', num_atoms=11, low=0.0, high=1.0)
    checks.at_least(self, '', num_micro_batches=1)

  def make_head(self) -> return_heads.ReturnHead:
    """Returns the head."""
    if self.head == 'histogram':
      return return_heads.Histogram(self.num_atoms, self.low, self.high)
    return {'bernoulli': return_heads.Bernoulli, 'squared_error': return_heads.SquaredError}[
        self.head]()


def make(config: Config, value: ModelFns, optimizer: optax.GradientTransformation) -> Algorithm:
  """Training of the value function as two pure functions; a train step is one optimizer step.

  Args:
    config: Q# config.
    value: the network of the role `config.function`; its head has as many rows as the config's
      head has outputs, for a Q-function as many for each token.
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step). `train_step` takes a `types.Batch` whose mask is 1 from the switch
    on, with the return of each whole response as `rewards` [P, K].

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()
  head = config.make_head()

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def outputs_of(params, rollouts) -> Array:
    if config.function == 'value':
      return sequence_scores.outputs_after(value, params['value'], rollouts)
    return sequence_scores.outputs_of_choices(
        value, params['q_function'], rollouts, num_outputs=head.num_outputs)

  def loss_fn(params, batch: Batch):
    rollouts = batch.rollouts
    mask = rollouts.mask
    if config.positions == 'first':
      mask = mask * (jnp.cumsum(mask, axis=-1) == 1)
    return return_heads.prediction_loss(head, outputs_of(params, rollouts), batch, mask)

  def train_step(state, batch: Batch):
    chex.assert_rank(batch.rewards, 2)
    batch, dropped = batches.drop_invalid(batch)
    state, metrics = step_lib.take_step(
        loss_fn, optimizer, state, batch, num_micro_batches=config.num_micro_batches)
    return state, {**metrics, 'train/dropped': dropped}

  return Algorithm(init, train_step)
