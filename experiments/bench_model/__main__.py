"""Benchmarks one real shape end to end on all devices: load, decode, a LoRA step, a full step.

  python -m experiments.bench_model --shape=qwen2.5_1.5b --json=FILE

writes a checkpoint of random bfloat16 numbers of that shape to a temporary directory (or uses
--checkpoint=DIR), loads it onto a mesh of all devices (fsdp), samples from it, and takes supervised
steps on random tokens: with adapters on all projections, then with all parameters. The second call
of each program is timed; the first compiles. Peak memory is the allocator's, if the platform
reports it (GPUs and TPUs do, CPUs do not).
"""

import dataclasses
import functools
import math
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxrl_llm.algorithms import sft
from jaxrl_llm.data import sft_batches
from jaxrl_llm.models import lora, policy
from jaxrl_llm.runs import (
    checkpoint_sources,
    finetuning,
    launch,
    memory,
    processor,
    random_checkpoints,
)
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.sampling import decode
from jaxrl_llm.sharding import mesh as mesh_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import metrics, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Params

_PROJECTIONS = 'attention/(query|key|value|output)|mlp/(gate|up|down)'


def define_flags(values: flags.FlagValues) -> None:
  """Defines the flags of this tool."""
  text = functools.partial(flags.DEFINE_string, flag_values=values)
  number = functools.partial(flags.DEFINE_integer, lower_bound=1, flag_values=values)
  flags.DEFINE_enum('shape', 'qwen2.5_1.5b', random_checkpoints.SHAPES, 'shape of the checkpoint',
                    flag_values=values)
  text('checkpoint', '', 'checkpoint to use instead of a random one')
  text('folder', '', 'parent directory of the random checkpoint; by default /tmp')
  text('json', '', 'JSON file for the numbers; by default none')
  number('rows', 8, 'prompts to sample from, and sequences per step')
  number('prompt_tokens', 128, 'tokens per prompt')
  number('new_tokens', 128, 'tokens to sample per prompt')
  number('sequence_tokens', 512, 'tokens per sequence of a step')
  number('rank', 16, 'rank of the adapters')


def main(values: flags.FlagValues) -> None:
  """Writes a checkpoint or uses the given one, measures, and prints and writes the numbers."""
  random_checkpoints.check_paths(values)
  _check_sizes(values)
  with tempfile.TemporaryDirectory(dir=values.folder or None) as folder:
    directory = values.checkpoint
    if not directory:
      # A subprocess writes it, so that its memory is not counted here.
      directory = str(pathlib.Path(folder) / 'checkpoint')
      print(f'writing {values.shape} to {directory} ...', flush=True)
      arguments = (directory, values.shape, 'bfloat16')
      code = ('from jaxrl_llm.runs import random_checkpoints\n'
              f'random_checkpoints.write_random(*{arguments!r})')
      subprocess.run([sys.executable, '-c', code], check=True, cwd=launch.REPOSITORY)
    numbers = measure(values, directory)

  numbers |= {
      'experiment': 'bench_model', 'setting': values.checkpoint or values.shape,
      'commit': launch.current_commit(), 'versions/jax': jax.__version__,
      'device': f'{len(jax.devices())} x {jax.devices()[0].device_kind}', **processor.fields(),
      **{name: values[name].value for name in (
          'rows', 'prompt_tokens', 'new_tokens', 'sequence_tokens', 'rank')},
  }

  for name, value in numbers.items():
    print(f'{name:36} {value}')
  if values.json:
    metrics.write_json_atomic(values.json, numbers)


def _check_sizes(values: flags.FlagValues) -> None:
  """Raises ValueError for sizes that cannot fit, before a checkpoint is written or read."""
  model, _ = random_checkpoints.shape(values.shape, compute_dtype='bfloat16')
  if values.checkpoint:
    model = checkpoint_sources.read(values.checkpoint, field='--checkpoint').model
  slots = values.prompt_tokens + values.new_tokens
  tokens = values.rows * values.sequence_tokens
  memory.check({
      'the cache (--rows, --prompt_tokens, --new_tokens)': memory.cache_bytes(
          model, values.rows, slots),
      'the batch (--rows, --sequence_tokens)': 8 * tokens,  # As drawn, int64.
      'the adapters (--rank)': 4 * memory.num_adapter_weights(model, values.rank),
  })


def measure(values: flags.FlagValues, directory: str) -> dict[str, Any]:
  """Loads, samples and trains; returns flat numbers.

  Raises:
    ValueError: the checkpoint cannot be used, or a loss is not finite.
  """
  source = checkpoint_sources.read(directory, field='--checkpoint')
  model = dataclasses.replace(
      source.model, param_dtype='bfloat16', compute_dtype='bfloat16', remat='full', scan_unroll=1
  )

  mesh = mesh_lib.make_mesh(1, -1, 1)
  network = policy.make(model)
  abstract = setup_lib.abstract_params(network, mesh)
  numbers: dict[str, Any] = {
      'parameters': sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract))
  }

  with jax.set_mesh(mesh):
    start = time.monotonic()
    params = jax.block_until_ready(source.load(abstract))
    numbers['load/seconds'] = time.monotonic() - start

    numbers |= _decode(values, network, model.vocab_size, params)
    adapters = lora.LoraConfig(rank=values.rank, alpha=2.0 * values.rank, targets=_PROJECTIONS)
    for name, config in (('lora', adapters), ('full', lora.LoraConfig())):
      method = finetuning.make(network, abstract, lora=config, last_layers=0)
      numbers |= {f'{name}/{key}': value for key, value in _train(
          values, method, model.vocab_size, params, mesh).items()}

  peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use') for device in jax.devices()]
  if None not in peaks:
    numbers['peak_bytes_in_use'] = max(peaks)
  return numbers


def _decode(
    values: flags.FlagValues, network: Any, vocab_size: int, params: Params
) -> dict[str, float]:
  """Samples twice; times the second call."""
  sample = jax.jit(decode.make_sampler(
      # The stop id is outside the vocabulary, so no response stops early.
      network, num_samples=1, max_tokens=values.new_tokens, stop_ids=(vocab_size,), pad_id=0
  ))

  shape = (values.rows, values.prompt_tokens)
  prompts = np.random.default_rng(0).integers(0, vocab_size, shape).astype(np.int32)
  lengths = np.full(values.rows, values.prompt_tokens, np.int32)

  for call in range(2):
    start = time.monotonic()
    rollouts = jax.block_until_ready(
        sample(params, prompts, lengths, np.arange(values.rows), rng.base_key(call))
    )
    seconds = time.monotonic() - start

  if not np.isfinite(rollouts.log_probs).all():
    raise ValueError(f'log-probs of samples must be finite, got {np.asarray(rollouts.log_probs)}')
  return {
      'decode/seconds': seconds, 'decode/tokens_per_second': rollouts.tokens.size / seconds,
      'decode/mean_log_prob': float(rollouts.log_probs.mean()),
  }


def _train(
    values: flags.FlagValues, method: finetuning.Finetuning, vocab_size: int, params: Params,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
  """Takes two steps on one batch of random tokens; times the second."""
  optimizer = optim.make_optimizer(
      optim.OptimizerConfig(learning_rate=1e-3), trainable=method.trainable
  )
  algorithm = sft.make(sft.Config(), method.policy, optimizer)

  def init(params):
    return algorithm.init(rng.base_key(0), {'policy': method.start(params, rng.base_key(1))})

  shardings = rules.shardings(mesh, jax.eval_shape(init, params))
  batch_sharding = mesh_lib.batch_sharding(mesh)
  train_step = step_lib.jit_train_step(
      algorithm.train_step, state_shardings=shardings, batch_shardings=batch_sharding
  )
  state = jax.jit(init, out_shardings=shardings)(params)

  rows, length = values.rows, values.sequence_tokens
  tokens = np.random.default_rng(1).integers(0, vocab_size, (rows, length + 1)).astype(np.int32)
  batch = jax.device_put(sft_batches.SftBatch(
      tokens[:, :-1], np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
      np.ones((rows, length), bool), tokens[:, 1:], np.ones((rows, length), np.float32),
      np.ones(rows, np.float32),
  ), batch_sharding)

  losses = []
  for _ in range(2):
    start = time.monotonic()
    state, update = jax.block_until_ready(train_step(state, batch))
    seconds = time.monotonic() - start
    losses.append(float(update['train/loss'].value()))

  if not np.isfinite(losses).all():
    raise ValueError(f'losses must be finite, got {losses}')

  count = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if jnp.ndim(leaf)) // 2
  return {
      'step_seconds': seconds, 'tokens_per_second': rows * length / seconds,
      'trained_parameters': count, 'loss/first': losses[0], 'loss/second': losses[1],
  }


if __name__ == '__main__':
  define_flags(flags.FLAGS)
  launch.run_tool(functools.partial(main, flags.FLAGS))
