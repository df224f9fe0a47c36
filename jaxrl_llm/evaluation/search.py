"""Search over blocks of tokens: beams that keep the continuations of highest value.

Of each problem there are M independent trees (diverse verifier tree search), each with m = N / w
beams. At every depth each unfinished beam samples w blocks from the reference, and of all these the
best a stay, with a the number of unfinished beams of the tree: two may share a parent. A finished
beam stays as it is. Special cases:

  w = 1                    N independent samples, for any values
  m = 1 (w = N)            one beam, the best of w blocks at each depth
  m = 1, block ≥ maximum   best-of-N by value
  M trees with m = 1       M beams that are each the best of w

(Wang et al., 2025, Value-Guided Search, arXiv 2505.17373, algorithm 1 and released code, which also
chooses among all candidates of a tree and not beam by beam.)

A particle filter (`select='resample'`, w = 1; Puri et al., 2025, arXiv 2502.01618) draws the beams
that stay in proportion to the exponentials of their scores. With the increments of a score V/η it
is sequential Monte Carlo towards the reference tilted by exp(R/η).

The search is a loop on the host over compiled blocks. Caches are gathered, and nothing is encoded
twice. A block is a function of the key, the problem's id, and its tree, beam, candidate and depth:
more trees, or a problem's place in the batch, do not change it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import checks
from jaxrl_llm.rl import log_probs as log_probs_lib
from jaxrl_llm.rl import return_heads
from jaxrl_llm.sampling import decode, processors
from jaxrl_llm.types import Array, ModelFns, Params

SELECT = ('best', 'resample')
_fold = jax.vmap(jax.random.fold_in)


@dataclasses.dataclass(frozen=True)
class Config:
  """Budget and shape of a search.

  Attributes:
    num_blocks: N, blocks sampled at the first depth in each tree.
    width: w, blocks of each beam; divides N.
    num_trees: M.
    block_tokens: length of a block.
    select: 'best' continuations stay, or 'resample': all beams of a tree, finished ones included,
      are drawn with replacement, with weights exp(score).
    incremental: whether the weights are those of the score less that at the depth before (0 at
      first).
  """

  num_blocks: int = 8
  width: int = 2
  num_trees: int = 1
  block_tokens: int = 4_096
  select: str = 'best'
  incremental: bool = False

  def validate(self, prefix: str = '') -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(self, prefix, num_blocks=1, width=1, num_trees=1, block_tokens=1)
    checks.divisible(self, prefix, 'num_blocks', self.width, 'width')
    checks.one_of(self, prefix, select=SELECT)
    if self.select == 'resample':
      checks.fixed(self, prefix, "with select 'resample'", width=1)
    else:
      checks.fixed(self, prefix, "with select 'best'", incremental=False)

  @property
  def num_beams(self) -> int:
    """m, beams of a tree."""
    return self.num_blocks // self.width


class Candidates(NamedTuple):
  """Responses so far with a new block each; R rows, those of a problem together.

  Attributes:
    problems: int [R]; index of the problem in the batch.
    tokens: int32 [R, T]; padded.
    lengths: int [R].
    block: int32 [R, block_tokens]; the new tokens, padded.
    new: int [R]; the number of new tokens, 0 for a finished beam.
    stopped: bool [R]; whether the response has ended by itself.
  """

  problems: np.ndarray
  tokens: np.ndarray
  lengths: np.ndarray
  block: np.ndarray
  new: np.ndarray
  stopped: np.ndarray


class Scorer(Protocol):
  """Scores candidates; may have a state for each row, which follows the beams."""

  def begin(self, prompts: Array, prompt_lengths: Array, rows: int, max_tokens: int) -> None:
    """Starts a batch of prompts [P, L], each of `rows` beams."""

  def spread(self, width: int) -> None:
    """Repeats each row `width` times."""

  def score(self, candidates: Candidates) -> np.ndarray:
    """Returns the scores [R], higher is better; those of finished beams are not read."""

  def gather(self, rows: np.ndarray) -> None:
    """Continues with these rows only."""


class SearchResult(NamedTuple):
  """Responses of the M · m beams of each problem.

  Attributes:
    tokens: int32 [P, M · m, T]; padded.
    lengths: int [P, M · m].
    stopped: bool [P, M · m]; False if the limit was reached.
    scores: float [P, M · m]; of the whole responses, the weights of a vote.
    blocks: int [P, depths]; blocks sampled at each depth.
    sampled_tokens: int [P]; tokens sampled for the problem, those of dropped blocks included.
    log_weights: float [P, M]; of a particle filter, Σ over depths of the log of the mean weight:
      with increments of V/η, exp of it is an unbiased estimate of E_ref exp(R/η). 0 otherwise.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  stopped: np.ndarray
  scores: np.ndarray
  blocks: np.ndarray
  sampled_tokens: np.ndarray
  log_weights: np.ndarray


class Search:
  """A search with its compiled functions; call it with a batch of prompts."""

  def __init__(
      self, model: ModelFns, config: Config, *, max_tokens: int, stop_ids: tuple[int, ...],
      pad_id: int, temperature: float = 1.0, top_p: float = 1.0,
  ):
    """Compiles nothing yet.

    Args:
      model: the reference.
      config: the budget.
      max_tokens: T, the maximum response length, stop token included.
      stop_ids: ids that end a response.
      pad_id: written after a response's end.
      temperature: > 0, that of the reference.
      top_p: its nucleus; 1 keeps all.

    Raises:
      ValueError: if an argument is out of range.
    """
    config.validate()
    if max_tokens < 1:
      raise ValueError(f'max_tokens must be at least 1, got {max_tokens}')
    processors.check_truncation(p=top_p)
    self._model, self.config, self._max_tokens, self._pad_id = model, config, max_tokens, pad_id
    self._begin = jax.jit(self._prefill)
    self._decode = jax.jit(functools.partial(
        _decode_block, model, block_tokens=config.block_tokens, stop_ids=stop_ids, pad_id=pad_id,
        temperature=temperature, top_p=top_p))
    self._take = jax.jit(_take_rows)

  def __call__(
      self, params: Params, scorer: Scorer, prompts: np.ndarray, prompt_lengths: np.ndarray,
      example_ids: np.ndarray, key: Array,
  ) -> SearchResult:
    """Searches.

    Args:
      params: parameters of the reference.
      scorer: scores the candidates.
      prompts: int32 [P, L], left-padded.
      prompt_lengths: int32 [P].
      example_ids: int32 [P]; all different.
      key: PRNG key.

    Returns:
      `SearchResult`.

    Raises:
      ValueError: if two problems share an id, and so would get the same samples.
    """
    if len(set(np.asarray(example_ids).tolist())) < len(prompts):
      raise ValueError('example_ids must all be different, one per prompt')
    config, size = self.config, len(prompts)
    beams, width = config.num_trees * config.num_beams, config.width
    prompts = np.pad(prompts, ((0, 0), (int(prompts.shape[1] == 1), 0)))
    cache = self._begin(params, prompts, prompt_lengths)
    scorer.begin(prompts, prompt_lengths, beams, self._max_tokens)

    rows = size * beams
    state = Candidates(
        np.arange(rows) // beams, np.full((rows, self._max_tokens), self._pad_id, np.int32),
        np.zeros(rows, int), np.zeros((rows, 0), np.int32), np.zeros(rows, int),
        np.zeros(rows, bool))
    scores, blocks, sampled = np.zeros(rows), [], np.zeros(size, int)
    log_weights = np.zeros((size, config.num_trees))

    for depth in range(-(-self._max_tokens // config.block_tokens)):
      start = depth * config.block_tokens
      active = ~state.stopped & (state.lengths == start)
      if not active.any():
        break
      wide = np.repeat(np.arange(rows), width)
      last = np.where(
          state.lengths > 0, state.tokens[np.arange(rows), start - 1], prompts[
              state.problems, -1])
      block, cache = self._decode(
          params, self._take(cache, wide), last[wide], prompts.shape[1] - 1 + start,
          prompt_lengths[state.problems][wide] - 1 + start, prompts.shape[1] - prompt_lengths[
              state.problems][wide], active[wide],
          min(config.block_tokens, self._max_tokens - start),
          self._block_keys(key, example_ids, depth))
      block, new, stops = map(np.asarray, block)

      candidates = _extended(state, wide, block, new, stops, start)
      scorer.spread(width)
      scored = np.where(active[wide], scorer.score(candidates), scores[wide])
      blocks.append(np.bincount(state.problems, weights=active * width, minlength=size).astype(int))
      sampled += np.bincount(candidates.problems, weights=new, minlength=size).astype(int)

      if config.select == 'best':
        staying = self._select(active, scored, key, example_ids, depth)
      else:
        weights = scored - scores if config.incremental else scored
        staying, means = self._resample(weights, key, example_ids, depth)
        log_weights += means
      state = Candidates(*(field[staying] for field in candidates))
      scores, cache = scored[staying], self._take(cache, staying)
      scorer.gather(staying)

    shape = (size, beams)
    return SearchResult(
        state.tokens.reshape(*shape, -1), state.lengths.reshape(shape),
        state.stopped.reshape(shape), scores.reshape(shape),
        np.stack(blocks, axis=1) if blocks else np.zeros((size, 0), int), sampled, log_weights)

  def _prefill(self, params, prompts, prompt_lengths):
    """Returns the cache of all beams; the last token of the prompt is not in it."""
    beams = self.config.num_trees * self.config.num_beams
    return decode.prefill(
        self._model, params, prompts[:, :-1], prompt_lengths - 1, beams, self._max_tokens).cache

  def _block_keys(self, key: Array, example_ids: np.ndarray, depth: int) -> Array:
    """One key per row: of (problem, tree, beam, candidate) at this depth."""
    config = self.config
    shape = (len(example_ids), config.num_trees, config.num_beams, config.width)
    indices = [axis.ravel() for axis in np.indices(shape)]
    key = jax.random.fold_in(key, depth)
    keys = jnp.broadcast_to(key, (len(indices[0]),))
    for values in (np.asarray(example_ids)[indices[0]], *indices[1:]):
      keys = _fold(keys, values)
    return keys

  def _select(self, active, scores, key, example_ids, depth) -> np.ndarray:
    """Rows of the candidates that stay, [P * M * m], in the order of the candidates.

    Ties are broken at random, by (key, problem, tree, depth).
    """
    config = self.config
    staying = np.arange(len(active)) * config.width  # A finished beam: any of its copies.
    trees = np.arange(len(active)).reshape(-1, config.num_beams)
    for index, tree in enumerate(trees):
      going = tree[active[tree]]
      pool = (going[:, None] * config.width + np.arange(config.width)).ravel()
      problem, number = divmod(index, config.num_trees)
      noise = _random(key, int(example_ids[problem]), number, depth).random(len(pool))
      best = np.lexsort((noise, -scores[pool]))[: len(going)]
      staying[going] = np.sort(pool[best])
    return staying


  def _resample(self, weights, key, example_ids, depth) -> tuple[np.ndarray, np.ndarray]:
    """Rows [P * M * m] drawn with probabilities ∝ exp(weights), and ln mean exp(weights) [P, M]."""
    config = self.config
    by_tree = weights.reshape(-1, config.num_beams)
    top = by_tree.max(axis=1, keepdims=True)
    relative = np.exp(by_tree - top)

    staying = np.arange(len(weights)).reshape(by_tree.shape)
    for index, probs in enumerate(relative / relative.sum(axis=1, keepdims=True)):
      problem, number = divmod(index, config.num_trees)
      random = _random(key, int(example_ids[problem]), number, depth)
      staying[index] = random.choice(staying[index], size=config.num_beams, p=probs)
    means = top[:, 0] + np.log(relative.mean(axis=1))
    return staying.ravel(), means.reshape(-1, config.num_trees)


def _random(key: Array, *indices: int) -> np.random.Generator:
  """Random numbers of the host, by the key and indices."""
  data = [int(x) for x in np.asarray(jax.random.key_data(key)).ravel()]
  return np.random.default_rng([*data, *indices])


def _extended(state, wide, block, new, stops, start) -> Candidates:
  """The candidates: each beam's tokens with one of its blocks."""
  tokens = state.tokens[wide]
  end = min(start + block.shape[1], tokens.shape[1])
  written = np.arange(end - start) < new[:, None]
  tokens[:, start:end] = np.where(written, block[:, : end - start], tokens[:, start:end])
  return Candidates(
      state.problems[wide], tokens, state.lengths[wide] + new, block, new,
      state.stopped[wide] | stops)


def _take_rows(cache: Any, rows: Array) -> Any:
  """Selects rows of a cache, whose leaves are [..., B, S, heads, head_dim]."""
  return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=leaf.ndim - 4), cache)


def _decode_block(
    model, params, cache, last, index, position, padding, active, limit, keys, *, block_tokens,
    stop_ids, pad_id, temperature, top_p,
):
  """Samples up to `limit` tokens of each active row.

  Args:
    model: the reference.
    params: its parameters.
    cache: R rows; all tokens before `last` are in it.
    last: int32 [R]; the token before the block.
    index: int32 []; slot of `last`.
    position: int32 [R]; position of `last`.
    padding: int32 [R]; slots in front of the prompt.
    active: bool [R].
    limit: int32 [].
    keys: [R].
    block_tokens: length of the block's array.
    stop_ids: see `Search`.
    pad_id: see `Search`.
    temperature: see `Search`.
    top_p: see `Search`.

  Returns:
    ((tokens int32 [R, block_tokens], lengths int32 [R], stopped bool [R]), cache).
  """
  slots = jax.tree.leaves(cache)[0].shape[-3]
  valid = jnp.arange(slots) >= padding[:, None]

  def step(carry):
    t, last, tokens, lengths, done, stopped, cache = carry
    output = model.apply(
        params, last[:, None], positions=(position + t)[:, None], valid=valid, cache=cache,
        cache_index=index + t)
    logits = log_probs_lib.head_logits(output.hidden[:, 0], output.head)
    logits = processors.top_p(processors.temper(logits, temperature=temperature), p=top_p)
    chosen = processors.choose(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, t))
    chosen = jnp.where(done, pad_id, chosen).astype(jnp.int32)
    stops = ~done & jnp.isin(chosen, jnp.asarray(stop_ids, jnp.int32))
    tokens = jax.lax.dynamic_update_slice(tokens, chosen[:, None], (0, t))
    return (t + 1, chosen, tokens, lengths + ~done, done | stops, stopped | stops, output.cache)

  rows = last.shape[0]
  start = (
      jnp.int32(0), last.astype(jnp.int32), jnp.full((rows, block_tokens), pad_id, jnp.int32),
      jnp.zeros(rows, jnp.int32), ~active, jnp.zeros(rows, bool), cache)
  _, _, tokens, lengths, _, stopped, cache = jax.lax.while_loop(
      lambda carry: (carry[0] < limit) & ~jnp.all(carry[4]), step, start)
  return (tokens, lengths, stopped), cache


# --- Scorers.


class FunctionScorer:
  """Scores by a function of the candidates on the host, such as an exact value."""

  def __init__(self, function: Callable[[Candidates], np.ndarray]):
    """Stores the function: candidates -> [R]."""
    self.score = function

  def begin(self, prompts: Array, prompt_lengths: Array, rows: int, max_tokens: int) -> None:
    """Does nothing."""

  def spread(self, width: int) -> None:
    """Does nothing."""

  def gather(self, rows: np.ndarray) -> None:
    """Does nothing."""


class ValueScorer:
  """Scores by the expectation of a value model after the last token of the block.

  Attributes:
    cached_tokens: tokens that it was given, each once: the least that has to be computed.
    computed_tokens: tokens with padding and finished beams, as computed.
  """

  def __init__(self, model: ModelFns, head: return_heads.ReturnHead, params: Params):
    """Compiles nothing yet; see `return_heads` for the head."""
    self._model, self._params = model, params
    self._read = jax.jit(functools.partial(_read_block, model, head))
    self._prefill = jax.jit(
        functools.partial(decode.prefill, model), static_argnums=(3, 4))
    self._take = jax.jit(_take_rows)
    self.cached_tokens = self.computed_tokens = 0

  def begin(self, prompts: Array, prompt_lengths: Array, rows: int, max_tokens: int) -> None:
    """Reads the prompts."""
    self._lengths, self._slots = np.repeat(prompt_lengths, rows), prompts.shape[1]
    self._cache = self._prefill(self._params, prompts, prompt_lengths, rows, max_tokens).cache
    self.cached_tokens += int(np.sum(prompt_lengths))
    self.computed_tokens += prompts.size

  def spread(self, width: int) -> None:
    """See `Scorer.spread`."""
    rows = np.repeat(np.arange(len(self._lengths)), width)
    self._lengths, self._cache = self._lengths[rows], self._take(self._cache, rows)

  def score(self, candidates: Candidates) -> np.ndarray:
    """See `Scorer.score`."""
    start = int((candidates.lengths - candidates.new)[candidates.new > 0].max(initial=0))
    size = min(candidates.block.shape[1], candidates.tokens.shape[1] - start)
    scores, self._cache = self._read(
        self._params, self._cache, candidates.block[:, :size], self._slots + start,
        self._lengths + start, self._slots - self._lengths, np.maximum(candidates.new - 1, 0))
    self.cached_tokens += int(candidates.new.sum())
    self.computed_tokens += candidates.block[:, :size].size
    return np.asarray(scores)

  def gather(self, rows: np.ndarray) -> None:
    """See `Scorer.gather`."""
    self._lengths, self._cache = self._lengths[rows], self._take(self._cache, rows)


def _read_block(model, head, params, cache, block, index, position, padding, last):
  """Scores [R] at the token `last` of each block [R, b], and the cache with the block in it."""
  slots = jax.tree.leaves(cache)[0].shape[-3]
  output = model.apply(
      params, block, positions=position[:, None] + jnp.arange(block.shape[1]),
      valid=jnp.arange(slots) >= padding[:, None], cache=cache, cache_index=index)
  hidden = jnp.take_along_axis(output.hidden, last[:, None, None], axis=1)[:, 0]
  outputs = log_probs_lib.head_logits(hidden.astype(jnp.float32), output.head)
  return head.expectation(outputs), output.cache
