"""A tiny policy, an optimizer that only records gradients, and log-probs written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.models import configs, policy
from jaxrl_llm.types import TrainState
from tests.models import witness

CONFIG = configs.TransformerConfig(
    vocab_size=7, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
    max_length=16,
)
MODEL = policy.make(CONFIG)


@functools.cache
def params(seed=0):
  """{'policy': ...}, drawn large enough that no gradient is negligible."""
  return {'policy': jax.tree.map(lambda leaf: 0.7 * leaf, witness.draw_params(MODEL, seed))}


def recorder(learning_rate=0.0) -> optax.GradientTransformation:
  """Stores the gradient as its state; leaves the parameters unchanged, or takes a step of SGD."""
  scale = lambda tree, factor: jax.tree.map(lambda leaf: factor * leaf, tree)
  return optax.GradientTransformation(
      lambda params: scale(params, 0.0),
      lambda gradient, state, params=None: (scale(gradient, -learning_rate), gradient))


def run_once(train_step, parameters, batch):
  """(loss, gradients, metrics by value) of a jitted step made with `recorder`."""
  state = TrainState.create(parameters, recorder(), jax.random.key(0))
  state, metrics = train_step(state, batch)
  assert int(state.step) == 1
  metrics = {name: float(metric.value()) for name, metric in metrics.items()}
  return metrics['train/loss'], state.opt_state, metrics


def assert_trees_close(got, expected, *, tolerance):
  """Equal to `tolerance`, relative to the largest entry of the expected tree."""
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  assert largest > 0
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected)):
    np.testing.assert_allclose(
        a, b, rtol=0, atol=tolerance * largest, err_msg=jax.tree_util.keystr(path))


def differ(a, b, *, by=1e-3):
  """Returns whether two trees differ, relative to the largest entry."""
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(b))
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
  return max(np.abs(x - y).max() for x, y in pairs) > by * largest


def log_softmax(parameters, rollouts, *, temperature=1.0):
  """The log-probs ln π(· | x, y_<t) at every response slot, [P, T, V], K being 1.

  Prompt and response are put together row by row, with padding after instead of before
  them: nothing of rl/ is used.
  """
  slots, width = rollouts.tokens.shape[-1], rollouts.prompts.shape[1]
  prompts, responses = np.asarray(rollouts.prompts), np.asarray(rollouts.tokens)
  lengths = np.asarray(rollouts.prompt_lengths)
  tokens = np.zeros((len(lengths), width + slots), np.int32)
  valid = np.zeros(tokens.shape, bool)
  for i, n in enumerate(lengths):
    tokens[i, : n + slots] = [*prompts[i, width - n:], *responses[i, 0]]
    valid[i, : n + slots] = True
  positions = np.broadcast_to(np.arange(width + slots, dtype=np.int32), tokens.shape)
  output = MODEL.apply(parameters['policy'], tokens, positions=positions, valid=valid)
  read = (lengths[:, None] - 1 + np.arange(slots))[..., None]
  hidden = jnp.take_along_axis(output.hidden, read, axis=1)
  return jax.nn.log_softmax(hidden @ output.head.kernel.T / temperature)


def sequence_log_probs(parameters, rollouts, *, temperature=1.0):
  """Σ_t ln π(y_t | x, y_<t) of each response, [P]."""
  every = log_softmax(parameters, rollouts, temperature=temperature)
  chosen = jnp.take_along_axis(every, rollouts.tokens[:, 0, :, None], axis=-1)[..., 0]
  return jnp.sum(jnp.where(rollouts.mask[:, 0] > 0, chosen, 0.0), axis=-1)
