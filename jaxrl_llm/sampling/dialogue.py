"""Dialogues of a policy with a user: turns append ids, and any turn can be restarted.

REFUEL needs two dialogues that share everything up to and including x_h, the user's message
before turn h, and are independent from there on:

  first = roll_out(sample, params, user, empty, key)                           rollout 0
  second = roll_out(sample, params, user, first, key, start=h, rollout=1)      the reset at h

The second one copies the ids of its prefix and draws the rest again, the user's replies included.
A user is any function of dialogues on the host. A random user draws from `dialogues.seeds`, which
differ by example, turn and roll-out; a user with a fixed list of questions asks the same in both.

Each turn is one call of a sampler with K = 1 (`decode.make_sampler`), which reads the transcript
so far, padded on the left. The transcript of turn j always has L + j (R + M) slots: one
compilation per turn, H in all, and half of the attention cost of using the longest width
throughout; `widths='fixed'` gives every turn the longest width and compiles once. Rows whose turn
is not drawn go through the sampler like the others, and their replies are discarded.

The released code of REFUEL's second setting overwrites the last token of a reply that did not
stop with a stop token, and drops that position from the mask. Here such a reply stays as sampled,
all of it in the mask, and is marked as truncated; the ids that a chat template needs to end the
turn (`close_ids`) are prepended to the user's message, which is not in the mask.

References:
  Gao et al., 2024, REFUEL, arXiv 2410.04612; code: ZhaolinGao/REFUEL.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import types
from jaxrl_llm.types import Array, Params, Rollouts, SampleFn

_TURNS, _POLICY, _USER = range(3)  # Uses of a step's key, each folded with its own number.


class Dialogues(Protocol):
  """Dialogues so far, turn by turn, as arrays on the host; see `data.dialogues.Dialogues`."""

  prompts: np.ndarray
  prompt_lengths: np.ndarray
  example_ids: np.ndarray
  replies: np.ndarray
  reply_lengths: np.ndarray
  stop_reason: np.ndarray
  messages: np.ndarray
  seeds: np.ndarray
  num_replies: np.ndarray
  transcript: Callable[[int], tuple[np.ndarray, np.ndarray]]
  continuation: Callable[[], Any]
  cut: Callable[..., 'Dialogues']
  with_replies: Callable[..., 'Dialogues']
  with_messages: Callable[..., 'Dialogues']


SomeDialogues = TypeVar('SomeDialogues', bound=Dialogues)
# n dialogues, all waiting for the user -> n sequences of ids to append.
User = Callable[[SomeDialogues], Sequence[Sequence[int]]]


class Turns(NamedTuple):
  """The optimised turn, and the length of each dialogue.

  Attributes:
    turn: int32 [...]; h, from 0.
    num_turns: int32 [...]; number of replies in the dialogue, above h. The reward is that of the
      dialogue up to the last reply.
  """

  turn: np.ndarray
  num_turns: np.ndarray


def draw_turns(key: Array, example_ids: Array, num_turns: int | Array, *, setting: str) -> Turns:
  """Draws h, by one of the two settings of the paper.

    'one':  L ~ U{0, ..., H − 1},  h ~ U{0, ..., L};  the dialogue ends with turn L
    'two':  h ~ U{0, ..., H − 1};                     it ends with turn H − 1

  In setting one early turns are drawn more often: for H = 5 with the probabilities 0.4567, 0.2567,
  0.1567, 0.09, 0.04. A draw depends on the key and the example, not on the batch.

  Args:
    key: PRNG key of the step, or keys [S] for S seeds.
    example_ids: int32 [P], or [S, P].
    num_turns: H, at least 1: a number, or one per dialogue.
    setting: 'one' or 'two'.

  Returns:
    Turns on the host.

  Raises:
    ValueError: on an unknown setting, or if `num_turns` is below 1.

  References:
    Gao et al., 2024, arXiv 2410.04612; released code `setting_one/generate.py`.
  """
  if setting not in ('one', 'two'):
    raise ValueError(f"setting must be 'one' or 'two', got {setting!r}")
  if np.min(num_turns) < 1:
    raise ValueError(f'num_turns must be at least 1, got {np.min(num_turns)}')

  keys = _row_keys(key, example_ids, _TURNS)
  horizon = jnp.broadcast_to(jnp.asarray(num_turns, jnp.int32), keys.shape)

  def below(limit, stream):
    draw = lambda key, limit: jax.random.randint(jax.random.fold_in(key, stream), (), 0, limit)
    return jax.vmap(draw)(keys.reshape(-1), limit.reshape(-1)).reshape(keys.shape)

  if setting == 'one':
    horizon = 1 + below(horizon, 0)
  return Turns(*(np.asarray(x, np.int32) for x in (below(horizon, 1), horizon)))


def roll_out(
    sample: SampleFn,
    params: Params,
    user: User,
    dialogues: SomeDialogues,
    key: Array,
    *,
    rollout: int = 0,
    start: int | np.ndarray = 0,
    num_turns: int | np.ndarray | None = None,
    close_ids: tuple[int, ...] = (),
    widths: str = 'growing',
) -> SomeDialogues:
  """Rolls out a policy with a user, from turn `start` of each dialogue on.

  Replies and messages of turns before `start` are copied. The noise of a reply depends only on
  (key, rollout, turn, example), and so does that of the user's message.

  Args:
    sample: a jitted sampler of one reply per transcript, with as many slots as `dialogues` has
      for a reply; for S seeds under `jax.vmap`, over parameters and keys too.
    params: parameters of the policy.
    user: n dialogues of one leading axis, all at the same turn -> n messages to append. It is
      called once per turn, with the dialogues that continue.
    dialogues: the dialogues so far, [P] or [S, P]; `data.dialogues.empty` for prompts.
    key: PRNG key of the step, or keys [S].
    rollout: index of the roll-out; each index has its own noise.
    start: the first turn that is drawn: a number, or int [...].
    num_turns: number of replies of each dialogue: a number, or int [...]; at most H, the default.
    close_ids: ids that end a turn in the transcript if the reply did not stop.
    widths: 'growing' or 'fixed' slots of the transcripts; see the module docstring.

  Returns:
    The dialogues, with `num_turns` replies (or `start`, where that is not smaller).

  Raises:
    ValueError: if a number is out of range, or a user's message is too long.
  """
  lead, most = dialogues.prompt_lengths.shape, dialogues.reply_lengths.shape[-1]
  start = np.broadcast_to(start, lead)
  num_turns = np.broadcast_to(most if num_turns is None else num_turns, lead)

  if widths not in ('growing', 'fixed'):
    raise ValueError(f"widths must be 'growing' or 'fixed', got {widths!r}")
  if start.min(initial=0) < 0 or num_turns.max(initial=1) > most:
    raise ValueError(
        f'start and num_turns must be in [0, {most}], got {start.min()} and {num_turns.max()}')
  if (dialogues.num_replies < start).any():
    raise ValueError(
        f'start must be at most the number of replies so far, got {start.max()} for dialogues of '
        f'which one has {dialogues.num_replies[dialogues.num_replies < start].min()}'
    )

  dialogues = dialogues.cut(start)
  for turn in range(most):
    rows = (start <= turn) & (turn < num_turns)
    if not rows.any():
      continue

    tokens, lengths = dialogues.transcript(turn)
    if widths == 'fixed':
      padding = (most - 1) * (dialogues.replies.shape[-1] + dialogues.messages.shape[-1])
      padding += dialogues.prompts.shape[-1] - tokens.shape[-1]
      tokens = np.pad(tokens, [(0, 0)] * len(lead) + [(padding, 0)])

    replies = sample(
        params, tokens, lengths, dialogues.example_ids, _fold(key, _POLICY, rollout, turn))
    dialogues = _append_replies(dialogues, turn, rows, jax.device_get(replies))
    rows &= turn + 1 < num_turns
    if rows.any():
      dialogues = _append_messages(dialogues, turn, rows, user, key, rollout, close_ids)
  return dialogues


def _append_replies(
    dialogues: SomeDialogues, turn: int, rows: np.ndarray, replies: Rollouts
) -> SomeDialogues:
  """Appends the sampled replies to the dialogues in `rows`."""
  expected = (*rows.shape, 1, dialogues.replies.shape[-1])
  if replies.tokens.shape != expected:
    raise ValueError(
        f'the sampler must draw one reply per dialogue, with tokens {expected}, got '
        f'{replies.tokens.shape}'
    )
  return dialogues.with_replies(
      turn, rows, tokens=replies.tokens[..., 0, :], lengths=replies.lengths[..., 0],
      log_probs=replies.log_probs[..., 0, :], stop_reason=replies.stop_reason[..., 0])


def _append_messages(dialogues, turn, rows, user, key, rollout, close_ids):
  """Appends the user's messages after reply `turn` to the dialogues in `rows`."""
  keys = _row_keys(key, dialogues.example_ids, _USER, rollout, turn)
  seeds = jax.vmap(lambda k: jax.random.bits(k, (), 'uint32'))(keys.reshape(-1))
  dialogues = dataclasses.replace(dialogues, seeds=np.asarray(seeds).reshape(rows.shape))
  messages = list(user(dialogues[rows]))
  truncated = dialogues.stop_reason[rows][:, turn] == types.TRUNCATED
  if close_ids and len(messages) == len(truncated):
    messages = [
        [*close_ids, *message] if is_open else message
        for message, is_open in zip(messages, truncated)]
  return dialogues.with_messages(turn, rows, messages)


def as_rollouts(samples: Sequence[Dialogues], turn: np.ndarray) -> tuple[Rollouts, dict]:
  """Converts dialogues of the same prompts to a batch of K samples.

  Args:
    samples: K sets of dialogues, [P] (or [S, P]) each: the two roll-outs.
    turn: int [P]; h.

  Returns:
    Rollouts with tokens [P, K, T], T = H·R + (H − 1)·M: everything after the prompts, with the
    original ids. `mask` is 1 on every reply; `stop_reason` is that of reply h. Also the algorithm's
    extra arrays (`Batch.aux`): 'turns' int32 [P, K, T], the reply that a token belongs to and −1
    elsewhere, and 'turn' int32 [P].
  """
  parts = [dialogues.continuation() for dialogues in samples]
  axis = np.ndim(turn)

  def stack(arrays):
    return np.stack(arrays, axis=axis)

  def at_turn(array):
    return np.take_along_axis(array, np.asarray(turn)[..., None], axis=-1)[..., 0]

  rollouts = Rollouts(
      prompts=samples[0].prompts,
      prompt_lengths=samples[0].prompt_lengths,
      tokens=stack([part.tokens for part in parts]),
      lengths=stack([part.lengths for part in parts]),
      mask=stack([part.mask for part in parts]),
      log_probs=stack([part.log_probs for part in parts]),
      stop_reason=stack([at_turn(dialogues.stop_reason) for dialogues in samples]),
  )
  turns = stack([part.turns for part in parts])
  return rollouts, {'turns': turns, 'turn': np.asarray(turn, np.int32)}


def _fold(key: Array, *indices: int) -> Array:
  """Applies fold_in with each of the indices, to one key or an array of them."""
  for index in indices:
    fold = lambda k, i=index: jax.random.fold_in(k, i)
    for _ in range(key.ndim):
      fold = jax.vmap(fold)
    key = fold(key)
  return key


def _row_keys(key: Array, example_ids: Array, *indices: int) -> Array:
  """One key per dialogue, by its example; a repeated example in a batch gets a new key."""
  chex.assert_rank(example_ids, key.ndim + 1)

  def fold(key, ids):
    earlier = jnp.tril(ids[:, None] == ids[None, :], k=-1).sum(axis=1)
    return jax.vmap(lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n))(ids, earlier)

  for _ in range(key.ndim):
    fold = jax.vmap(fold)
  return fold(_fold(key, *indices), jnp.asarray(example_ids))
