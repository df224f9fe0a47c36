"""The estimate that refuses sizes which cannot fit, and the one line for memory that runs out."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from jaxrl_llm.models import configs, lora, policy
from jaxrl_llm.runs import memory


@pytest.mark.parametrize('changes', [
    {}, {'tie_embeddings': False}, {'positions': 'learned'}, {'activation': 'gelu'},
    {'num_kv_heads': 1, 'attention_bias': True, 'post_norms': True}])
def test_weights_are_counted_without_norms_and_biases(changes):
  model = configs.TransformerConfig(**{
      'vocab_size': 64, 'num_layers': 3, 'width': 32, 'num_heads': 4, 'num_kv_heads': 2,
      'head_dim': 8, 'mlp_width': 48, 'max_length': 16} | changes)
  shapes = jax.eval_shape(policy.make(model).init, jax.random.key(0))
  matrices = sum(
      math.prod(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
      if not any(name in jax.tree_util.keystr(path) for name in ('norm', 'bias')))
  assert memory.num_weights(model) == matrices


def test_caches_are_counted_as_the_sampler_makes_them():
  model = configs.TransformerConfig(
      vocab_size=8, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=16,
      max_length=32)
  cache = jax.eval_shape(lambda: policy.make(model).init_cache(3, 20))
  keys_and_values = sum(
      math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)
      if leaf.dtype == np.float32)
  assert memory.cache_bytes(model, 3, 20) == keys_and_values
  half = dataclasses.replace(model, compute_dtype='bfloat16')
  assert memory.cache_bytes(half, 3, 20) == keys_and_values // 2


def test_what_cannot_fit_is_one_line_with_the_largest_contributor(monkeypatch):
  monkeypatch.setattr(memory, 'available', lambda: (2**33, 'this machine'))
  memory.check({'parameters': 2**32, 'batches': 2**31})
  memory.check({'parameters': 2**33, 'batches': 2**33})  # Perhaps not at once.
  memory.check({})
  message = ('^the run cannot fit: the largest contributor, parameters, needs at least 12 GiB, '
             'and this machine has 8 GiB$')
  with pytest.raises(ValueError, match=message):
    memory.check({'batches': 2**32, 'parameters': 3 * 2**32})


def test_small_runs_ask_nothing_of_the_devices(monkeypatch):
  monkeypatch.setattr(memory, 'available', lambda: pytest.fail('it asked'))
  memory.check({'parameters': 2**20})


def test_this_machine_has_some_memory():
  size, name = memory.available()
  assert size > 2**28 and name


@pytest.mark.parametrize('size, text', [
    (0, '0 bytes'), (1023, '1.02e+03 bytes'), (1024, '1 KiB'), (3 * 2**29, '1.5 GiB'),
    (10**30, '8.67e+11 EiB')])
def test_sizes_are_readable(size, text):
  assert memory.describe(size) == text


@pytest.mark.parametrize('error, part', [
    (RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 4000000000000 bytes.'),
     '4000000000000 bytes were asked for'),
    (MemoryError(), 'out of memory in sample: '),
    (np._core._exceptions._ArrayMemoryError((10**12,), np.dtype('float32')), '3.64 TiB')])
def test_memory_that_runs_out_is_one_line(error, part):
  line = memory.out_of_memory_line(error, 'sample')
  assert line.startswith('out of memory in sample') and part in line and '\n' not in line


def test_other_errors_are_left_alone():
  assert memory.out_of_memory_line(ValueError('x must be positive'), 'sample') is None


def test_adapters_are_counted_for_one_projection_per_layer():
  model = configs.TransformerConfig(
      vocab_size=8, num_layers=2, width=16, num_heads=4, num_kv_heads=1, head_dim=8, mlp_width=16,
      max_length=32)
  shapes = jax.eval_shape(policy.make(model).init, jax.random.key(0))
  config = lora.LoraConfig(rank=3, targets='attention/query')
  adapters = jax.eval_shape(
      lambda base: lora.init_adapters(config, base, jax.random.key(0)), shapes)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(adapters))
  assert memory.num_adapter_weights(model, 3) == count
