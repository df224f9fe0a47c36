"""Users for experiments/refuel/, as its config describes them."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.refuel import config as refuel_config
from experiments.refuel import dialogues as refuel_dialogues
from jaxrl_llm.data import dialogue_rows
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import checkpoint_sources, reward_models, setup
from jaxrl_llm.sampling import decode, dialogue
from jaxrl_llm.tasks import endpoint_user, users
from jaxrl_llm.training import fingerprint, rng
from jaxrl_llm.types import ModelFns, Params, Tokenizer

_FIELD = 'config.user.init_from'
# What a model is asked behind the transcript.
REQUEST = (
    'From now on you are the user of this conversation. Say in a sentence or two what you still '
    'need after the last reply and why. Then write, on a line of its own, "{mark}" and what you '
    'say next as the user.'
)


class Users:
  """Makes the user of an iteration.

  Attributes:
    fingerprint: of the parameters of a model with a folder of its own; '' for other users.
  """

  def __init__(self, config: Any, parts: setup.Components):
    """Loads what there is to load; contacts nobody.

    Args:
      config: with `user`.
      parts: of the run; its task is a `refuel_dialogues.DialogueTask`.

    Raises:
      ValueError: a model does not lie there, or has other tokens than the policy; or its window
        is too short.
    """
    options, task = config.user, parts.task
    self.fingerprint = ''
    # What closes a cut reply stands in front of a message.
    self._most = task.max_message_tokens - len(task.frame.close_ids)
    self._marked = users.Marked(
        options.mark, lambda text: task.frame.write(text, self._most)) if options.mark else None
    if options.kind == 'fixed':
      self._make = lambda reference: task.questions
    elif options.kind == 'endpoint':
      user = _endpoint(options, task, self._marked)
      self._make = lambda reference: user
    else:
      self._make = self._model(config, parts)

  def __call__(self, reference: Params) -> dialogue.User:
    """The user; one that is the reference lives as long as these parameters do."""
    return self._make(reference)

  def unmarked(self) -> dict[str, float]:
    """{'unmarked': share of messages without the mark since the last call}; {} without any."""
    share = self._marked.pop_unmarked() if self._marked else math.nan
    return {} if math.isnan(share) else {'unmarked': share}

  def check(self, other: str) -> None:
    """Raises ValueError unless a checkpoint's dialogues were with this user."""
    if other != self.fingerprint:
      raise ValueError(
          f'the checkpoint was trained with the user {other}, this run has {self.fingerprint}; '
          'give another --workdir'
      )

  def _model(
      self, config: Any, parts: setup.Components
  ) -> Callable[[Params], dialogue.User]:
    """A model that plays the user."""
    options, task = config.user, parts.task
    tokenizer, frame = task.tokenizer, task.frame
    request, write = self._words(options, tokenizer, frame)
    slots = task.max_transcript_tokens + len(request)
    network, params = parts.policy, None
    if options.init_from:
      origin = checkpoint_sources.read(options.init_from, field=_FIELD)
      network, params = _load(origin, config, parts, slots + options.max_tokens)
      self.fingerprint = fingerprint.of_params(params)
    elif parts.model.max_length < slots + options.max_tokens:
      raise ValueError(
          f'config.model.max_length must be at least {slots + options.max_tokens} (what the user '
          f'reads and says), got {parts.model.max_length}: lower config.user.max_tokens, or raise '
          'it'
      )
    sample = sampler(network, tokenizer, options)
    # A stream that nothing else in this binary draws from.
    key = rng.stream_key(parts.key, rng.Stream.SAMPLE_CONTROL)

    def put(params, prompts, lengths, seeds, key):
      return sample(params, *parts.put((prompts, lengths, seeds)), key)

    def make(reference: Params) -> dialogue.User:
      return users.ModelUser(
          put, reference if params is None else params, key, slots=slots,
          rows=config.rollouts_at_once, request=request, close_ids=frame.close_ids, write=write)

    return make

  def _words(
      self, options: refuel_config.UserSettings, tokenizer: Tokenizer,
      frame: dialogue_rows.Frame,
  ) -> tuple[list[int], Callable[[list[int]], Sequence[int]]]:
    """(what a model reads behind the transcript, what makes a message of what it says)."""
    if self._marked:
      request = frame.write(options.instruction or REQUEST.format(mark=options.mark))
      return request, lambda ids: self._marked(tokenizer.decode(ids))
    before, after = frame.encode(frame.before), frame.encode(frame.after)
    return before, lambda ids: _cut([*before, *ids, *after], len(after), self._most)


def sampler(network: ModelFns, tokenizer: Tokenizer, options: refuel_config.UserSettings):
  """A jitted sampler of what a model says as the user."""
  return jax.jit(decode.make_sampler(
      network, num_samples=1, max_tokens=options.max_tokens, stop_ids=tokenizer.stop_ids,
      pad_id=tokenizer.pad_id, temperature=options.temperature))


def _cut(ids: Sequence[int], end: int, most: int) -> list[int]:
  """At most `most` ids, the last `end` of them kept: nobody learns what a user says."""
  ids = list(ids)
  return ids if len(ids) <= most else [*ids[: most - end], *ids[len(ids) - end :]]


def _load(origin: checkpoint_sources.Origin, config: Any, parts: setup.Components, longest: int):
  """(network, parameters) of a model in the policy's tokens."""
  tokenizer = parts.task.tokenizer
  if reward_models.is_reward_model(origin):
    raise ValueError(f'{_FIELD} must hold a policy, got a reward model in {origin.directory}')
  try:
    origin.check_tokenizer(tokenizer, of='the policy')
  except ValueError as error:
    raise ValueError(f'{error}: let a server play the user, --config.user.kind=endpoint') from None
  model = reward_models.shape(origin, config.model, longest)
  if model.vocab_size < tokenizer.vocab_size:
    raise ValueError(
        f'the tokenizer has {tokenizer.vocab_size} ids and the embedding in {origin.directory} '
        f'only {model.vocab_size} rows ({_FIELD})'
    )
  network = policy_lib.make(model)
  return network, origin.load(setup.abstract_params(network, parts.mesh))


def _endpoint(
    options: Any, task: refuel_dialogues.DialogueTask, marked: users.Marked
) -> dialogue.User:
  """A model behind a server."""
  instruction = options.instruction or endpoint_user.INSTRUCTION.replace(
      endpoint_user.MARK, options.mark)
  return endpoint_user.EndpointUser(
      options.url, options.model, read=task.text, marked=marked, instruction=instruction,
      temperature=options.temperature, max_tokens=options.max_tokens,
      api_key=os.environ.get(options.key_variable, ''), timeout=options.timeout,
      retries=options.retries, workers=options.workers,
  )
