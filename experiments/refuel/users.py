"""Users of experiments/refuel/, built from its config."""

import math
import os
from collections.abc import Callable, Sequence

import jax

from experiments.refuel import config as refuel_config
from experiments.refuel import dialogues as refuel_dialogues
from jaxrl_llm.data import dialogue_rows
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import checkpoint_sources, reward_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.runs.checkpoint_sources import CheckpointSource
from jaxrl_llm.sampling import decode, dialogue
from jaxrl_llm.tasks import endpoint_user, users
from jaxrl_llm.training import fingerprint, rng
from jaxrl_llm.types import ModelFns, Params, Tokenizer

_FIELD = 'config.user.init_from'
# Instruction to a model after the transcript.
REQUEST = (
    'From now on you are the user of this conversation. Say in a sentence or two what you still '
    'need after the last reply and why. Then write, on a line of its own, "{mark}" and what you '
    'say next as the user.'
)


class Users:
  """Makes the user of an iteration.

  Attributes:
    fingerprint: fingerprint of the parameters of a model loaded from its own directory; '' for
      other users.
  """

  def __init__(self, setup: setup_lib.Setup):
    """Loads the user's model, if it has one; contacts no server.

    Args:
      setup: the run's setup; its config is a `refuel_config.Refuel`, its task a
        `refuel_dialogues.DialogueTask`.

    Raises:
      ValueError: if there is no model in the directory, its tokenizer differs from the policy's, or
        its window is too short.
    """
    config, task = setup.config.user, setup.task
    self.fingerprint = ''
    # The tokens that close a truncated reply precede a message.
    self._most = task.max_message_tokens - len(task.frame.close_ids)
    self._marked = users.Marked(
        config.mark, lambda text: task.frame.write(text, self._most)) if config.mark else None

    if config.kind == 'fixed':
      self._make = lambda reference: task.questions
    elif config.kind == 'endpoint':
      user = _endpoint(config, task, self._marked)
      self._make = lambda reference: user
    else:
      self._make = self._model(setup)

  def __call__(self, reference: Params) -> dialogue.User:
    """Returns the user; if it is the reference, it is valid as long as these parameters are."""
    return self._make(reference)

  def unmarked(self) -> dict[str, float]:
    """{'unmarked': share of messages without the mark since the last call}; {} if undefined."""
    share = self._marked.pop_unmarked() if self._marked else math.nan
    return {} if math.isnan(share) else {'unmarked': share}

  def check(self, other: str) -> None:
    """Raises ValueError unless a checkpoint was trained with this user."""
    if other != self.fingerprint:
      raise ValueError(
          f'the checkpoint was trained with the user {other}, this run has {self.fingerprint}; '
          'give another --workdir'
      )

  def _model(self, setup: setup_lib.Setup) -> Callable[[Params], dialogue.User]:
    """Returns a function that makes the user from the reference's parameters."""
    config, task = setup.config.user, setup.task
    tokenizer, frame = task.tokenizer, task.frame
    request, write = self._prompting(config, tokenizer, frame)

    slots = task.max_transcript_tokens + len(request)
    network, params = setup.policy, None
    if config.init_from:
      source = checkpoint_sources.read(config.init_from, field=_FIELD)
      network, params = _load(source, setup, slots + config.max_tokens)
      self.fingerprint = fingerprint.of_params(params)
    # The reference plays the user.
    elif setup.model.max_length < slots + config.max_tokens:
      raise ValueError(
          f'config.model.max_length must be at least {slots + config.max_tokens} (the user\'s '
          f'input and output), got {setup.model.max_length}: raise it, or lower '
          'config.user.max_tokens'
      )
    sample = sampler(network, tokenizer, config)

    # Nothing else in this program draws from this stream.
    key = rng.stream_key(setup.key, rng.Stream.SAMPLE_CONTROL)

    def put(params, prompts, lengths, seeds, key):
      return sample(params, *setup.put((prompts, lengths, seeds)), key)

    def make(reference: Params) -> dialogue.User:
      return users.ModelUser(
          put, reference if params is None else params, key, slots=slots,
          rows=setup.config.rollouts_at_once, request=request, close_ids=frame.close_ids,
          write=write)

    return make

  def _prompting(
      self, config: refuel_config.UserConfig, tokenizer: Tokenizer,
      frame: dialogue_rows.Frame,
  ) -> tuple[list[int], Callable[[list[int]], Sequence[int]]]:
    """(ids that a model reads after the transcript, function from its output to a message)."""
    if self._marked:
      request = frame.write(config.instruction or REQUEST.format(mark=config.mark))
      return request, lambda ids: self._marked(tokenizer.decode(ids))
    before, after = frame.encode(frame.before), frame.encode(frame.after)
    return before, lambda ids: _cut([*before, *ids, *after], len(after), self._most)


def sampler(network: ModelFns, tokenizer: Tokenizer, config: refuel_config.UserConfig):
  """Jitted sampler of a model that plays the user."""
  return jax.jit(decode.make_sampler(
      network, num_samples=1, max_tokens=config.max_tokens, stop_ids=tokenizer.stop_ids,
      pad_id=tokenizer.pad_id, temperature=config.temperature))


def _cut(ids: Sequence[int], end: int, most: int) -> list[int]:
  """Cuts to `most` ids but keeps the last `end`: user messages are never trained on."""
  ids = list(ids)
  return ids if len(ids) <= most else [*ids[: most - end], *ids[len(ids) - end :]]


def _load(source: CheckpointSource, setup: setup_lib.Setup, longest: int):
  """(network, parameters) of a model with the policy's tokenizer."""
  tokenizer = setup.task.tokenizer
  if reward_models.is_reward_model(source):
    raise ValueError(f'{_FIELD} must hold a policy, got a reward model in {source.directory}')
  try:
    source.check_tokenizer(tokenizer, of='the policy')
  except ValueError as error:
    raise ValueError(f'{error}: let a server play the user, --config.user.kind=endpoint') from None
  model = reward_models.shape(source, setup.config.model, longest)
  if model.vocab_size < tokenizer.vocab_size:
    raise ValueError(
        f'the tokenizer has {tokenizer.vocab_size} ids and the embedding in {source.directory} '
        f'only {model.vocab_size} rows ({_FIELD})'
    )
  network = policy_lib.make(model)
  return network, source.load(setup_lib.abstract_params(network, setup.mesh))


def _endpoint(
    config: refuel_config.UserConfig, task: refuel_dialogues.DialogueTask, marked: users.Marked
) -> dialogue.User:
  """A user played by a model on a server."""
  instruction = config.instruction or endpoint_user.INSTRUCTION.replace(
      endpoint_user.MARK, config.mark)
  return endpoint_user.EndpointUser(
      config.url, config.model, read=task.text, marked=marked, instruction=instruction,
      temperature=config.temperature, max_tokens=config.max_tokens,
      api_key=os.environ.get(config.key_variable, ''), timeout=config.timeout,
      retries=config.retries, workers=config.workers,
  )
