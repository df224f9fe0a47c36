"""Workloads of guided sampling, side by side with sampling without a guide.

Flops: those of sampling, and for the guide of width D and K candidates

  trunk(B L, L), then T times trunk(B (K + 1), L + T + K): the chosen token and the candidates.

On accelerators decoding is bound by reading the parameters, and the guide adds the ratio of the
sizes. Where it is bound by arithmetic, as on few CPU cores with a batch, each token costs K + 1
tokens of the guide.
"""

from collections.abc import Iterator

import jax
import numpy as np

from experiments.bench import workloads
from jaxrl_llm.models import value
from jaxrl_llm.rl import return_heads
from jaxrl_llm.runs import memory
from jaxrl_llm.sampling import guided
from jaxrl_llm.training import rng

CANDIDATES = 20


def suite(setup: workloads.Setup) -> Iterator[workloads.Workload]:
  """Sampling with and without guidance at each batch size."""
  for batch_size in setup.scale.batches:
    yield workloads.sampling(setup, f'unguided_batch_{batch_size}', batch_size)
    yield sampling(setup, f'guided_batch_{batch_size}', batch_size)


def sampling(setup: workloads.Setup, name: str, batch_size: int) -> workloads.Workload:
  """Times sampling guided by a value model that evaluates `CANDIDATES` for each token."""
  (prompt, new), model, guide = setup.scale.sampling, setup.scale.model, setup.scale.guide
  network = value.make(guide)
  params = {'policy': setup.params, 'value': jax.jit(network.init)(setup.key(rng.Stream.CRITIC))}
  prompts, inv_eta = setup.prompts(batch_size, prompt), np.float32(10)
  sampler = jax.jit(guided.make_sampler(
      setup.model, guided.Guide(network, return_heads.Bernoulli()), num_samples=1, max_tokens=new,
      num_candidates=CANDIDATES, stop_ids=(model.vocab_size,), pad_id=0))
  sample = workloads.compile_ahead(
      sampler, params, *prompts, setup.key(rng.Stream.SAMPLE_EVAL, 0), inv_eta)

  def run(repetition, timers):
    key = setup.key(rng.Stream.SAMPLE_EVAL, repetition)
    with timers(name):
      result = jax.block_until_ready(sample.call(params, *prompts, key, inv_eta))
    return {name: int(result.rollouts.lengths.sum())}

  sizes = batch_size, prompt, new
  tokens = batch_size * (CANDIDATES + 1)
  guide_flops = workloads.trunk_flops(guide, batch_size * prompt, prompt) + new * (
      workloads.trunk_flops(guide, tokens, prompt + new + CANDIDATES))
  ratio = memory.num_weights(guide) / memory.num_weights(model)
  row = workloads.Row(
      name, f'guided sampling, batch {batch_size}, {prompt} + {new} tokens, {CANDIDATES} '
      f'candidates, value model of {ratio:.2f} of the parameters',
      workloads.sampling_flops(model, *sizes) + guide_flops, peak_bytes=sample.peak_bytes,
      compile_seconds=sample.seconds, ceiling=f'ceiling/product_decode_{batch_size}')
  return workloads.Workload((row,), run)
