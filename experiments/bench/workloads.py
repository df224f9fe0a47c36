"""Workloads of experiments/bench/, their flops by formula, and the machine's ceilings.

Import this module after choosing the process's cores: it imports JAX, whose threads inherit them.

Flops count the matrix products that a step executes, two for each multiply-add; element-wise work
is not counted. With n tokens that each attend to S slots, and layers of D × (H + 2 KV) h + H h × D
(attention) and 3 D F (SwiGLU) or 2 D F (GELU) weights:

  trunk(n, S) = layers · n · (2 · weights + 4 · S · H · h),    head(n) = 2 · n · D · V
  supervised step   3 trunk(B T, T) + 4 head(B T): the backward pass has two products for each one
                    of the forward pass, and the head computes its logits twice
  scoring           trunk(B (L + T), L + T) + head(B T)
  A*-PO update      3 trunk(B (L + T), L + T) + 4 head(B T)
  sampling          trunk(B L, L) + head(B), then T − 1 times trunk(B, L + T − 1) + head(B)

S is the whole sequence or cache: the full square is computed and masked, not halved. The formulas
hold up to `attention_block` positions and without remat, as in the workloads below.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.algorithms import a_star_po, sft
from jaxrl_llm.data import sft_batches
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import loop, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class Scale:
  """Sizes of the workloads.

  Attributes:
    model: the policy.
    sft: rows and tokens of a supervised step.
    rollouts: prompts, prompt tokens and response tokens of an A*-PO step.
    sampling: prompt tokens and new tokens of the sampling workloads.
    batches: batch sizes of the sampling workloads, with one sample per prompt.
    guide: value model of guided sampling, of about an eighth of the policy's parameters.
    triad_floats: length of the arrays that measure memory bandwidth.
  """

  model: configs.TransformerConfig
  sft: tuple[int, int]
  rollouts: tuple[int, int, int]
  sampling: tuple[int, int]
  batches: tuple[int, ...]
  guide: configs.TransformerConfig
  triad_floats: int


SCALES: dict[str, Callable[[], Scale]] = {
    'reference': lambda: Scale(
        configs.reference_workload(), (8, 256), (16, 32, 64), (32, 128), (16, 64),
        dataclasses.replace(
            configs.reference_workload(), num_layers=5, width=128, num_heads=4, num_kv_heads=2,
            mlp_width=256), 2**26
    ),
    'tiny': lambda: Scale(
        configs.TransformerConfig(
            vocab_size=64, num_layers=1, width=32, num_heads=4, num_kv_heads=2, head_dim=8,
            mlp_width=64, max_length=32,
        ),
        (2, 16), (2, 4, 4), (4, 8), (2, 4), configs.TransformerConfig(
            vocab_size=64, num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8,
            mlp_width=16, max_length=64), 2**16,
    ),
}


class Row(NamedTuple):
  """A line of the report.

  Attributes:
    name: name of its timer.
    description: description of the work, with sizes.
    flops: flops by the formulas above.
    traffic: minimum number of bytes read or written; 0 if it does not matter.
    peak_bytes: arguments, temporaries and outputs of the executable, aliases counted once.
    compile_seconds: tracing and compilation.
    ceiling: name of the row that bounds its speed, or ''.
  """

  name: str
  description: str
  flops: float = 0.0
  traffic: float = 0.0
  peak_bytes: int = 0
  compile_seconds: float = 0.0
  ceiling: str = ''


class Workload(NamedTuple):
  """Rows that are measured together.

  Attributes:
    rows: the rows that `run` times.
    run: function of (repetition, timers) that runs once and returns the tokens of each row, counted
      in the output.
  """

  rows: tuple[Row, ...]
  run: Callable[[int, loop.Timers], dict[str, int]]


class Compiled(NamedTuple):
  """An executable, its compile time in seconds, and its memory in bytes."""

  call: Callable[..., Any]
  seconds: float
  arguments: int
  others: int  # Temporaries and outputs, minus outputs aliased to arguments.

  @property
  def peak_bytes(self) -> int:
    """Total memory in bytes."""
    return self.arguments + self.others


def compile_ahead(jitted: Any, *args: Any) -> Compiled:
  """Compiles a jitted function for the shapes of `args`, without running it."""
  start = time.perf_counter()
  executable = jitted.lower(*args).compile()
  seconds = time.perf_counter() - start
  memory = executable.memory_analysis()
  others = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return Compiled(executable, seconds, memory.argument_size_in_bytes, others)


def trunk_flops(model: configs.TransformerConfig, tokens: int, slots: int) -> int:
  """Flops of one forward pass of the trunk; see the module docstring."""
  heads = model.num_heads * model.head_dim
  attention = 2 * heads + 2 * model.num_kv_heads * model.head_dim
  mlp = (3 if model.activation == 'swiglu' else 2) * model.mlp_width
  return model.num_layers * tokens * (2 * model.width * (attention + mlp) + 4 * slots * heads)


def head_flops(model: configs.TransformerConfig, tokens: int) -> int:
  """Flops of one forward pass of the head."""
  return 2 * tokens * model.width * model.vocab_size


def sft_flops(model: configs.TransformerConfig, rows: int, tokens: int) -> int:
  """Flops of a supervised step on [rows, tokens]."""
  n = rows * tokens
  return 3 * trunk_flops(model, n, tokens) + 4 * head_flops(model, n)


def score_flops(model: configs.TransformerConfig, rows: int, prompt: int, new: int) -> int:
  """Flops of scoring the log-probs of `rows` responses."""
  slots = prompt + new
  return trunk_flops(model, rows * slots, slots) + head_flops(model, rows * new)


def update_flops(model: configs.TransformerConfig, rows: int, prompt: int, new: int) -> int:
  """Flops of one A*-PO update on `rows` responses."""
  slots = prompt + new
  return 3 * trunk_flops(model, rows * slots, slots) + 4 * head_flops(model, rows * new)


def sampling_flops(model: configs.TransformerConfig, rows: int, prompt: int, new: int) -> int:
  """Flops of sampling one full-length response for each of `rows` prompts."""
  prefill = trunk_flops(model, rows * prompt, prompt) + head_flops(model, rows)
  one_token = trunk_flops(model, rows, prompt + new - 1) + head_flops(model, rows)
  return prefill + (new - 1) * one_token


def sampling_bytes(
    model: configs.TransformerConfig, parameter_bytes: int, rows: int, prompt: int, new: int
) -> int:
  """Bytes that decoding reads: all parameters once per token, and the whole float32 cache."""
  slots = prompt + new - 1
  cache = 2 * 4 * model.num_layers * rows * slots * model.num_kv_heads * model.head_dim
  return (new - 1) * (parameter_bytes + cache)


def tree_bytes(tree: Any) -> int:
  """Total bytes of a tree's arrays."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, 'nbytes'))


class Setup(NamedTuple):
  """Setup shared by the workloads.

  Attributes:
    scale: sizes.
    seed: seed of parameters, tokens and noise.
    model: the policy.
    params: its parameters.
  """

  scale: Scale
  seed: int
  model: Any
  params: Any

  def key(self, stream: int, *indices: int) -> Array:
    """Returns the key of a draw."""
    return rng.stream_key(rng.base_key(self.seed), stream, *indices)

  def state(self, algorithm):
    """Makes a separate train state, because each step donates the state it gets."""
    init = lambda params: algorithm.init(rng.base_key(self.seed), {'policy': params})
    return jax.jit(init)(self.params)

  def tokens(self, rows: int, length: int) -> np.ndarray:
    """Random token ids [rows, length]."""
    draw = np.random.default_rng([self.seed, rows, length])
    return draw.integers(self.scale.model.vocab_size, size=(rows, length), dtype=np.int32)

  def prompts(self, rows: int, length: int) -> tuple[Array, Array, Array]:
    """Sampler arguments: prompts without padding, their lengths, example ids."""
    arrays = (self.tokens(rows, length), np.full(rows, length, np.int32), np.arange(rows))
    return jax.device_put(tuple(array.astype(np.int32) for array in arrays))

  def sampler(self, new_tokens: int, stop_ids: Sequence[int] | None = None):
    """Makes a jitted sampler.

    By default its stop id is past the end of the vocabulary and cannot be sampled, so every
    response has full length.
    """
    vocab_size = self.scale.model.vocab_size
    return jax.jit(decode.make_sampler(
        self.model, num_samples=1, max_tokens=new_tokens, pad_id=0,
        stop_ids=(vocab_size,) if stop_ids is None else tuple(stop_ids),
    ))


OneCore = Callable[[], AbstractContextManager]
Suite = Callable[[Setup], Iterator[Workload]]


def build(
    suites: Sequence[Suite], scale: Scale, *, seed: int, one_core: OneCore | None
) -> Iterator[Workload]:
  """Compiles the workloads of the suites, one after the other.

  Args:
    suites: functions that make workloads.
    scale: sizes of the workloads.
    seed: seed of parameters, tokens and noise.
    one_core: context that restricts this process to one core; None if it has only one.

  Yields:
    Workloads; the machine's ceilings come last.
  """
  network = policy.make(scale.model)
  setup = Setup(scale, seed, network, jax.jit(network.init)(rng.base_key(seed)))
  for suite in suites:
    yield from suite(setup)
  yield from ceilings(scale, one_core)


def sft_step(setup: Setup, name: str, config: sft.Config) -> Workload:
  """Times a supervised fine-tuning step: loss over every token, gradient, AdamW."""
  rows, length = setup.scale.sft
  optimizer = optim.make_optimizer(optim.OptimizerConfig())
  algorithm = sft.make(config, setup.model, optimizer)
  holder = {'state': setup.state(algorithm)}

  ids = setup.tokens(rows, length + 1)
  batch = jax.device_put(sft_batches.SftBatch(
      tokens=ids[:, :-1], targets=ids[:, 1:], valid=np.ones((rows, length), bool),
      positions=np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
      loss_mask=np.ones((rows, length), np.float32), weight=np.ones(rows, np.float32),
  ))
  step = compile_ahead(step_lib.jit_train_step(algorithm.train_step), holder['state'], batch)

  def run(repetition, timers):
    del repetition
    with timers(name):
      holder['state'], _ = jax.block_until_ready(step.call(holder['state'], batch))
    return {name: int(batch.loss_mask.sum())}

  row = Row(
      name, f'supervised step, {rows} x {length} tokens, head_chunk {config.head_chunk}',
      sft_flops(setup.scale.model, rows, length), 0, step.peak_bytes, step.seconds,
      'ceiling/product_forward',
  )
  return Workload((row,), run)


def a_star_po_step(setup: Setup, name: str, config: a_star_po.Config) -> Workload:
  """Times sampling one response per prompt, scoring it under the reference, and the update.

  Rewards and V* are given, so the verifier's time on the host is excluded.
  """
  count, prompt, new = setup.scale.rollouts
  optimizer = optim.make_optimizer(optim.OptimizerConfig())
  algorithm = a_star_po.make(config, setup.model, optimizer)
  reference, holder = setup.params, {'state': setup.state(algorithm)}
  prompts = setup.prompts(count, prompt)

  draw = np.random.default_rng(setup.seed)
  rewards = jnp.asarray(draw.integers(2, size=(count, 1)), jnp.float32)
  values, weight = jnp.full(count, 0.5), jnp.ones(count)

  def make_batch(rollouts, log_probs):
    return Batch(rollouts, rewards, log_probs, {'values': values}, weight)

  score_fn = jax.jit(lambda params, rollouts: scoring.score(
      setup.model, params, rollouts, temperature=config.temperature, chunk_size=config.head_chunk
  )[0])

  key = setup.key(rng.Stream.SAMPLE_TRAIN, 0)
  sample = compile_ahead(setup.sampler(new), reference, *prompts, key)
  rollouts = sample.call(reference, *prompts, key)
  score = compile_ahead(score_fn, reference, rollouts)
  batch = make_batch(rollouts, score.call(reference, rollouts))
  update = compile_ahead(step_lib.jit_train_step(algorithm.train_step), holder['state'], batch)

  def run(repetition, timers):
    key = setup.key(rng.Stream.SAMPLE_TRAIN, repetition)
    with timers(name):  # The parts are timed inside the whole step.
      with timers(f'{name}/sample'):
        params = holder['state'].params['policy']
        rollouts = jax.block_until_ready(sample.call(params, *prompts, key))
      with timers(f'{name}/score'):
        log_probs = jax.block_until_ready(score.call(reference, rollouts))
      with timers(f'{name}/update'):
        batch = make_batch(rollouts, log_probs)
        holder['state'], _ = jax.block_until_ready(update.call(holder['state'], batch))
    return dict.fromkeys([row.name for row in rows], int(rollouts.lengths.sum()))

  # State and reference stay in memory while a part runs that does not take them as arguments.
  lasting = tree_bytes((holder['state'], reference, prompts, batch))
  largest = max(part.others for part in (sample, score, update))

  sizes, shape = (setup.scale.model, count, prompt, new), f'{count} x ({prompt} + {new}) tokens'
  flops = [function(*sizes) for function in (sampling_flops, score_flops, update_flops)]
  decoding, training = f'ceiling/product_decode_{count}', 'ceiling/product_forward'
  moved = sampling_bytes(sizes[0], tree_bytes(reference), *sizes[1:])

  # The whole step first, then its parts.
  rows = (
      Row(name, f'A*-PO step, {shape}, head_chunk {config.head_chunk}', sum(flops), 0,
          lasting + largest, sample.seconds + score.seconds + update.seconds, training),
      Row(f'{name}/sample', 'of it: sampling', flops[0], moved, sample.peak_bytes, sample.seconds,
          decoding),
      Row(f'{name}/score', 'of it: log-probs under the reference', flops[1], 0, score.peak_bytes,
          score.seconds, training),
      Row(f'{name}/update', 'of it: update', flops[2], 0, update.peak_bytes, update.seconds,
          training),
  )
  return Workload(rows, run)


def sampling(
    setup: Setup, name: str, batch_size: int, stop_ids: Sequence[int] | None = None
) -> Workload:
  """Times sampling at temperature 1, one response for each of `batch_size` prompts."""
  prompt, new = setup.scale.sampling
  prompts = setup.prompts(batch_size, prompt)
  sampler = setup.sampler(new, stop_ids)
  sample = compile_ahead(sampler, setup.params, *prompts, setup.key(rng.Stream.SAMPLE_EVAL, 0))

  def run(repetition, timers):
    key = setup.key(rng.Stream.SAMPLE_EVAL, repetition)
    with timers(name):
      rollouts = jax.block_until_ready(sample.call(setup.params, *prompts, key))
    return {name: int(rollouts.lengths.sum())}

  sizes = (batch_size, prompt, new)
  row = Row(
      name, f'sampling, batch {batch_size}, {prompt} + {new} tokens',
      sampling_flops(setup.scale.model, *sizes),
      sampling_bytes(setup.scale.model, tree_bytes(setup.params), *sizes), sample.peak_bytes,
      sample.seconds, f'ceiling/product_decode_{batch_size}',
  )
  return Workload((row,), run)


def train_suite(setup: Setup) -> Iterator[Workload]:
  """The supervised step with a chunked (default) and a whole head, and the A*-PO step."""
  yield sft_step(setup, 'sft_step', sft.Config())
  yield sft_step(setup, 'sft_step_whole_head', sft.Config(head_chunk=0))
  yield a_star_po_step(setup, 'a_star_po_step', a_star_po.Config())


def sample_suite(setup: Setup) -> Iterator[Workload]:
  """Sampling at each batch size."""
  for batch_size in setup.scale.batches:
    yield sampling(setup, f'sample_batch_{batch_size}', batch_size)


def ceilings(scale: Scale, one_core: OneCore | None) -> Iterator[Workload]:
  """Measures the machine: products at the workloads' shapes, and a triad over memory.

  If the process has several cores, each is also measured on one core (`NAME_one_core`).
  """
  model = scale.model
  n, d, f, v = math.prod(scale.sft), model.width, model.mlp_width, model.vocab_size
  group = model.num_heads // model.num_kv_heads
  pairs, length, h = scale.sft[0] * model.num_kv_heads, scale.sft[1], model.head_dim

  shapes = {
      'forward': ('md,df->mf', (n, d), (d, f)),
      'input_gradient': ('mf,df->md', (n, f), (d, f)),
      'weight_gradient': ('md,mf->df', (n, d), (n, f)),
      'head': ('md,vd->mv', (n, d), (v, d)),
      'attention': ('nqh,nsh->nqs', (pairs, group * length, h), (pairs, length, h)),
  }

  for batch_size in sorted({*scale.batches, scale.rollouts[0]}):
    shapes[f'decode_{batch_size}'] = ('md,df->mf', (batch_size, d), (d, f))
    shapes[f'decode_head_{batch_size}'] = ('md,vd->mv', (batch_size, d), (v, d))

  for name, product in shapes.items():
    yield _product(f'ceiling/product_{name}', *product, one_core)
  yield _triad('ceiling/triad', scale.triad_floats, one_core)


def _product(name, equation, left, right, one_core) -> Workload:
  """Times float32 products of distinct operands, as in a model, in one compiled call."""
  sizes = dict(zip(equation.replace(',', '').partition('->')[0], left + right))
  flops = 2 * math.prod(sizes.values())
  # Short products are repeated, over at most as many weights as the reference workload has.
  count = min(32, max(1, round(4e8 / flops)))
  key = jax.random.key(0)
  draw = lambda i, shape: jax.random.normal(jax.random.fold_in(key, i), shape)
  operands = [(draw(2 * i, left), draw(2 * i + 1, right)) for i in range(count)]
  product = compile_ahead(
      jax.jit(lambda pairs: [jnp.einsum(equation, a, b) for a, b in pairs]), operands)
  shown = ' by '.join('x'.join(map(str, shape)) for shape in (left, right))
  row = Row(name, f'{4 * count} products {equation}, {shown}', count * flops)
  return _ceiling(row, lambda: jax.block_until_ready(product.call(operands)), one_core)


def _triad(name, length, one_core) -> Workload:
  """Times a ← s a + b in place: two floats read and one written per entry."""
  holder = {'a': jnp.zeros(length), 'b': jnp.ones(length)}
  triad = compile_ahead(
      jax.jit(lambda a, b: 0.5 * a + b, donate_argnums=0), holder['a'], holder['b'])

  def call():
    holder['a'] = jax.block_until_ready(triad.call(holder['a'], holder['b']))

  row = Row(name, f'4 x a <- s a + b, {4 * length / 2**20:g} MiB each', 2 * length, 3 * 4 * length)
  return _ceiling(row, call, one_core)


def _ceiling(row: Row, call: Callable[[], Any], one_core: OneCore | None) -> Workload:
  """Times four calls in a row (one is short) on all cores, and on one core if there are several.

  `row` describes a single call.
  """
  row = row._replace(flops=4 * row.flops, traffic=4 * row.traffic)
  rows = (row,) if one_core is None else (row, row._replace(name=f'{row.name}_one_core'))

  def timed(name, timers):
    call()  # Warm up: threads may just have moved.
    with timers(name):
      for _ in range(4):
        call()

  def run(repetition, timers):
    del repetition
    timed(row.name, timers)
    if one_core is not None:
      with one_core():
        timed(rows[1].name, timers)
    return {}

  return Workload(rows, run)
