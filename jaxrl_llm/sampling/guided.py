"""Guided decoding: a frozen reference whose next-token logits a value model shifts.

  π(y | x) ∝ π_ref(y | x) exp(g(x, y)),    g = Q*/η = ln E[exp(Z / η)]    (Q#, arXiv 2502.20548)

Reference and value model are decoded together. At each step the reference's K most probable tokens
are candidates; the value model reads the token chosen before and all K candidates in one pass, in
which each candidate is an alternative for the same slot (`siblings` of `types.ApplyFn`). With K = V
this is the policy above.

Controlled decoding and FUDGE are other functions g of the same outputs:

  'q_sharp'  ln E[exp(Z / η)]    the optimal policy of E[R] − η KL(π ‖ π_ref)
  'cd'       E[Z] / η            Mudgal et al., 2023, arXiv 2310.17022
  'fudge'    ln E[Z]             Yang and Klein, 2021, arXiv 2104.05218; for returns of 0 or 1, the
                                 limit η → 0 of the first
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_llm.rl import divergences, return_heads
from jaxrl_llm.rl import log_probs as log_probs_lib
from jaxrl_llm.sampling import decode, processors
from jaxrl_llm.types import Array, ModelFns, Rollouts

RULES = ('q_sharp', 'cd', 'fudge')
FUNCTIONS = ('value', 'q_function')
TAILS = ('add', 'truncate')
ORDERS = ('reference_first', 'after')


class Guide(NamedTuple):
  """A value model and how its outputs shift the logits.

  Attributes:
    model: a value function (`models.value`), or a Q-function (`models.q_function`). Its token ids
      must mean what the reference's do.
    head: describes its outputs.
    function: 'value' or 'q_function'.
    rule: one of `RULES`.
  """

  model: ModelFns
  head: return_heads.ReturnHead
  function: str = 'value'
  rule: str = 'q_sharp'

  def offsets(self, outputs: Array, inv_eta: float | Array) -> Array:
    """g of outputs [..., num_outputs], float32 [...]; exactly 0 where 1/η is 0."""
    if self.rule == 'q_sharp':
      return self.head.soft_offset(outputs, inv_eta)
    mean = self.head.expectation(outputs)
    if self.rule == 'cd':
      return jnp.asarray(inv_eta, jnp.float32) * mean
    log_mean = jnp.log(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))
    return jnp.where(jnp.asarray(inv_eta) == 0, 0.0, log_mean)


class GuidedRollouts(NamedTuple):
  """Responses of the guided policy, and how far it is from the reference.

  Attributes:
    rollouts: their `log_probs` are those of the distribution that was sampled from.
    kl: float32 [P, K]; Σ_t KL(π_t ‖ π_ref,t), nats, both truncated by the nucleus (with 'after':
      neither). Its mean over samples estimates the KL of whole responses.
    kl_of_paper: float32 [P, K]; the same with the guided policy truncated and the reference not,
      as the released code of Q# measures it: above 0 under a nucleus even without guidance.
  """

  rollouts: Rollouts
  kl: Array
  kl_of_paper: Array


class _Decoding(NamedTuple):
  """Carry of the decoding loop; see `decode.Decoding`."""

  step: Array
  tokens: Array
  log_probs: Array
  kls: Array  # [2, B].
  done: Array
  cache: Any
  guide_cache: Any


def make_sampler(
    reference: ModelFns,
    guide: Guide,
    *,
    num_samples: int,
    max_tokens: int,
    num_candidates: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    tail: str = 'add',
    order: str = 'reference_first',
) -> Callable[..., GuidedRollouts]:
  """Builds a pure sampling function, to be jitted by the caller.

  The noise of a token is that of `decode.make_sampler`: with 1/η = 0 and tail 'add' the tokens are
  the reference's for the same key, bit for bit.

  Args:
    reference: the policy to be guided.
    guide: the value model.
    num_samples: K, samples per prompt.
    max_tokens: T, the maximum response length, stop token included.
    num_candidates: tokens that are evaluated; at least V evaluates all.
    stop_ids: ids that end a response.
    pad_id: written after a response's end.
    temperature: > 0, or 0 for the argmax.
    top_p: the nucleus; 1 keeps all.
    tail: tokens that are not candidates keep the reference's logit ('add', as in the released code
      for mathematics) or are excluded ('truncate', as in that for star graphs).
    order: 'reference_first': the reference is the tempered and truncated sampler, and g is added to
      its log-probs, so that the policy above is exact for it. 'after': g is added to the logits,
      and temperature and nucleus follow, so that the guidance is g / temperature (released code for
      mathematics).

  Returns:
    (params by role {'policy', guide.function}, prompts, prompt_lengths, example_ids, key, inv_eta)
    -> `GuidedRollouts`; `inv_eta` is 1/η, a number or an array [].

  Raises:
    ValueError: if an argument is out of range.
  """
  for name, value, least in (
      ('num_samples', num_samples, 1), ('max_tokens', max_tokens, 1),
      ('num_candidates', num_candidates, 1)):
    if value < least:
      raise ValueError(f'{name} must be at least {least}, got {value}')
  for name, value, allowed in (
      ('tail', tail, TAILS), ('order', order, ORDERS), ('guide.rule', guide.rule, RULES),
      ('guide.function', guide.function, FUNCTIONS)):
    if value not in allowed:
      raise ValueError(f'{name} must be one of {", ".join(allowed)}, got {value!r}')
  if not stop_ids:
    raise ValueError('stop_ids must have at least one id, got none')
  if not 0 <= temperature < math.inf:
    raise ValueError(f'temperature must be non-negative and finite, got {temperature}')
  processors.check_truncation(p=top_p)

  temper = functools.partial(processors.temper, temperature=temperature or 1.0)
  nucleus = functools.partial(processors.top_p, p=top_p)

  def guided(logits, candidates, offsets):
    """Logits [B, V] to sample from, and the KL of a step [2, B] (`GuidedRollouts`)."""
    def shift(logits):
      rows = jnp.arange(len(logits))[:, None]
      if tail == 'add':
        return logits.at[rows, candidates].add(offsets)
      chosen = jnp.take_along_axis(logits, candidates, axis=-1) + offsets
      return jnp.full(logits.shape, processors.EXCLUDED).at[rows, candidates].set(chosen)

    whole = temper(logits)
    if order == 'reference_first':
      base = nucleus(whole)
      final = shift(base)
      exact = divergences.exact_kl(final, base)
    else:
      untruncated = temper(shift(logits.astype(jnp.float32)))
      final = nucleus(untruncated)
      exact = divergences.exact_kl(untruncated, whole)
    return final, jnp.stack([exact, divergences.exact_kl(final, whole)])

  def record(decoding: _Decoding, logits, candidates, outputs, row_keys, inv_eta) -> _Decoding:
    """Chooses the next token of every row that is not done."""
    t = decoding.step
    final, kls = guided(logits, candidates, guide.offsets(outputs, inv_eta))
    if temperature == 0:
      chosen = jnp.argmax(final, axis=-1).astype(jnp.int32)
    else:
      chosen = processors.choose(final, jax.vmap(jax.random.fold_in, (0, None))(row_keys, t))
    chosen_log_probs = log_probs_lib.log_probs_from_logits(final, chosen)

    chosen = jnp.where(decoding.done, pad_id, chosen)
    chosen_log_probs = jnp.where(decoding.done, 0.0, chosen_log_probs)
    update = functools.partial(jax.lax.dynamic_update_slice, start_indices=(0, t))
    return decoding._replace(
        step=t + 1,
        tokens=update(decoding.tokens, chosen[:, None]),
        log_probs=update(decoding.log_probs, chosen_log_probs[:, None]),
        kls=decoding.kls + jnp.where(decoding.done, 0.0, kls),
        done=decoding.done | jnp.isin(chosen, jnp.asarray(stop_ids, jnp.int32)),
    )

  def outputs_of(hidden, head, candidates) -> Array:
    """Outputs [B, K, M] from hidden states [B, K, D] of candidates, or [B, D] before them."""
    outputs = log_probs_lib.head_logits(hidden.astype(jnp.float32), head)
    if guide.function == 'value':
      return outputs
    every = outputs.reshape(len(hidden), -1, guide.head.num_outputs)
    return jnp.take_along_axis(every, candidates[..., None], axis=1)

  def sample(params, prompts, prompt_lengths, example_ids, key, inv_eta) -> GuidedRollouts:
    chex.assert_rank([prompts, prompt_lengths, example_ids], [2, 1, 1])
    policy, value = params['policy'], params[guide.function]
    rows, length = len(prompts) * num_samples, prompts.shape[1]
    lengths = jnp.repeat(prompt_lengths, num_samples)
    row_keys = decode.row_keys_of(key, example_ids, num_samples)
    prompt_valid = jnp.arange(length) >= length - lengths[:, None]

    begun = decode.prefill(
        reference, policy, prompts, prompt_lengths, num_samples, max_tokens - 1)
    spread = functools.partial(jnp.repeat, repeats=num_samples, axis=0)
    logits = spread(log_probs_lib.head_logits(begun.hidden, begun.head))
    count = min(num_candidates, logits.shape[-1])
    siblings = count if guide.function == 'value' else 0
    candidates = _most_probable(logits, count)
    read = decode.prefill(
        guide.model, value, prompts, prompt_lengths, num_samples, max_tokens - 1 + siblings)
    valid = jnp.concatenate(
        [prompt_valid, jnp.ones((rows, max_tokens - 1 + siblings), bool)], axis=1)

    def evaluate(last, candidates, step, cache) -> tuple[Array, Any]:
      """Outputs [B, K, M] for the candidates after the chosen tokens, of which `last` is new."""
      start = lengths[:, None] + step
      tokens, positions = last, jnp.broadcast_to(start - 1, last.shape)
      if siblings:
        tokens = jnp.concatenate([last, candidates], axis=1)
        positions = jnp.concatenate([positions, jnp.broadcast_to(start, candidates.shape)], axis=1)
      output = guide.model.apply(
          value, tokens, positions=positions, valid=valid, cache=cache, siblings=siblings,
          cache_index=length + step - last.shape[1])
      hidden = output.hidden[:, -siblings:] if siblings else output.hidden[:, -1]
      return outputs_of(hidden, output.head, candidates), output.cache

    if siblings:
      outputs, guide_cache = evaluate(
          jnp.zeros((rows, 0), jnp.int32), candidates, jnp.int32(0), read.cache)
    else:
      outputs, guide_cache = outputs_of(spread(read.hidden), read.head, candidates), read.cache
    start = _Decoding(
        step=jnp.int32(0), tokens=jnp.full((rows, max_tokens), pad_id, jnp.int32),
        log_probs=jnp.zeros((rows, max_tokens)), kls=jnp.zeros((2, rows)),
        done=jnp.zeros(rows, bool), cache=begun.cache, guide_cache=guide_cache)
    decoding = record(start, logits, candidates, outputs, row_keys, inv_eta)

    def add_token(decoding: _Decoding) -> _Decoding:
      step = decoding.step
      last = jax.lax.dynamic_slice_in_dim(decoding.tokens, step - 1, 1, axis=1)
      output = reference.apply(
          policy, last, positions=(lengths + step - 1)[:, None],
          valid=valid[:, : length + max_tokens - 1], cache=decoding.cache,
          cache_index=length + step - 1)
      logits = log_probs_lib.head_logits(output.hidden[:, 0], output.head)
      candidates = _most_probable(logits, count)
      outputs, guide_cache = evaluate(last, candidates, step, decoding.guide_cache)
      decoding = decoding._replace(cache=output.cache, guide_cache=guide_cache)
      return record(decoding, logits, candidates, outputs, row_keys, inv_eta)

    decoding = jax.lax.while_loop(
        lambda d: (d.step < max_tokens) & ~jnp.all(d.done), add_token, decoding)
    rollouts = decode.as_rollouts(
        decoding.tokens, decoding.log_probs, prompts, prompt_lengths, stop_ids=stop_ids)
    return GuidedRollouts(rollouts, *decoding.kls.reshape(2, len(prompts), num_samples))

  return sample


def _most_probable(logits: Array, count: int) -> Array:
  """Returns the ids of the `count` largest logits, int32 [B, count]."""
  if count == logits.shape[-1]:
    return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), logits.shape)
  return jax.lax.top_k(logits, count)[1].astype(jnp.int32)

