"""Renders conversations with chat templates, to the text and ids that a model was trained on.

A template (Jinja, as in a model's directory) is an untrusted program. It is rendered in a
separate process: in Jinja's immutable sandbox, without attributes that lead out of it, and with
limits on memory, time and output size that the operating system enforces. A sandbox alone is
not enough: nested loops that write nothing, `9**9**9`, `'a' * 10**10` or a list that contains
itself many times hang or exhaust memory without any forbidden access. The time limit applies
to the wall time of each rendering.

A process takes about 0.1 s to start; `render_many` and `encode_conversations` use one
for any number of conversations.

The assistant's reasoning (`reasoning_content`, `thinking` or `reasoning` of a message) is passed to
the template under each of these names, and is learned with the reply. It is an error if the
template does not write it there: because it reads none of the names (ChatML), or because it removes
the reasoning of past turns (Qwen3). An assistant message with 'train' False is context: it is
not learned, and the template decides how much of its reasoning a model reads.

Rendered text is complete: the template writes the start token itself if the model
needs one. Encode the text unchanged, without the tokenizer's `start_ids`.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxrl_llm.data import model_files, template_process
from jaxrl_llm.types import Tokenizer

Message = Mapping[str, Any]  # {'role': ..., 'content': ...}

MAX_OUTPUT = 1_000_000  # Characters of one rendered conversation.
MAX_MEMORY = 512 * 2**20  # Bytes of address space of the process.
_START_SECONDS = 30.0  # Time that a busy machine may need to start the process.
# Names of the assistant's reasoning in data sets. A template may read any of them.
_REASONING = ('reasoning_content', 'thinking', 'reasoning')


class ConversationError(ValueError):
  """A template cannot render a conversation, or nothing could be learned from the result.

  Attributes:
    index: index of the conversation among the arguments.
  """

  def __init__(self, index: int, problem: str):
    super().__init__(f'chat template, conversation {index}: {problem}')
    self.index = index


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A chat template and its variables.

  The template sees `messages`, `add_generation_prompt`, `tools` and `documents` (none),
  the variables and `raise_exception(text)`. As in Hugging Face, blocks are trimmed, `tojson`
  does not escape characters, and `{% generation %}` writes its contents.
  There is no clock, so that a text is a pure function of the arguments: `strftime_now` is
  undefined unless `today` gives the date. Templates that need a date commonly have a default.

  Attributes:
    source: the template.
    variables: other variables, such as bos_token and eos_token.
    today: date and time for `strftime_now`, such as 2024-07-26; '' for none.
  """

  source: str
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  today: str = ''

  @property
  def fingerprint(self) -> str:
    """Short hash of everything that determines the text."""
    return model_files.fingerprint('chat', self.source, dict(self.variables), self.today)

  def render(
      self,
      messages: Sequence[Message],
      *,
      add_generation_prompt: bool = False,
      seconds: float = 2.0,
  ) -> str:
    """Renders one conversation; see `render_many`."""
    return self.render_many(
        [messages], add_generation_prompt=add_generation_prompt, seconds=seconds
    )[0]

  def render_many(
      self,
      conversations: Sequence[Sequence[Message]],
      *,
      add_generation_prompt: bool = False,
      seconds: float = 2.0,
  ) -> list[str]:
    """Renders conversations.

    Args:
      conversations: messages of each conversation. A null value counts as missing.
      add_generation_prompt: end the text with the opening of a reply.
      seconds: time limit for each rendering.

    Returns:
      One text per conversation.

    Raises:
      ValueError: the template does not parse, exceeds its limits, accesses something
        forbidden, fails, or raises an error itself; one line.
    """
    request = {'add_generation_prompt': add_generation_prompt, 'find_replies': False}
    return [reply['text'] for reply in _run(self, conversations, request, seconds)]


def load(directory: str | pathlib.Path, *, file: str | pathlib.Path | None = None) -> ChatTemplate:
  """Loads the chat template of a model's directory.

  Args:
    directory: directory with chat_template.jinja, or with tokenizer_config.json that has a
      `chat_template`: a text, or a list of {'name', 'template'}, of which 'default' is used.
      The variables are the tokens named there (or in special_tokens_map.json).
    file: a template to use instead, with the same variables.

  Returns:
    The template.

  Raises:
    ValueError: there is no template, or a file is damaged; one line that names it.
  """
  files = model_files.read(directory)
  path = files.directory / 'chat_template.jinja' if file is None else pathlib.Path(file)
  if file is not None or path.exists():
    try:
      return ChatTemplate(model_files.read_bytes(path).decode(), files.names)
    except UnicodeDecodeError:
      raise ValueError(f'{path} is not UTF-8: the file is damaged') from None

  source = files.config.get('chat_template')
  where = files.directory / 'tokenizer_config.json'
  if isinstance(source, list):
    named = {entry.get('name'): entry for entry in source if isinstance(entry, dict)}
    if 'default' not in named:
      names = ', '.join(map(repr, named))
      raise ValueError(f"{where}: chat_template must have one named 'default', got {names}")
    source = named['default'].get('template')

  if source is None:
    raise ValueError(
        f'no chat template in {files.directory}: it must contain chat_template.jinja, or '
        "tokenizer_config.json with a 'chat_template'"
    )
  if not isinstance(source, str):
    raise ValueError(f'{where}: chat_template must be a text, got {type(source).__name__}')

  return ChatTemplate(source, files.names)


def encode_conversation(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
  """Encodes one conversation; see `encode_conversations`."""
  return encode_conversations(template, tokenizer, [messages])[0]


def encode_conversations(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    *,
    seconds: float = 2.0,
) -> list[tuple[list[int], list[int]]]:
  """Encodes conversations and marks the tokens to learn.

  The ids are those of the rendered text of the whole conversation. The marked tokens are
  those of the assistant's replies, up to and including the token that ends a reply: the first
  stop id. If a reply has none (a base model's tokenizer does not know that <|im_end|> ends a
  turn), everything but its trailing white space is marked.

  A reply is marked only if the text before it equals the prompt for that reply, and only if
  the reply is rendered the same way when it is the last one: nothing is learned from a context
  that never occurs. Templates that remove the reasoning of past turns (Qwen3) rewrite early
  replies, so that these are context and the last turn is learned; to learn each turn, pass one
  conversation per turn that ends with it. Templates that open every reply with <think> but
  render replies without their reasoning (DeepSeek-R1) leave nothing to learn, which is an
  error; use another template (`load` takes a file). A reply at the very start is also context.

  A token that spans characters of the prompt and of the reply is not marked, because the model
  never gets to choose it.

  The module docstring describes how reasoning and context messages are handled.

  Args:
    template: renders the text.
    tokenizer: encodes the text; its `stop_ids` end replies.
    conversations: messages of each conversation; the assistant's have the role 'assistant'.
    seconds: time limit for each rendering.

  Returns:
    (ids, marks) of each conversation, of equal length; marks are 1 in the assistant's replies
    and 0 elsewhere. They are all 0 if the assistant never replies.

  Raises:
    ValueError: see `ChatTemplate.render_many`; or no reply of a conversation is rendered as the
      model would write it, for example because the template opens a reply with <think> but
      omits it in rendered replies; or reasoning would be lost.
  """
  request = {'add_generation_prompt': False, 'find_replies': True}
  encoded = []
  for index, rendered in enumerate(_run(template, conversations, request, seconds)):
    ids, offsets = tokenizer.encode_with_offsets(rendered['text'])
    mask = [0] * len(ids)
    for reply in rendered['replies']:
      for position in _learned(rendered['text'], reply, ids, offsets, tokenizer.stop_ids):
        mask[position] = 1
    _check_learned(index, conversations[index], rendered['lost'], mask)
    encoded.append((ids, mask))
  return encoded


def _check_learned(
    index: int,
    messages: Sequence[Message],
    lost: Sequence[tuple[int, bool]],
    mask: Sequence[int],
) -> None:
  """Raises ConversationError if reasoning, or everything to be learned, would be lost."""
  for position, is_read in lost:
    problem = _why_lost(is_read, is_last=position + 1 == len(messages))
    raise ConversationError(
        index,
        f'the reasoning of message {position} (assistant) would be lost: the template {problem}',
    )

  learned = [message for message in messages[1:] if message.get('train') is not False]
  if not any(mask) and any(message['role'] == 'assistant' for message in learned):
    raise ConversationError(
        index,
        'nothing would be learned, because the template renders none of the replies as the model '
        'would be prompted for it: it opens replies differently than it renders them, or rewrites '
        'all of them later',
    )


def _why_lost(is_read: bool, *, is_last: bool) -> str:
  """Describes what a template does with reasoning that would be lost, and the remedy."""
  if not is_read:
    return (
        'does not write reasoning_content, reasoning or thinking: choose another template, or '
        'make the reasoning part of the content'
    )
  if is_last:
    return 'opens a reply differently than it renders this one: choose another template'
  return (
      'removes it if the conversation continues: end the conversation there (one row for each '
      "reply), or mark the message as context ('train': false)"
  )


def _learned(
    text: str,
    reply: template_process.Reply,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    stop_ids: Sequence[int],
) -> list[int]:
  """Returns the positions of a reply's tokens; none if its end is rendered differently later."""
  begin, end, is_complete = reply
  positions = [
      index for index, (first, last) in enumerate(offsets) if begin <= first and last <= end
  ]
  for count, index in enumerate(positions, 1):
    if ids[index] in stop_ids:
      return positions[:count]
  end = len(text[:end].rstrip())
  return [index for index in positions if offsets[index][1] <= end] if is_complete else []


def _run(
    template: ChatTemplate,
    conversations: Sequence[Sequence[Message]],
    request: dict[str, Any],
    seconds: float,
) -> list[dict[str, Any]]:
  """Runs the process and returns its answers, one per conversation."""
  if not conversations:
    return []

  request = {
      'template': template.source,
      'variables': dict(template.variables),
      'today': template.today,
      'seconds': seconds,
      'max_output': MAX_OUTPUT,
      'max_memory': MAX_MEMORY,
      **request,
  }
  lines = [request, *(_plain(messages, i) for i, messages in enumerate(conversations))]

  renderings = len(conversations)
  if request['find_replies']:
    renderings += 5 * sum(map(len, conversations))

  try:
    process = subprocess.run(
        [sys.executable, '-P', template_process.__file__],
        input=''.join(json.dumps(line) + '\n' for line in lines).encode(),
        capture_output=True,
        timeout=_START_SECONDS + seconds * renderings,
        check=False,
    )
  except subprocess.TimeoutExpired:
    raise ValueError(f'the chat template took longer than {seconds} s') from None

  replies = [json.loads(line) for line in process.stdout.split(b'\n')[:-1]]
  problem = replies.pop()['problem'] if replies and 'problem' in replies[-1] else None
  if problem is None and len(replies) < len(conversations):
    problem = _reason(process.returncode, seconds, process.stderr)

  if problem is not None:
    if "'strftime_now' is undefined" in problem:
      problem += ": it needs a date, as in ChatTemplate(..., today='2024-07-26')"
    raise ConversationError(len(replies), problem)

  return replies


def _plain(messages: Sequence[Message], index: int) -> dict[str, Any]:
  """Converts a conversation to JSON for the process; raises ValueError if it is malformed."""
  plain, context = [], []
  for position, message in enumerate(messages):
    if not isinstance(message, Mapping) or not isinstance(message.get('role'), str):
      raise ValueError(f"conversation {index}: a message must have a 'role', got {message!r:.200}")

    message = {key: value for key, value in message.items() if value is not None}
    if message.pop('train', True) is False:
      context.append(position)
    thoughts = [message[key] for key in _REASONING if key in message]
    if thoughts:
      message = {**dict.fromkeys(_REASONING, thoughts[0]), **message, _REASONING[0]: thoughts[0]}
    plain.append(message)

  try:
    json.dumps(plain)
  except (TypeError, ValueError) as error:
    raise ValueError(f'conversation {index} must consist of JSON values: {error}') from None

  return {'messages': plain, 'context': context}


def _reason(returncode: int, seconds: float, stderr: bytes) -> str:
  """Explains why a process ended without reporting a problem."""
  import signal

  if returncode in (-signal.SIGALRM, -signal.SIGXCPU):
    return f'took longer than {seconds} s'
  last = stderr.decode(errors='replace').strip().rsplit('\n', 1)[-1]
  return f'its process ended with status {returncode} ({last[:200]})'


# Qwen2's ChatML: each message between <|im_start|>role and <|im_end|>, and a
# default system message if the conversation does not begin with one.
QWEN2 = ChatTemplate("""
{%- if not messages or messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
""")
