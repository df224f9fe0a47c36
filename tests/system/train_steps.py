"""The two train steps of the main job on fixed tokens, with access to their gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.configs import a_star_po_arithmetic
from jaxrl_llm.algorithms import a_star_po, sft
from jaxrl_llm.data import sft_batches
from jaxrl_llm.models import configs
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.rl import masking
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import rng, step
from jaxrl_llm.types import Batch, Rollouts

PROMPTS, PROMPT_LENGTH, PAD, STOP = 16, 6, 0, 1


def model(**changes) -> configs.TransformerConfig:
  """A small decoder whose axes are all divisible by eight devices."""
  return dataclasses.replace(configs.TransformerConfig(
      vocab_size=24, num_layers=2, width=16, num_heads=4, num_kv_heads=2, head_dim=8,
      mlp_width=32, max_length=64, tie_embeddings=False, attention_bias=True,
  ), **changes)


def recording() -> optax.GradientTransformation:
  """An optimizer without updates whose state is the gradient."""
  zeros = lambda tree: jax.tree.map(jnp.zeros_like, tree)
  return optax.GradientTransformation(zeros, lambda gradients, *_: (zeros(gradients), gradients))


def rollout_batch(vocab_size: int, tokens: int, rows: int = PROMPTS) -> Batch:
  """Prompts and responses of unequal lengths, the last row is padding of weight 0."""
  generator = np.random.default_rng(0)
  prompt_lengths = generator.integers(1, PROMPT_LENGTH + 1, rows).astype(np.int32)
  columns = np.arange(PROMPT_LENGTH)[None]
  prompts = generator.integers(2, vocab_size, (rows, PROMPT_LENGTH)).astype(np.int32)
  prompts[columns < PROMPT_LENGTH - prompt_lengths[:, None]] = PAD
  chosen = generator.integers(2, vocab_size, (rows, 1, tokens)).astype(np.int32)
  ends = generator.integers(0, tokens + 1, rows)  # If it is `tokens`, there is no stop token.
  for row, end in enumerate(ends):
    chosen[row, 0, end:] = PAD
    chosen[row, 0, end : end + 1] = STOP
  mask, lengths, stop_reason = masking.response_mask(jnp.asarray(chosen), (STOP,))
  assert len(np.unique(lengths)) > 2

  noise = lambda: -generator.uniform(0.5, 4.0, chosen.shape).astype(np.float32) * np.asarray(mask)
  rollouts = Rollouts(
      prompts, prompt_lengths, chosen, np.asarray(lengths), np.asarray(mask), noise(),
      np.asarray(stop_reason))
  weight = np.ones(rows, np.float32)
  weight[-1] = 0.0
  return Batch(
      rollouts, generator.integers(0, 2, (rows, 1)).astype(np.float32), noise(),
      {'values': generator.uniform(0, 1, rows).astype(np.float32)}, weight)


def demonstration_batch(vocab_size: int, tokens: int, rows: int = PROMPTS) -> sft_batches.SftBatch:
  """Sequences of unequal lengths."""
  generator = np.random.default_rng(1)
  ids = generator.integers(2, vocab_size, (rows, tokens + 1)).astype(np.int32)
  lengths = generator.integers(4, tokens + 1, rows)[:, None]
  starts = generator.integers(1, 4, rows)[:, None]
  columns = np.arange(tokens)[None]
  valid = columns < lengths
  return sft_batches.SftBatch(
      np.where(valid, ids[:, :-1], PAD), np.broadcast_to(columns, valid.shape).astype(np.int32),
      valid, np.where(valid, ids[:, 1:], PAD), (valid & (columns >= starts)).astype(np.float32),
      np.ones(rows, np.float32))


def make(name: str, shape: configs.TransformerConfig, optimizer, **options):
  """The policy and the `Algorithm` of that name."""
  policy = policy_lib.make(shape)
  if name == 'sft':
    return policy, sft.make(sft.Config(**options), policy, optimizer)
  config = a_star_po.Config(beta2=1e-2, entropy_coefficient=1e-3, temperature=1.3, **options)
  return policy, a_star_po.make(config, policy, optimizer)


def batch_for(name: str, shape: configs.TransformerConfig, tokens: int, rows: int = PROMPTS):
  """A batch for the algorithm of that name."""
  make_batch = demonstration_batch if name == 'sft' else rollout_batch
  return make_batch(shape.vocab_size, tokens, rows)


def main_job_model() -> configs.TransformerConfig:
  """The decoder of `make run`."""
  config = a_star_po_arithmetic.get_config()
  return dataclasses.replace(config.model, vocab_size=14)


def loss_and_gradients(
    name: str, *, mesh_shape=(1, 1, 1), num_micro_batches=1, shape=None, rows=PROMPTS
):
  """One train step on a mesh, compiled as in programs; returns float64 copies."""
  devices = jax.devices()[: int(np.prod(mesh_shape))]
  mesh = mesh_lib.make_mesh(*mesh_shape, devices=devices)
  shape = shape or model()
  policy, algorithm = make(
      name, shape, recording(), num_micro_batches=num_micro_batches, head_chunk=4)

  # On the host: a train step donates what it is given.
  params = jax.device_get(jax.jit(policy.init)(rng.base_key(1)))
  state = algorithm.init(rng.base_key(0), {'policy': params})
  with jax.set_mesh(mesh):
    shardings = rules.shardings(mesh, state)
    state = jax.device_put(state, shardings)
    train_step = step.jit_train_step(
        algorithm.train_step, state_shardings=shardings,
        batch_shardings=mesh_lib.batch_sharding(mesh))
    batch = jax.device_put(batch_for(name, shape, 9, rows), mesh_lib.batch_sharding(mesh))
    state, metrics = train_step(state, batch)

  gradients = jax.tree.map(lambda x: np.asarray(x, np.float64), state.opt_state)
  metrics = {k: float(v.total) / float(v.weight) for k, v in jax.device_get(metrics).items()}
  return metrics, gradients
