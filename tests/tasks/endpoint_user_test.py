"""A user at a chat endpoint, simulated by a server in this process."""

import contextlib
import dataclasses
import http.server
import json
import threading
import time

import numpy as np
import pytest

from jaxrl_llm.data import dialogues
from jaxrl_llm.tasks import endpoint_user, users
from jaxrl_llm.types import STOPPED


@contextlib.contextmanager
def _serve(respond):
  """A server: respond(its number from 0, body) -> (status, bytes); yields (url, requests)."""
  requests, lock = [], threading.Lock()

  class Handler(http.server.BaseHTTPRequestHandler):

    def do_POST(self):
      body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
      with lock:
        number = len(requests)
        requests.append((self.path, dict(self.headers), body))
      status, data, *headers = respond(number, body)
      with contextlib.suppress(OSError):  # Clients may have gone.
        self.send_response(status)
        for name, value in headers:
          self.send_header(name, value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_port}/v1', requests
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
  monkeypatch.setenv('no_proxy', '127.0.0.1')


def _completion(text):
  return json.dumps({'choices': [{'message': {'role': 'assistant', 'content': text}}]}).encode()


def _talk(rows=1):
  """Dialogues in which the user sent 1 2 and the assistant replied with its row and 9."""
  talk = dialogues.empty(
      np.array([[1, 2]] * rows), np.full(rows, 2), np.arange(rows), num_turns=2, reply_slots=2,
      message_slots=3)
  talk = talk.with_replies(
      0, np.ones(rows, bool), tokens=np.stack([np.arange(rows), np.full(rows, 9)], axis=1),
      lengths=np.full(rows, 2), log_probs=np.zeros((rows, 2)), stop_reason=np.full(rows, STOPPED))
  return dataclasses.replace(talk, seeds=np.arange(rows).astype(np.uint32) * 2**29)


def _user(url, **options):
  settings = dict(
      read=lambda ids: '-'.join(map(str, ids)), wait=0.001, timeout=5.0,
      marked=users.Marked(endpoint_user.MARK, lambda text: [len(text)])) | options
  return endpoint_user.EndpointUser(url, 'a-model', **settings)


def test_it_asks_for_each_dialogue_and_keeps_their_order():
  def respond(number, body):
    asked = int(body['messages'][0]['content'].rsplit(': ', 1)[1].split('-')[0])
    time.sleep(0.02 * (4 - asked))  # The first is the last to be answered.
    return 200, _completion('I wonder.\nQuestion: ' + 'x' * asked)

  with _serve(respond) as (url, requests):
    assert _user(url + '/', api_key='secret', temperature=0.3, max_tokens=7)(_talk(5)) == [
        [0], [1], [2], [3], [4]]
  assert len(requests) == 5
  path, headers, body = min(requests, key=lambda request: request[2]['seed'])
  assert path == '/v1/chat/completions' and headers['Authorization'] == 'Bearer secret'
  content = body.pop('messages')[0]['content']
  assert content.endswith('\n\nUser: 1-2\n\nAssistant: 0-9')
  assert content.startswith(endpoint_user.INSTRUCTION)
  assert body == {'model': 'a-model', 'temperature': 0.3, 'max_tokens': 7, 'seed': 0}
  assert len({request[2]['seed'] for request in requests}) == 5


def test_without_a_mark_the_full_text_is_used():
  with _serve(lambda number, body: (200, _completion(' No mark. '))) as (url, requests):
    assert _user(url)(_talk()) == [[len('No mark.')]]
    assert 'Authorization' not in requests[0][1]


@pytest.mark.parametrize('status', [429, 500, 503])
def test_transient_failures_are_retried(status):
  answers = [(status, b'busy'), (status, b'busy'), (200, _completion('fine'))]
  with _serve(lambda number, body: answers[number]) as (url, requests):
    assert _user(url, retries=2)(_talk()) == [[4]]
    assert len(requests) == 3


@pytest.mark.parametrize('answer, line, tries', [
    ((503, b'over\nloaded'), 'status 503 over loaded', 3),
    ((404, b'no such model'), 'status 404 no such model', 1),
    ((302, b'', ('Location', 'http://127.0.0.1:9/')), 'status 302', 1),
    ((200, b'<html>'), "no choices[0].message.content in the answer b'<html>'", 1),
    ((200, b'{"choices": []}'), 'no choices[0].message.content in the answer', 1),
    ((200, b'[' * 90_000), 'no choices[0].message.content in the answer', 1),
    ((200, b' ' * 200_000), 'the answer has more than 100000 bytes', 1),
])
def test_a_failure_is_one_line_with_the_address(answer, line, tries):
  with _serve(lambda number, body: answer) as (url, requests):
    with pytest.raises(ConnectionError) as error:
      _user(url, retries=2, max_bytes=100_000)(_talk())
    assert len(requests) == tries
  assert str(error.value).startswith(f'{url}/chat/completions: {line}')
  assert '\n' not in str(error.value) and len(str(error.value)) < 400


def test_a_server_that_does_not_answer_in_time():
  def respond(number, body):
    time.sleep(1.0)
    return 200, _completion('late')

  with _serve(respond) as (url, requests):
    start = time.monotonic()
    with pytest.raises(ConnectionError, match='timed out'):
      _user(url, retries=1, timeout=0.1)(_talk())
    assert time.monotonic() - start < 0.9 and len(requests) == 2


def test_nothing_is_contacted_before_the_call():
  with _serve(lambda number, body: (200, _completion('x'))) as (url, requests):
    user = _user(url, retries=0)
    assert not requests
  with pytest.raises(ConnectionError, match='refused'):
    user(_talk())


@pytest.mark.parametrize('url, options, line', [
    ('file:///etc/passwd', {}, 'url must be an http or https address'),
    ('localhost:8000', {}, 'url must be an http or https address'),
    ('http://', {}, 'url must be an http or https address'),
    ('http://x', {'timeout': 0.0}, 'timeout must be at least 0.001 and finite, got 0.0'),
    ('http://x', {'retries': -1}, 'retries must be at least 0 and finite, got -1'),
    ('http://x', {'workers': 0}, 'workers must be at least 1 and finite, got 0'),
    ('http://x', {'max_bytes': 0}, 'max_bytes must be at least 1 and finite, got 0'),
    ('http://x', {'temperature': -1.0}, 'temperature must be at least 0 and finite, got -1.0'),
])
def test_arguments_out_of_range_are_named(url, options, line):
  with pytest.raises(ValueError) as error:
    _user(url, **options)
  assert line in str(error.value)
