"""No array of time x vocabulary in a whole compiled train step."""

import math
import re

import jax
import pytest

from tests.system import train_steps

VOCABULARY, TOKENS, CHUNK, ROWS = 4096, 64, 8, 4


def _largest_buffers(text: str) -> set[int]:
  shapes = re.findall(r'\b[a-z]+[0-9]+\[([0-9,]+)\]', text)
  return {math.prod(map(int, shape.split(','))) for shape in shapes}


def _compiled(name: str, chunk: int) -> str:
  shape = train_steps.model(vocab_size=VOCABULARY, max_length=TOKENS + 8, width=16)
  policy, algorithm = train_steps.make(name, shape, train_steps.recording(), head_chunk=chunk)
  state = jax.eval_shape(
      lambda key: algorithm.init(key, {'policy': policy.init(key)}), jax.random.key(0))
  batch = train_steps.batch_for(name, shape, TOKENS, ROWS)
  return jax.jit(algorithm.train_step).lower(state, batch).compile().as_text()


@pytest.mark.parametrize('name', ['sft', 'a_star_po'])
def test_no_buffer_of_the_step_has_time_times_vocabulary_elements(name):
  sizes = _largest_buffers(_compiled(name, CHUNK))
  assert max(sizes) < TOKENS * VOCABULARY
  assert ROWS * CHUNK * VOCABULARY in sizes  # The search does find the logits of a chunk.


def test_without_chunks_the_same_search_finds_the_array():
  assert max(_largest_buffers(_compiled('sft', 0))) >= TOKENS * VOCABULARY
