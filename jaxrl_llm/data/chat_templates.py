"""Renders chat templates, which are programs of strangers, within limits.

A template (Jinja, as in tokenizer_config.json) is rendered in a process of its own:
in Jinja's immutable sandbox, without attributes that lead out of it, with limits on
memory, time and the size of the output that the operating system enforces. A sandbox
alone would not do: nested loops that write nothing, `9**9**9`, `'a' * 10**10` or a
list that holds itself many times over all hang or fill the memory without any
forbidden access. The limit of time is one on the wall time of each conversation.

A process takes about a tenth of a second to start; `render_many` needs one for any
number of conversations. This file is also that process's program (its `__main__`).
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]  # {'role': ..., 'content': ...}

MAX_OUTPUT = 1_000_000  # Characters of one rendered conversation.
MAX_MEMORY = 512 * 2**20  # Bytes of address space of the process.
_START_SECONDS = 30.0  # What a busy machine may take to start the process.

# The ChatML form of Qwen2: each message between <|im_start|>role and <|im_end|>, and a
# default system message where the conversation does not begin with one.
QWEN2 = """
{%- if not messages or messages[0].role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    variables: dict[str, Any] | None = None,
    seconds: float = 2.0,
) -> str:
  """Renders one conversation; see `render_many`."""
  return render_many(
      template,
      [messages],
      add_generation_prompt=add_generation_prompt,
      variables=variables,
      seconds=seconds,
  )[0]


def render_many(
    template: str,
    conversations: Sequence[Sequence[Message]],
    *,
    add_generation_prompt: bool = False,
    variables: dict[str, Any] | None = None,
    seconds: float = 2.0,
) -> list[str]:
  """Renders conversations through a Jinja chat template.

  The template sees `messages`, `add_generation_prompt`, the given variables and
  `raise_exception(text)`; blocks are trimmed and `tojson` leaves characters as they
  are, as Hugging Face does it. It sees no clock, so that a text is a pure function
  of the arguments (`strftime_now` is undefined).

  Args:
    template: the source.
    conversations: the messages of each.
    add_generation_prompt: whether the text ends with the opening of a reply.
    variables: what else the template may use, such as bos_token and eos_token.
    seconds: the limit for each conversation.

  Returns:
    A text for each conversation.

  Raises:
    ValueError: the template does not parse, leaves its limits, reaches for something
      forbidden, fails or raises by itself; one clear line.
  """
  if not conversations:
    return []
  request = {
      'template': template,
      'conversations': [list(messages) for messages in conversations],
      'variables': {**(variables or {}), 'add_generation_prompt': add_generation_prompt},
      'seconds': seconds,
      'max_output': MAX_OUTPUT,
      'max_memory': MAX_MEMORY,
  }
  try:
    process = subprocess.run(
        [sys.executable, '-P', __file__],
        input=json.dumps(request).encode(),
        capture_output=True,
        timeout=_START_SECONDS + seconds * len(conversations),
        check=False,
    )
  except subprocess.TimeoutExpired:
    raise ValueError(f'the chat template took longer than {seconds} s') from None
  texts, problem = _read_replies(process.stdout)
  if problem is None and len(texts) < len(conversations):
    problem = _reason(process.returncode, seconds, process.stderr)
  if problem is not None:
    raise ValueError(f'chat template, conversation {len(texts)}: {problem}')
  return texts


def _read_replies(output: bytes) -> tuple[list[str], str | None]:
  """The texts, and the problem that ended them; a line cut by a kill is left out."""
  texts = []
  for line in output.split(b'\n')[:-1]:
    reply = json.loads(line)
    if 'problem' in reply:
      return texts, reply['problem']
    texts.append(reply['text'])
  return texts, None


def _reason(returncode: int, seconds: float, stderr: bytes) -> str:
  """Why a process ended without saying so itself."""
  import signal

  if returncode in (-signal.SIGALRM, -signal.SIGXCPU):
    return f'took longer than {seconds} s'
  last = stderr.decode(errors='replace').strip().rsplit('\n', 1)[-1]
  return f'its process ended with status {returncode} ({last[:200]})'


def _environment() -> Any:
  """Jinja's immutable sandbox, set up as Hugging Face does it."""
  import jinja2.exceptions
  import jinja2.sandbox

  def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
              separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)

  def raise_exception(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(message)

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
  )
  environment.filters['tojson'] = to_json
  environment.globals['raise_exception'] = raise_exception
  return environment


def _serve(request: dict[str, Any]) -> None:
  """Renders a request's conversations under limits; one line of JSON each."""
  import resource
  import signal

  environment = _environment()
  resource.setrlimit(resource.RLIMIT_AS, (request['max_memory'],) * 2)
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  # Without a handler the signal ends the process, in the middle of whatever it computes.
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  for index, messages in enumerate([None, *request['conversations']]):
    signal.setitimer(signal.ITIMER_REAL, request['seconds'])
    try:
      if index == 0:
        template = environment.from_string(request['template'])
        continue
      pieces, size = [], 0
      for piece in template.generate(messages=messages, **request['variables']):
        size += len(piece)
        if size > request['max_output']:
          raise ValueError(f'writes more than {request["max_output"]} characters')
        pieces.append(piece)
      reply = {'text': ''.join(pieces)}
    except MemoryError:
      reply = {'problem': f'needs more than {request["max_memory"] >> 20} MiB of memory'}
    except Exception as error:  # Whatever the template provoked becomes one line.
      message = ' '.join(str(error).split())
      reply = {'problem': f'{type(error).__name__}: {message[:300]}'}
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.write(json.dumps(reply) + '\n')
    sys.stdout.flush()
    if 'problem' in reply:
      return


if __name__ == '__main__':
  _serve(json.load(sys.stdin))
