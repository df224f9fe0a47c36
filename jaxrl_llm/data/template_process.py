"""The process that renders chat templates; `chat_templates` starts it as a program.

It imports nothing of the project, so that it starts quickly. The first line of its input
is a JSON object with the config, each further line {'messages': ..., 'context': indices of replies
that are not learned}. It answers each with one line: {'text': ...}, with 'replies' and 'lost' (see
`_lost`) on request, or {'problem': ...}, after which it ends.
"""

import datetime
import json
import os
import sys
from collections.abc import Callable, Collection
from typing import Any

# Span of a reply in the text of its conversation: (begin, end, is complete).
Reply = tuple[int, int, bool]

_REASONING = ('reasoning_content', 'thinking', 'reasoning')
_PROBE = 'REASONINGPROBE'  # Replaces the reasoning to find where the template writes it.


def _environment(today: str) -> Any:
  """Returns Jinja's immutable sandbox, set up as in Hugging Face."""
  import jinja2.exceptions
  import jinja2.ext
  import jinja2.nodes
  import jinja2.sandbox

  class Generation(jinja2.ext.Extension):
    """Makes {% generation %}, which marks the assistant's text, write its contents."""

    tags = {'generation'}

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return jinja2.nodes.Scope(body, lineno=line)

  def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
              separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)

  def raise_exception(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[Generation, 'jinja2.ext.loopcontrols']
  )
  environment.filters['tojson'] = to_json
  environment.globals['raise_exception'] = raise_exception
  if today:
    environment.globals['strftime_now'] = datetime.datetime.fromisoformat(today).strftime

  return environment


def _shared(first: str, second: str) -> int:
  """Returns the length of the common prefix of two texts."""
  if second.startswith(first):
    return len(first)
  return len(os.path.commonprefix([first, second]))


def _replies(
    messages: list[dict[str, Any]], text: str, render: Callable[..., str],
    context: Collection[int] = (),
) -> list[Reply]:
  """Finds the assistant's messages in the conversation's text.

  A reply begins after the prompt that the template renders for the reply, and
  ends where the rendered conversation up to the reply ends. If the beginning of a reply is
  rendered differently when the conversation continues, the reply is omitted. If its end
  differs, the reply is not complete, and `end` is where the difference begins. Messages with an
  index in `context` are also omitted.
  """
  replies = (_reply(messages, index, text, render) for index in _learned(messages, context))
  return [reply for reply in replies if reply]


def _learned(messages: list[dict[str, Any]], context: Collection[int]) -> list[int]:
  """Returns the indices of assistant messages that answer a message and are not context."""
  return [
      index for index, message in enumerate(messages)
      if index > 0 and message.get('role') == 'assistant' and index not in context
  ]


def _reply(
    messages: list[dict[str, Any]], index: int, text: str, render: Callable[..., str]
) -> Reply | None:
  """Returns the span of message `index` in the text; None if it is rendered differently there."""
  before = render(messages[:index], True)
  if not text.startswith(before):
    return None
  after = text if index + 1 == len(messages) else render(messages[: index + 1], False)
  end = _shared(after, text)
  return (len(before), end, end == len(after)) if end > len(before) else None


def _lost(
    messages: list[dict[str, Any]], text: str, render: Callable[..., str],
    context: Collection[int],
) -> list[tuple[int, bool]]:
  """Finds the messages whose reasoning is not in the text of the learned reply.

  The position of the reasoning is where the template writes a probe that replaces it.

  Returns:
    (index, True if the template writes the reasoning when the conversation ends there) of each.
  """
  lost = []
  for index in _learned(messages, context):
    thoughts = messages[index].get('reasoning_content')
    if not isinstance(thoughts, str) or not thoughts.strip():
      continue
    probed = messages[index] | dict.fromkeys(_REASONING, _PROBE)

    reply = _reply(messages, index, text, render)
    if reply:
      begin, end, _ = reply
      rendered = render([*messages[:index], probed, *messages[index + 1 :]], False)
      start = rendered.find(_PROBE, begin)
      if start >= 0 and text[start:end].lstrip().startswith(thoughts.strip()):
        continue
    lost.append((index, _PROBE in render([*messages[:index], probed], False)))
  return lost


def _serve() -> None:
  """Renders conversations under limits; see the module docstring."""
  import resource
  import signal

  request = json.loads(sys.stdin.buffer.readline())
  environment = _environment(request['today'])
  resource.setrlimit(resource.RLIMIT_AS, (request['max_memory'],) * 2)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  # Without a handler the signal ends the process immediately, even in the middle of a computation.
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  template = None

  def render(messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    pieces, size = [], 0
    signal.setitimer(signal.ITIMER_REAL, request['seconds'])

    for piece in template.generate(**{
        'tools': None, 'documents': None, **request['variables'], 'messages': messages,
        'add_generation_prompt': add_generation_prompt,
    }):
      size += len(piece)
      if size > request['max_output']:
        raise ValueError(f'writes more than {request["max_output"]} characters')
      pieces.append(piece)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return ''.join(pieces)

  for line in sys.stdin.buffer:
    try:
      if template is None:
        signal.setitimer(signal.ITIMER_REAL, request['seconds'])
        template = environment.from_string(request['template'])

      conversation = json.loads(line)
      messages, context = conversation['messages'], conversation['context']
      reply = {'text': render(messages, request['add_generation_prompt'])}
      if request['find_replies']:
        reply['replies'] = _replies(messages, reply['text'], render, context)
        reply['lost'] = _lost(messages, reply['text'], render, context)
    except MemoryError:
      reply = {'problem': f'needs more than {request["max_memory"] >> 20} MiB of memory'}
    except Exception as error:  # Report any error that the template causes in one line.
      message = ' '.join(str(error).split())
      reply = {'problem': f'{type(error).__name__}: {message[:300]}'}

    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write(json.dumps(reply) + '\n')
    sys.stdout.flush()
    if 'problem' in reply:
      return


if __name__ == '__main__':
  _serve()
