"""Pytrees and function signatures shared between packages.

Shapes, everywhere in the code: P prompts, K samples per prompt, B = P*K rows,
T tokens, L prompt length, V vocabulary, D width, H heads.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Params = Any  # A nested dict of arrays.
Metrics = dict[str, 'WeightedMean']

# Why a sample ended (`Rollouts.stop_reason`).
TRUNCATED = 0  # It reached the length limit; no stop token is added.
STOPPED = 1  # The policy chose a stop token, which is part of the action.


def _pytree(cls):
  """Makes a frozen dataclass whose fields are pytree children, keyed by field name."""
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


def _along_samples(leaf: Array, index: Any) -> Array:
  """Selects along axis 1 of [P, K, ...]; see `Rollouts.samples`."""
  if isinstance(index, slice):
    return leaf[:, index]
  index = jnp.asarray(index)
  if index.ndim == 1:
    return leaf[:, index]
  return jnp.take_along_axis(leaf, index.reshape(index.shape + (1,) * (leaf.ndim - 2)), axis=1)


@_pytree
class TrainState:
  """Training state: the input and output of a train step; donated, sharded, checkpointed.

  Frozen networks (reference, reward) are explicit arguments of the step and
  never part of the state.

  Attributes:
    step: int32 []; number of optimizer steps taken.
    params: parameters by role, {'policy': ...} or {'policy': ..., 'value': ...}.
    opt_state: the optax state of `params`.
    key: base PRNG key of the run. It is folded (`jax.random.fold_in`), never split.
    aux: the algorithm's own pytree (e.g. running statistics); {} if none.
  """

  step: Array
  params: dict[str, Params]
  opt_state: Any
  key: Array
  aux: Any

  @classmethod
  def create(
      cls, params: dict[str, Params], optimizer: Any, key: Array, aux: Any = None
  ) -> 'TrainState':
    """Returns the state before the first step.

    Args:
      params: parameters by role.
      optimizer: anything with `init(params) -> opt_state`, such as an optax transformation.
      key: base PRNG key of the run.
      aux: the algorithm's own pytree; {} by default.
    """
    return cls(jnp.int32(0), params, optimizer.init(params), key, {} if aux is None else aux)


@_pytree
class Rollouts:
  """Prompts and the responses sampled from a policy, K per prompt.

  Attributes:
    prompts: int32 [P, L], left-padded.
    prompt_lengths: int32 [P].
    tokens: int32 [P, K, T]; the tokens after the prompt.
    lengths: int32 [P, K]; the tokens beyond it are padding.
    mask: float32 [P, K, T]; 1 where the policy chose the token, including the stop
      token.
    log_probs: float32 [P, K, T], nats, under the sampling policy; 0 where `mask`
      is 0.
    stop_reason: int8 [P, K]; `STOPPED` or `TRUNCATED`.
  """

  prompts: Array
  prompt_lengths: Array
  tokens: Array
  lengths: Array
  mask: Array
  log_probs: Array
  stop_reason: Array

  def map_samples(self, fn: Callable[..., Array], *others: 'Rollouts') -> 'Rollouts':
    """Applies `fn` to each field with an axis K, and to the same field of other rollouts.

    Args:
      fn: [P, K, ...] of each of the rollouts -> [P, k, ...].
      *others: rollouts for the same prompts.

    Returns:
      Rollouts with the prompts of the first.
    """
    names = ('tokens', 'lengths', 'mask', 'log_probs', 'stop_reason')
    fields = {name: fn(*(getattr(each, name) for each in (self, *others))) for name in names}
    return dataclasses.replace(self, **fields)

  def samples(self, index: Any) -> 'Rollouts':
    """Selects samples of each prompt.

    Args:
      index: a slice, or integers: [k] for all prompts or [P, k] by prompt.

    Returns:
      Rollouts with k samples per prompt.
    """
    return self.map_samples(lambda leaf: _along_samples(leaf, index))


@_pytree
class Batch:
  """One step's training data.

  Attributes:
    rollouts: the samples.
    rewards: float32 [P, K] (or [P, K, T] per token).
    reference_log_probs: float32 [P, K, T] under the frozen reference, or None.
    aux: the algorithm's own arrays, each with a leading axis P (V*(x) for A*-PO).
    weight: float32 [P]; 0 for the rows that pad a partial last batch.
  """

  rollouts: Rollouts
  rewards: Array
  reference_log_probs: Array | None
  aux: dict[str, Array]
  weight: Array

  def samples(self, index: Any) -> 'Batch':
    """Selects samples of each prompt, with their rewards and log-probs; see `Rollouts.samples`.

    `aux` is unchanged.
    """
    reference = self.reference_log_probs
    return dataclasses.replace(
        self, rollouts=self.rollouts.samples(index), rewards=_along_samples(self.rewards, index),
        reference_log_probs=None if reference is None else _along_samples(reference, index))


@_pytree
class WeightedMean:
  """A mean stored as total and weight; merged by adding, divided last."""

  total: Array
  weight: Array

  def __add__(self, other: 'WeightedMean') -> 'WeightedMean':
    return WeightedMean(self.total + other.total, self.weight + other.weight)

  def value(self) -> Array:
    """Returns total / weight, or 0 for an empty mean."""
    divisor = jnp.where(self.weight > 0, self.weight, 1.0)
    return jnp.where(self.weight > 0, self.total / divisor, 0.0)


@_pytree
class Head:
  """The map from hidden states to logits, exposed so that callers can apply it in chunks.

  z = hidden @ kernel.T + bias;  logits = z, or c tanh(z / c) with a soft cap c.

  Attributes:
    kernel: [V, D]; the embedding itself when the two are tied.
    bias: [V] or None.
    softcap: c (static); 0 for no cap.
  """

  kernel: Array
  bias: Array | None
  softcap: float = dataclasses.field(default=0.0, metadata={'static': True})


@_pytree
class ModelOutput:
  """Output of a trunk.

  Attributes:
    hidden: [B, T, D] after the last norm.
    head: the output head (V rows for a policy, one for a scalar value, ...).
    cache: the updated KV cache, or None if none was given.
  """

  hidden: Array
  head: Head
  cache: Any


class ApplyFn(Protocol):
  """Runs a network; see `__call__`."""

  def __call__(
      self,
      params: Params,
      tokens: Array,
      *,
      positions: Array,
      valid: Array,
      cache: Any = None,
      cache_index: Array | None = None,
      segments: Array | None = None,
      siblings: int = 0,
  ) -> ModelOutput:
    """Runs the network.

    Args:
      params: the parameters.
      tokens: int32 [B, T].
      positions: int32 [B, T]; 0 at the first real token of a row.
      valid: bool; True for keys that may be attended to. [B, T] without a cache,
        [B, S] with one (S slots in the cache), where it must already be True
        for the slots that this call writes.
      cache: None, or a KV cache from `init_cache`.
      cache_index: int32 []; the slot where the first of the T new keys is written.
        Query t attends to slots up to cache_index + t.
      segments: int32 [B, T], only without a cache: when several sequences are
        packed into a row, a token attends only to its own segment.
      siblings: with a cache, the last tokens that are alternatives for one slot
        (their `positions` are equal): each attends to what precedes them all, and
        to itself. Their keys use the last slots of the cache, which the sequence
        must leave free, until the next call.
    """


class ModelFns(NamedTuple):
  """A network as three pure functions.

  Attributes:
    init: key -> params.
    apply: see `ApplyFn`.
    init_cache: (batch, slots) -> an empty KV cache, a pytree of arrays
      [..., batch, slots, heads, head_dim].
  """

  init: Callable[[Array], Params]
  apply: ApplyFn
  init_cache: Callable[[int, int], Any]


class Algorithm(NamedTuple):
  """Two pure functions, like optax's GradientTransformation.

  Attributes:
    init: (key, params by role) -> TrainState.
    train_step: (state, batch) -> (state, metrics).
  """

  init: Callable[..., TrainState]
  train_step: Callable[..., tuple[TrainState, Metrics]]


class Tokenizer(Protocol):
  """Converts text to ids and back, independently of the tokenizer library.

  Attributes:
    vocab_size: number of rows an embedding must have; every id is below it.
    pad_id: the id that fills unused slots. It may equal a stop id: no mask in
      this project is computed by comparing with it.
    stop_ids: the ids that end a response.
    start_ids: the ids that the tokenizer by convention puts before plain text (such as
      Llama's BOS; () if there are none). A chat template writes them itself.
    fingerprint: a short hash of what the ids mean; saved with checkpoints and compared on
      load. It does not cover the stop and pad ids (`tokenizers.full_fingerprint` does).
  """

  vocab_size: int
  pad_id: int
  stop_ids: tuple[int, ...]
  start_ids: tuple[int, ...]
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without any start or stop token."""

  def encode_continuation(self, text: str) -> list[int]:
    """Returns the ids of `text` as a continuation: nothing is put in front of it."""

  def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the same ids, and for each the half-open range of characters it covers."""

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`; special ids (stop, pad) are dropped."""


# One problem: {'id': int, 'prompt': str, 'answer': str, ...}; a demonstration also has
# 'response': str (without its stop token). Known ids replace the text: 'prompt_ids', or for
# a demonstration from 'messages', 'ids' with 'loss_mask' (1 for the assistant's tokens).
# 'source' names the file that the example came from.
Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
  """Everything an experiment needs to know about a set of problems.

  Attributes:
    name: the name used in results.json.
    tokenizer: the tokenizer of prompts and responses.
    demonstrations: prompts with responses, for supervised fine-tuning.
    train: prompts for stages 1 and 2; ids are unique and non-negative.
    evaluation: held-out prompts, disjoint from `demonstrations` and `train`.
    reward_fn: the reward for training and evaluation. None if responses are not verified:
      then `evaluation` holds demonstrations, and their loss is measured.
    lenient_reward_fn: a more forgiving reward, if a paper's released code used one;
      otherwise the same function.
    max_prompt_tokens: upper bound on the length of a prompt.
    max_response_tokens: the sampler's limit, including the stop token.
    num_filtered: number of examples of 'demonstrations', 'train' and 'evaluation' that were left
      out because they have too many tokens; {} if the task leaves none out.
    num_repeated: number of examples that were left out because they repeat a held-out one.
    reward_source: source of the module of the user's own reward function; '' for others.
  """

  name: str
  tokenizer: Tokenizer
  demonstrations: list[Example]
  train: list[Example]
  evaluation: list[Example]
  reward_fn: 'RewardFn | None'
  lenient_reward_fn: 'RewardFn | None'
  max_prompt_tokens: int
  max_response_tokens: int
  num_filtered: dict[str, int] = dataclasses.field(default_factory=dict)
  num_repeated: int = 0
  reward_source: str = ''


class SampleFn(Protocol):
  """Draws responses; see `__call__`."""

  def __call__(
      self,
      params: Params,
      prompts: Array,
      prompt_lengths: Array,
      example_ids: Array,
      key: Array,
  ) -> Rollouts:
    """Samples K responses for each of [P, L] left-padded prompts.

    `example_ids` int32 [P] are folded into the noise, so that a sample does not depend
    on its batch.
    """


class RewardFn(Protocol):
  """Scores responses; see `__call__`."""

  def __call__(
      self,
      prompts: list[str],
      responses: list[str],
      truncated: np.ndarray,
      examples: list[dict[str, Any]],
  ) -> np.ndarray:
    """Scores n responses on the host; returns float32 [n]."""
