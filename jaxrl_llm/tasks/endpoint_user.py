"""A user simulated by a model at an OpenAI-compatible chat endpoint (standard library only).

Nothing is contacted before the user is called, and then only the given address: redirects are
errors.
"""

import concurrent.futures
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.tasks import users

MARK = 'Question:'
INSTRUCTION = (
    'Below is a conversation between a user and an assistant. You are the user. Say in a sentence '
    'or two what you still need after the last reply and why. Then write, on a line of its own, '
    f'"{MARK}" and what you say next.'
)
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})  # Statuses for which a retry may help.


class _NoRedirects(urllib.request.HTTPRedirectHandler):
  """Turns redirects into errors: they would send the key to another server."""

  def redirect_request(self, *args):
    return None


class EndpointUser:
  """Requests each message of the user by POST {url}/chat/completions.

  The policy's replies are decoded only for the request; the dialogue keeps their ids.
  """

  def __init__(
      self,
      url: str,
      model: str,
      *,
      read: Callable[[Sequence[int]], str],
      marked: users.Marked,
      instruction: str = INSTRUCTION,
      temperature: float = 0.8,
      max_tokens: int = 1024,
      api_key: str = '',
      timeout: float = 60.0,
      retries: int = 3,
      wait: float = 0.5,
      max_bytes: int = 1_000_000,
      workers: int = 8,
  ):
    """Makes the user; sends no request yet.

    Args:
      url: base URL of the API, such as http://localhost:8000/v1.
      model: name of the model at the endpoint.
      read: ids of a turn -> text, such as a tokenizer's `decode`.
      marked: an answer -> ids to append.
      instruction: instruction to the model, before the transcript.
      temperature: sampling temperature (0.8 in the paper's first setting).
      max_tokens: maximum length of an answer.
      api_key: sent as a bearer token; '' for none.
      timeout: seconds for one request, including the answer.
      retries: number of further requests after a failure that may be transient.
      wait: seconds before the first retry, doubled each time.
      max_bytes: maximum size of an answer.
      workers: number of concurrent requests.

    Raises:
      ValueError: if the URL is not an HTTP address, or a number is out of range.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ('http', 'https') or not parts.hostname or parts.port == 0:
      raise ValueError(f'url must be an http or https address, got {url!r}')

    for name, value, least in (
        ('timeout', timeout, 1e-3), ('retries', retries, 0), ('wait', wait, 0),
        ('max_bytes', max_bytes, 1), ('max_tokens', max_tokens, 1), ('workers', workers, 1),
        ('temperature', temperature, 0),
    ):
      if not least <= value < float('inf'):
        raise ValueError(f'{name} must be at least {least:g} and finite, got {value}')

    self._url = url.rstrip('/') + '/chat/completions'
    self._headers = {'Content-Type': 'application/json'}
    if api_key:
      self._headers['Authorization'] = f'Bearer {api_key}'

    self._options = {'model': model, 'temperature': temperature, 'max_tokens': max_tokens}
    self._read, self._marked, self._instruction = read, marked, instruction
    self._timeout, self._retries, self._wait = timeout, retries, wait
    self._max_bytes, self._workers = max_bytes, workers
    self._open = urllib.request.build_opener(_NoRedirects()).open

  def __call__(self, dialogues: Dialogues) -> list[Sequence[int]]:
    """Requests the message of each dialogue, several concurrently.

    Raises:
      ConnectionError: if the endpoint fails to answer; one line with its address.
    """
    with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
      answers = pool.map(lambda row: self._answer(dialogues, row), range(len(dialogues)))
      return [self._marked(answer) for answer in answers]

  def _answer(self, dialogues: Dialogues, row: int) -> str:
    """Returns the model's full answer to one dialogue."""
    speakers = ('User', 'Assistant')
    transcript = '\n\n'.join(
        f'{speakers[index % 2]}: {self._read(ids.tolist()).strip()}'
        for index, ids in enumerate(dialogues.turns(row))
    )
    content = f'{self._instruction}\n\n{transcript}'
    return self._ask({
        **self._options, 'messages': [{'role': 'user', 'content': content}],
        'seed': int(dialogues.seeds[row]) >> 1,
    })

  def _ask(self, body: dict[str, Any]) -> str:
    """Returns the text of an answer; retries if that may help."""
    wait = self._wait
    for retries_left in range(self._retries, -1, -1):
      try:
        return self._text(self._post(json.dumps(body).encode()))
      except urllib.error.HTTPError as error:
        with error:
          problem = f'status {error.code} {error.read(200).decode(errors="replace")}'
        if error.code not in _TRANSIENT:
          retries_left = 0
      except (OSError, http.client.HTTPException) as error:  # Timeouts are OSErrors.
        problem = str(getattr(error, 'reason', error)) or type(error).__name__
      except ValueError as error:
        problem, retries_left = str(error), 0

      if not retries_left:
        break
      time.sleep(wait)
      wait *= 2

    raise ConnectionError(f'{self._url}: {" ".join(problem.split())[:300]}')

  def _post(self, data: bytes) -> bytes:
    """Returns the body of an answer, with bounded size and time."""
    deadline = time.monotonic() + self._timeout
    request = urllib.request.Request(self._url, data, self._headers, method='POST')
    pieces, size = [], 0
    with self._open(request, timeout=self._timeout) as response:
      while piece := response.read1(65_536):
        pieces.append(piece)
        size += len(piece)
        if size > self._max_bytes:
          raise ValueError(f'the answer has more than {self._max_bytes} bytes')
        if time.monotonic() > deadline:
          raise TimeoutError(f'no complete answer within {self._timeout:g} s')
    return b''.join(pieces)

  def _text(self, data: bytes) -> str:
    """Returns choices[0].message.content of an answer; raises ValueError if it is missing."""
    try:
      text = json.loads(data)['choices'][0]['message']['content']
    except (ValueError, LookupError, TypeError, RecursionError):
      text = None
    if not isinstance(text, str):
      raise ValueError(f'no choices[0].message.content in the answer {data[:100]!r}')
    return text
