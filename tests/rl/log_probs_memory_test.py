"""Memory that the compiler allocates for the chunked head with its loss and gradient."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from jaxrl_llm import types
from jaxrl_llm.rl import divergences, log_probs

# V much larger than D, so that logits are what memory goes to.
B, D, V, CHUNK = 4, 8, 2048, 16


def _abstract(steps):
  struct = lambda shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  head = types.Head(struct((V, D)), struct((V,)))
  return struct((B, steps, D)), head, struct((B, steps), jnp.int32)


def _plain(hidden, head, targets):
  log_p = jax.nn.log_softmax(hidden @ head.kernel.T + head.bias)
  chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)
  return jnp.sum(chosen**2) + jnp.sum(jnp.exp(log_p) * log_p)


def _chunked(hidden, head, targets):
  values = log_probs.token_log_probs(hidden, head, targets, chunk_size=CHUNK)
  return jnp.sum(values**2)


def _chunked_with_entropy(hidden, head, targets):
  values, entropy = log_probs.token_log_probs_and_entropy(hidden, head, targets, chunk_size=CHUNK)
  return jnp.sum(values**2) + jnp.sum(entropy**2)


def _compile(function, steps):
  gradient = jax.value_and_grad(function, argnums=(0, 1))
  return jax.jit(gradient).lower(*_abstract(steps)).compile()


def _largest_buffer(compiled):
  """Elements of the largest array named anywhere in the compiled program."""
  shapes = re.findall(r'\b(?:pred|bf16|[fsu]\d+)\[([\d,]*)\]', compiled.as_text())
  return max(math.prod(int(n) for n in shape.split(',') if n) for shape in shapes)


@pytest.mark.parametrize('function', [_chunked, _chunked_with_entropy])
def test_memory_grows_linearly_in_t_and_logits_never_exist(function):
  lengths = (128, 256, 512)
  programs = [_compile(function, steps) for steps in lengths]
  sizes = [program.memory_analysis().temp_size_in_bytes for program in programs]
  # Growth by hidden states, their gradient, and per-token numbers: a few times B*T*D.
  growth = [(after - before) / (2 * length - length)
            for before, after, length in zip(sizes[:-1], sizes[1:], lengths[:-1], strict=True)]
  assert growth[1] == pytest.approx(growth[0], rel=.1, abs=64)
  assert max(growth) < 8 * B * D * 4
  for steps, size, program in zip(lengths, sizes, programs, strict=True):
    assert size < B * steps * V * 4 / 2
    assert _largest_buffer(program) == B * CHUNK * V


def test_the_measure_sees_logits_where_they_exist():
  program = _compile(_plain, 128)
  assert _largest_buffer(program) >= B * 128 * V
  assert program.memory_analysis().temp_size_in_bytes >= B * 128 * V * 4


def test_token_kl_holds_one_chunk_of_logits():
  # 255 steps do not divide: 16 chunks, none of them longer than asked for.
  hidden, head, _ = _abstract(255)
  function = lambda *x: divergences.token_kl(*x, chunk_size=CHUNK)
  program = jax.jit(function).lower(hidden, head, hidden, head).compile()
  assert _largest_buffer(program) == B * CHUNK * V
