"""In-context learning of hidden Markov models: a causal model is trained to predict new ones.

Dai, Gao, Sattar, Dean and Sun, 2025, "Pre-trained large language models learn hidden Markov models
in-context", arXiv 2506.07298; code: DaiYijia02/icl-hmm.

The paper trains nothing: a language model reads one trajectory o_0, o_1, ... of an HMM as bare
tokens and predicts the next symbol, at best as well as the filter, which knows the parameters:

  P(o_t | o_<t) = Bᵀ Aᵀ α_{t−1}

Where no such model is available, one is trained: every step draws new HMMs λ, and one trajectory
of each,

  L(θ) = − E_λ E_{o ∼ λ} (1/T) Σ_t ln π_θ(o_t | o_<t)                     (labels='sampled')

The minimiser of L is the Bayes-optimal prediction without knowledge of λ, which has to be inferred
from o_<t: only in-context learning can lower the loss. λ is known in training, so that the loss can
average over the label, which preserves the expected gradient and lowers its variance
(labels='filter'):

  − Σ_o P_λ(o | o_<t) ln π_θ(o | o_<t)

Departures from the paper: the learner is trained from scratch, not a pre-trained model (those are
evaluated by `hmm.in_context`).

Tables: experiments/configs/icl_hmm.py.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_llm import checks
from jaxrl_llm.rl import log_probs
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Array, Metrics, ModelFns, TrainState, WeightedMean


@dataclasses.dataclass
class Config:
  """Meta-training config.

  Attributes:
    labels: 'sampled' (the next symbol) or 'filter' (its distribution given the HMM and the past).
    num_micro_batches: micro-batches per batch; divides the batch size.
  """

  labels: str = 'sampled'
  num_micro_batches: int = 1

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.one_of(self, '', labels=('sampled', 'filter'))
    checks.at_least(self, '', num_micro_batches=1)


@chex.dataclass(frozen=True)
class Trajectories:
  """Symbols of B HMMs, and the predictions of the HMMs themselves.

  Attributes:
    symbols: int32 [B, T + 1].
    predictions: float32 [B, T, L]; P(o_t | o_<t) of symbols 1, ..., T.
  """

  symbols: Array
  predictions: Array


def make(
    config: Config, policy: ModelFns, optimizer: optax.GradientTransformation
) -> Algorithm:
  """Meta-training of params['policy'] as two pure functions.

  Args:
    config: meta-training config.
    policy: a causal network with a vocabulary of L symbols.
    optimizer: an optax transformation.

  Returns:
    Algorithm(init, train_step); `train_step` takes `Trajectories`. Its metrics are in nats per
    symbol: train/loss, train/entropy (of the filter, a lower bound of the loss on average) and
    train/divergence, KL(P_λ ‖ π_θ), their difference on average.

  Raises:
    ValueError: if a config field is out of range.
  """
  config.validate()

  def init(key, params) -> TrainState:
    return TrainState.create(params, optimizer, key)

  def loss_fn(params, batch: Trajectories) -> tuple[WeightedMean, Metrics]:
    symbols = batch.symbols[:, :-1]
    output = policy.apply(
        params['policy'], symbols, valid=jnp.ones(symbols.shape, bool),
        positions=jnp.broadcast_to(jnp.arange(symbols.shape[1]), symbols.shape))
    predicted = jax.nn.log_softmax(log_probs.head_logits(output.hidden, output.head))

    chex.assert_equal_shape([predicted, batch.predictions])
    labels = jnp.take_along_axis(predicted, batch.symbols[:, 1:, None], axis=-1)[..., 0]
    expected = jnp.sum(batch.predictions * predicted, axis=-1)
    certain = jnp.sum(batch.predictions * jnp.log(jnp.maximum(batch.predictions, 1e-30)), axis=-1)

    mean = lambda x: WeightedMean(jnp.sum(x), jnp.float32(x.size))
    return mean(-labels if config.labels == 'sampled' else -expected), {
        'train/entropy': mean(-certain), 'train/divergence': mean(certain - expected)}

  def train_step(state, batch: Trajectories):
    return step_lib.take_step(
        loss_fn, optimizer, state, batch, num_micro_batches=config.num_micro_batches)

  return Algorithm(init, train_step)
