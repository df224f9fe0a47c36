"""Runs the two fetched models: one program for logits, one for decoding, one for embeddings."""

import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.data import batching
from jaxrl_llm.models import encoder, policy
from jaxrl_llm.models.pretrained import huggingface, sentence_encoder
from jaxrl_llm.rl import log_probs
from jaxrl_llm.runs import checkpoint_sources
from jaxrl_llm.sampling import decode
from jaxrl_llm.types import ModelFns, Params, Rollouts, Tokenizer
from tests.golden import real_cases

# Without this, float32 matrix products have the precision of bfloat16 on some accelerators.
exactly = functools.partial(jax.default_matmul_precision, 'highest')


class Policy(NamedTuple):
  """A language model with its tokenizer."""

  model: ModelFns
  params: Params
  tokenizer: Tokenizer


# Products of a matrix with one vector are slow in machine code that is not optimised.
OPTIMISED = {'xla_backend_optimization_level': 3}


def load_policy(directory: pathlib.Path) -> Policy:
  """Loads a checkpoint as programs do; the layers are compiled once."""
  source = checkpoint_sources.read(str(directory), field='--policy')
  source.model.scan_unroll = 1
  model = policy.make(source.model)
  return Policy(model, source.load_on_one_device(model), source.load_tokenizer())


def logits(loaded: Policy, rows) -> jax.Array:
  """float32 [B, WIDTH, V] of right-padded rows of ids."""
  tokens, mask = real_cases.right_pad(rows, real_cases.WIDTH, loaded.tokenizer.pad_id)
  positions = np.broadcast_to(np.arange(real_cases.WIDTH), tokens.shape)

  @jax.jit
  def run(params):
    output = loaded.model.apply(params, tokens, positions=positions, valid=mask)
    return log_probs.head_logits(output.hidden, output.head)

  with exactly():
    return run(loaded.params)


def greedy(loaded: Policy, prompts) -> Rollouts:
  """Greedy continuations of left-padded prompts."""
  arrays = batching.left_pad(prompts, real_cases.PROMPT_WIDTH, loaded.tokenizer.pad_id)
  sample = decode.make_sampler(
      loaded.model, num_samples=1, max_tokens=real_cases.CONTINUATION, temperature=0.0,
      stop_ids=loaded.tokenizer.stop_ids, pad_id=loaded.tokenizer.pad_id)
  with exactly():
    return jax.device_get(jax.jit(sample, compiler_options=OPTIMISED)(
        loaded.params, *arrays, jnp.arange(len(prompts)), jax.random.key(0)))


def embeddings(directory: pathlib.Path, rows) -> np.ndarray:
  """float32 [B, D] of right-padded rows of ids."""
  checkpoint = sentence_encoder.read_config(directory)
  checkpoint.config.scan_unroll = 1
  model = encoder.make(checkpoint.config)
  params = huggingface.load_params(checkpoint, jax.eval_shape(model.init, jax.random.key(0)))
  with exactly():
    return np.asarray(jax.jit(model.embed)(
        params, *real_cases.right_pad(rows, real_cases.TEXT_WIDTH, 0)))
