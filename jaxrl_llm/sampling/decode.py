"""Sampling with a KV cache: one prefill per prompt, shared by its K samples."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import log_probs as log_probs_lib
from jaxrl_llm.rl import masking
from jaxrl_llm.sampling import processors
from jaxrl_llm.types import Array, ModelFns, ModelOutput, Params, Rollouts, SampleFn


class Decoding(NamedTuple):
  """Carry of the decoding loop.

  Attributes:
    step: int32 [], number of tokens chosen so far in each row.
    tokens: int32 [B, T], padding from `step` on.
    log_probs: float32 [B, T].
    done: bool [B], whether a row has stopped.
    cache: the model's KV cache.
  """

  step: Array
  tokens: Array
  log_probs: Array
  done: Array
  cache: Any


class Given(NamedTuple):
  """The beginnings of responses, which are not sampled.

  Attributes:
    tokens: int32 [P, K, T].
    lengths: int32 [P, K]; the tokens that are given. A response that stops among them ends there.
  """

  tokens: Array
  lengths: Array


class SamplerParts(NamedTuple):
  """The parts of a sampler, for a caller that looks at tokens while decoding continues.

  `inputs` are the arguments of a `types.SampleFn` after the parameters, and optionally `Given`:
  the sampler then continues these responses, whose given tokens have mask 0.

  Attributes:
    begin: (params, *inputs) -> decoding with the first token of every row.
    advance: (decoding, until, params, *inputs) -> decoding after `until` (int32 []) tokens, or
      fewer if every row has stopped.
    finish: (decoding, *inputs) -> rollouts.
  """

  begin: Callable[..., Decoding]
  advance: Callable[..., Decoding]
  finish: Callable[..., Rollouts]


def make_sampler(model: ModelFns, *, max_tokens: int, **options: Any) -> SampleFn:
  """Builds a pure sampling function, to be jitted by the caller.

  Takes the arguments of `make_parts`, whose parts it runs in one program.
  """
  parts = make_parts(model, max_tokens=max_tokens, **options)

  def sample(params, *inputs) -> Rollouts:
    decoding = parts.begin(params, *inputs)
    return parts.finish(parts.advance(decoding, max_tokens, params, *inputs), *inputs)

  return sample


def make_parts(
    model: ModelFns,
    *,
    num_samples: int,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_sequences: tuple[tuple[int, ...], ...] = (),
) -> SamplerParts:
  """Builds the parts of a sampler as pure functions, to be jitted by the caller.

  y_t ~ softmax(logits_t / temperature), truncated by top-k and top-p if set.
  The recorded log-probs are at that temperature over the whole vocabulary, as the
  trainer computes them. With top_k or top_p they are not those of the truncated
  distribution, so training on such samples is off-policy.

  The noise of a token is a function of only (key, example id, sample, position):
  it does not depend on the rest of the batch. A prompt that is repeated in a batch,
  as at the edge of an epoch, gets the next K samples, not the same ones. Decoding
  ends as soon as every row has stopped.

  Args:
    model: the policy. Its cache leaves are [..., B, S, heads, head_dim].
    num_samples: K, samples per prompt.
    max_tokens: T, the maximum response length, stop token included.
    stop_ids: ids that end a response.
    pad_id: written after a response's end.
    temperature: > 0, or 0 for greedy decoding (the log-probs are then those at
      temperature 1).
    top_k: keep only the k most probable tokens; 0 keeps all.
    top_p: keep the smallest nucleus of this probability; 1 keeps all.
    stop_sequences: sequences of ids that also end a response, at their last id.

  Returns:
    The parts; `make_sampler` joins them.

  Raises:
    ValueError: if an argument is out of range.
  """
  if num_samples < 1:
    raise ValueError(f'num_samples must be at least 1, got {num_samples}')
  if max_tokens < 1:
    raise ValueError(f'max_tokens must be at least 1, got {max_tokens}')
  if not stop_ids:
    raise ValueError('stop_ids must have at least one id, got none')
  if not 0 <= temperature < math.inf:
    raise ValueError(f'temperature must be non-negative and finite, got {temperature}')
  processors.check_truncation(k=top_k, p=top_p)
  if not all(stop_sequences):
    raise ValueError('stop_sequences must have at least one id each, got an empty one')
  stop_sequences = tuple(ids for ids in stop_sequences if len(ids) <= max_tokens)

  def choose(logits, keys):
    if temperature == 0:
      return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = processors.temper(logits, temperature=temperature)
    logits = processors.top_p(processors.top_k(logits, k=top_k), p=top_p)
    return processors.choose(logits, keys)

  def record(
      decoding: Decoding, logits: Array, row_keys: Array, given: Given | None
  ) -> Decoding:
    """Chooses the next token of every row that is not done."""
    t = decoding.step
    chosen = choose(logits, jax.vmap(jax.random.fold_in, (0, None))(row_keys, t))
    if given is not None:
      known = given.tokens.reshape(decoding.tokens.shape)
      known = jax.lax.dynamic_slice_in_dim(known, t, 1, axis=1)[:, 0]
      chosen = jnp.where(t < given.lengths.reshape(-1), known, chosen)
    chosen_log_probs = log_probs_lib.log_probs_from_logits(
        logits, chosen, temperature=temperature or 1.0
    )

    chosen = jnp.where(decoding.done, pad_id, chosen)
    chosen_log_probs = jnp.where(decoding.done, 0.0, chosen_log_probs)
    stops = jnp.isin(chosen, jnp.asarray(stop_ids, jnp.int32))
    tokens = jax.lax.dynamic_update_slice(decoding.tokens, chosen[:, None], (0, t))
    for ids in stop_sequences:
      last = jax.lax.dynamic_slice_in_dim(tokens, t + 1 - len(ids), len(ids), axis=1)
      stops |= (t + 1 >= len(ids)) & jnp.all(last == jnp.asarray(ids, jnp.int32), axis=1)

    return Decoding(
        step=t + 1,
        tokens=tokens,
        log_probs=jax.lax.dynamic_update_slice(
            decoding.log_probs, chosen_log_probs[:, None], (0, t)
        ),
        done=decoding.done | stops,
        cache=decoding.cache,
    )

  spread = functools.partial(jnp.repeat, repeats=num_samples, axis=0)

  def begin(params, prompts, prompt_lengths, example_ids, key, given=None) -> Decoding:
    chex.assert_rank([prompts, prompt_lengths, example_ids], [2, 1, 1])
    rows = len(prompts) * num_samples
    row_keys = row_keys_of(key, example_ids, num_samples)
    output = prefill(model, params, prompts, prompt_lengths, num_samples, max_tokens - 1)
    logits = spread(log_probs_lib.head_logits(output.hidden, output.head))

    start = Decoding(
        step=jnp.int32(0),
        tokens=jnp.full((rows, max_tokens), pad_id, jnp.int32),
        log_probs=jnp.zeros((rows, max_tokens), jnp.float32),
        done=jnp.zeros(rows, bool),
        cache=output.cache,
    )
    return record(start, logits, row_keys, given)

  def advance(
      decoding, until, params, prompts, prompt_lengths, example_ids, key, given=None
  ) -> Decoding:
    rows, length = decoding.tokens.shape[0], prompts.shape[1]
    row_keys = row_keys_of(key, example_ids, num_samples)
    prompt_valid = jnp.arange(length) >= length - spread(prompt_lengths)[:, None]
    valid = jnp.concatenate([prompt_valid, jnp.ones((rows, max_tokens - 1), bool)], axis=1)

    def add_token(decoding: Decoding) -> Decoding:
      last = jax.lax.dynamic_slice_in_dim(decoding.tokens, decoding.step - 1, 1, axis=1)
      output = model.apply(
          params,
          last,
          positions=(spread(prompt_lengths) + decoding.step - 1)[:, None],
          valid=valid,
          cache=decoding.cache,
          cache_index=length + decoding.step - 1,
      )
      logits = log_probs_lib.head_logits(output.hidden[:, 0], output.head)
      return record(decoding._replace(cache=output.cache), logits, row_keys, given)

    return jax.lax.while_loop(
        lambda d: (d.step < until) & ~jnp.all(d.done), add_token, decoding)

  def finish(decoding, prompts, prompt_lengths, example_ids, key, given=None) -> Rollouts:
    del example_ids, key
    rollouts = as_rollouts(
        decoding.tokens, decoding.log_probs, prompts, prompt_lengths, stop_ids=stop_ids,
        stop_sequences=stop_sequences)
    if given is None:
      return rollouts
    sampled = jnp.arange(max_tokens) >= given.lengths[..., None]
    return dataclasses.replace(
        rollouts, mask=rollouts.mask * sampled, log_probs=rollouts.log_probs * sampled)

  return SamplerParts(begin, advance, finish)


def as_rollouts(
    tokens: Array, log_probs: Array, prompts: Array, prompt_lengths: Array, *,
    stop_ids: tuple[int, ...], stop_sequences: tuple[tuple[int, ...], ...] = (),
) -> Rollouts:
  """Builds rollouts of decoded rows [P * K, T], those of a prompt together."""
  tokens = tokens.reshape(len(prompts), -1, tokens.shape[-1])
  ends = _ends_of(tokens, stop_sequences) if stop_sequences else None
  mask, lengths, stop_reason = masking.response_mask(tokens, stop_ids, also_stops=ends)
  return Rollouts(
      prompts=prompts,
      prompt_lengths=prompt_lengths,
      tokens=tokens,
      lengths=lengths,
      mask=mask,
      log_probs=log_probs.reshape(tokens.shape),
      stop_reason=stop_reason,
  )


def _ends_of(tokens: Array, sequences: tuple[tuple[int, ...], ...]) -> Array:
  """True at the last token of each occurrence of a sequence: bool, shaped like `tokens`."""
  ends = jnp.zeros(tokens.shape, bool)
  for ids in sequences:
    matches = jnp.ones(tokens.shape, bool)
    for back, token in enumerate(reversed(ids)):
      shifted = jnp.roll(tokens, back, axis=-1) == token
      matches &= shifted & (jnp.arange(tokens.shape[-1]) >= back)
    ends |= matches
  return ends


def row_keys_of(key: Array, example_ids: Array, num_samples: int) -> Array:
  """One key per (example, sample): [P * K]; repeats of an example continue its sample count."""
  fold = jax.random.fold_in
  of_example = jax.vmap(fold, (None, 0))(key, example_ids)
  # How often each row's example occurs in the rows before it.
  repeats = jnp.tril(example_ids[:, None] == example_ids[None, :], k=-1).sum(axis=1)
  samples = repeats[:, None] * num_samples + jnp.arange(num_samples)
  return jax.vmap(jax.vmap(fold, (None, 0)))(of_example, samples).reshape(-1)


def prefill(
    model: ModelFns, params: Params, prompts: Array, prompt_lengths: Array, num_samples: int,
    more_slots: int,
) -> ModelOutput:
  """Runs each prompt once.

  Args:
    model: a model.
    params: parameters of the model.
    prompts: int32 [P, L], left-padded.
    prompt_lengths: int32 [P].
    num_samples: K.
    more_slots: slots of the cache after the prompt.

  Returns:
    The output at the last token of each prompt, hidden [P, D], with a cache of P * K rows.
  """
  num_prompts, length = prompts.shape
  positions, valid = masking.left_pad_positions(prompt_lengths, length)
  output = model.apply(
      params,
      prompts,
      positions=positions,
      valid=valid,
      cache=model.init_cache(num_prompts, length),
      cache_index=jnp.int32(0),
  )
  def spread(leaf):  # [..., P, L, heads, head_dim] -> [..., P * K, L + more, heads, head_dim]
    leaf = jnp.repeat(leaf, num_samples, axis=leaf.ndim - 4)
    padding = [(0, 0)] * leaf.ndim
    padding[-3] = (0, more_slots)
    return jnp.pad(leaf, padding)

  return ModelOutput(output.hidden[:, -1], output.head, jax.tree.map(spread, output.cache))
