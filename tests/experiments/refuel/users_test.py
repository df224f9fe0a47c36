"""Users made from configs: a model, a server, and errors."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.refuel import config as refuel_config
from experiments.refuel import users as refuel_users
from jaxrl_llm.data import dialogues as dialogues_lib
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.tasks import endpoint_user
from jaxrl_llm.types import STOPPED, TRUNCATED, Rollouts
from tests.experiments import tiny, tiny_rebel, tiny_refuel


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A policy of all bytes, and a model in its tokens that plays the user."""
  folder = tmp_path_factory.mktemp('users')
  tiny_refuel.write(folder, characters=None)
  tiny.write_checkpoint(
      folder / 'user', template=tiny.TEMPLATE, **{**tiny_refuel.SHAPE, 'num_layers': 2})
  return folder


@pytest.fixture(scope='module')
def setup(folder):
  config = tiny_refuel.simulated(folder, refuel_config.UserConfig(kind='model', max_tokens=6))
  config.validate()
  with tiny_rebel.build(config) as setup:
    yield setup


def _users(setup, **options):
  config = dataclasses.replace(setup.config, user=refuel_config.UserConfig(**options))
  config.validate()
  return refuel_users.Users(tiny_rebel.with_config(setup, config))


def _talk(setup, rows=8, cut=()):
  """Dialogues in which the policy has replied once; those of `cut` lack the stop token."""
  task = setup.task
  examples = task.train[:rows]
  prompts = np.zeros((rows, task.max_prompt_tokens), np.int32)
  lengths = np.array([len(example['prompt_ids']) for example in examples])

  for row, example in enumerate(examples):
    prompts[row, -lengths[row]:] = example['prompt_ids']
  talk = dialogues_lib.empty(
      prompts, lengths, [e['id'] for e in examples], num_turns=task.num_turns,
      reply_slots=task.max_reply_tokens, message_slots=task.max_message_tokens)
  ids = [*task.tokenizer.encode('Yes'), *task.frame.close_ids]
  tokens = np.zeros((rows, task.max_reply_tokens), np.int32)
  tokens[:, : len(ids)] = ids
  stopped = ~np.isin(np.arange(rows), cut)
  talk = talk.with_replies(
      0, np.ones(rows, bool), tokens=tokens, lengths=len(ids) - 1 + stopped,
      log_probs=np.zeros(tokens.shape), stop_reason=np.where(stopped, STOPPED, TRUNCATED))

  return dataclasses.replace(talk, seeds=np.arange(rows, dtype=np.uint32) * 7)


def test_a_model_continues_after_the_header_of_the_users_turn(setup, folder, tmp_path):
  users = _users(setup, kind='model', init_from=str(folder / 'user'), max_tokens=6)
  talk, frame = _talk(setup), setup.task.frame
  messages = users(None)(talk)
  again = users('another reference')(talk)
  assert messages == again and len({tuple(ids) for ids in messages}) > 1

  before, after = frame.encode(frame.before), frame.encode(frame.after)
  for ids in messages:
    assert ids[: len(before)] == before and ids[len(ids) - len(after):] == after
    assert len(ids) <= len(before) + 6 + len(after)

  # One with other parameters is another user.
  checkpoint = huggingface.read_config(folder / 'user')
  changed = jax.tree.map(lambda leaf: leaf + 1, tiny.params(checkpoint.config))
  huggingface.save(tmp_path / 'other', checkpoint.config, changed, model_type='qwen2',
                   tokenizer_from=folder / 'user')
  other = _users(setup, kind='model', init_from=str(tmp_path / 'other'), max_tokens=6)
  users.check(users.fingerprint)
  with pytest.raises(ValueError, match='was trained with the user .*another --workdir'):
    other.check(users.fingerprint)


@pytest.fixture(scope='module')
def real(setup, folder, data_dir):
  """The same with a real tokenizer, and room for the reasons of a user."""
  task = tiny_refuel.task(
      first_only=True, tokenizer_dir=str(data_dir / 'tokenizers' / 'qwen2'), template='chatml',
      max_message_tokens=24)
  return dataclasses.replace(
      setup, task=task.make(0, folder, task_config.PolicyTokenizer(pretrained=True)),
      model=dataclasses.replace(setup.model, max_length=4_096))


def _saying(patch, setup, texts):
  """Replaces the model by fixed outputs; returns the list of its inputs."""
  tokenizer, read = setup.task.tokenizer, []

  def sample(params, prompts, lengths, seeds, key):
    read.extend(np.asarray(row)[-length:].tolist() for row, length in zip(prompts, lengths))
    messages = [[*tokenizer.encode(text), tokenizer.stop_ids[0]] for text in texts]
    tokens = np.zeros((len(messages), 1, max(map(len, messages))), np.int32)
    for row, ids in enumerate(messages):
      tokens[row, 0, : len(ids)] = ids
    lengths = np.array([[len(ids)] for ids in messages])
    return Rollouts(None, None, tokens, lengths, None, None, np.full(lengths.shape, STOPPED))

  patch.setattr(refuel_users, 'sampler', lambda *arguments: sample)
  return read


@pytest.mark.parametrize('output, message', [
    ('I wonder.\nQuestion:\nWhat?', 'What?'),
    ('I wonder. Question: x', 'x'),
    ('I wonder.\n\n**Question:** x', 'x'),
    ('Question:y', 'y'),
    ('My question:\nQuestion: a\nQuestion: *b*', '*b*'),
])
def test_the_mark_is_recognised_in_all_spellings(real, monkeypatch, output, message):
  _saying(monkeypatch, real, [output] * 8)
  user = _users(real, kind='model', max_tokens=6, mark='Question:')('reference')
  messages = user(_talk(real))
  assert [list(ids) for ids in messages] == [real.task.frame.write(message)] * 8


def test_messages_are_cut_to_their_slots_and_those_without_a_mark_counted(real, monkeypatch):
  texts = ['Think. Question: ' + 'why ' * 99, 'No mark.'] + ['Question: So?'] * 6
  _saying(monkeypatch, real, texts)
  users = _users(real, kind='model', max_tokens=6, mark='Question:')
  assert users.unmarked() == {}  # No message yet.
  messages, frame = users('reference')(_talk(real)), real.task.frame
  assert 20 < len(messages[0]) <= 24 and list(messages[0]) == frame.write('why ' * 99, 24)
  assert real.task.text(messages[1]) == 'No mark.'
  assert users.unmarked() == {'unmarked': 1 / 8} and users.unmarked() == {}
  users = _users(real, kind='model', max_tokens=6)
  users('reference')(_talk(real))
  assert users.unmarked() == {}  # No mark is requested.


@pytest.mark.parametrize('mark', ['', 'Question:'])
def test_a_model_reads_a_truncated_reply_as_a_complete_one(real, monkeypatch, mark):
  read = _saying(monkeypatch, real, ['Why?'] * 8)
  user = _users(real, kind='model', max_tokens=6, mark=mark)('reference')
  user(_talk(real))
  whole = list(read)
  user(_talk(real, cut=[1, 4]))
  assert read[8:] == whole
  text = real.task.tokenizer.backend.decode(whole[1], skip_special_tokens=False)
  assert 'assistant\nYes<|im_end|>\n<|im_start|>user\n' in text


def test_a_model_is_asked_for_reasons_and_a_mark(setup, monkeypatch):
  """It reads the dialogue and the request."""
  wide = dataclasses.replace(setup, model=dataclasses.replace(setup.model, max_length=4_096))
  read = _saying(monkeypatch, wide, ['Ask: Why?'] * 8)
  request = lambda: setup.task.tokenizer.decode(read.pop()).rpartition('[user]')[2]
  messages = _users(wide, kind='model', max_tokens=6, mark='Ask:')('reference')(_talk(wide))
  assert [setup.task.text(ids) for ids in messages] == ['Why?'] * 8
  text = request()
  assert '"Ask:"' in text and text.startswith('From now on') and text.endswith('[assistant]')
  options = {'mark': 'Q', 'instruction': 'Be a Q.'}
  _users(wide, kind='model', max_tokens=6, **options)('reference')(_talk(wide))
  assert request() == 'Be a Q.[assistant]'


def test_requests_to_a_server(setup, monkeypatch):
  bodies = []

  def ask(self, body):
    bodies.append((self._url, self._headers, body))
    return 'Because. Ask: no\nAsk: Is it ' + 'so' * 20

  monkeypatch.setattr(endpoint_user.EndpointUser, '_ask', ask)
  monkeypatch.setenv('THE_KEY', 'secret')
  users = _users(
      setup, kind='endpoint', url='http://localhost:1/v1', model='big', mark='Ask:',
      temperature=0.5, max_tokens=9, key_variable='THE_KEY')
  talk, task = _talk(setup, rows=2), setup.task
  assert users.fingerprint == '' and not bodies
  messages = users(None)(talk)
  # What follows the last mark, cut to the slots of a message.
  assert [task.text(ids) for ids in messages] == ['Is it soso'] * 2
  assert len(messages[0]) == tiny_refuel.MESSAGE and users.unmarked() == {'unmarked': 0}
  url, headers, body = bodies[0]
  assert url == 'http://localhost:1/v1/chat/completions'
  assert headers['Authorization'] == 'Bearer secret'
  assert (body['model'], body['temperature'], body['max_tokens']) == ('big', 0.5, 9)
  contents = {body['messages'][0]['content'] for _, _, body in bodies}
  assert all('"Ask:"' in content for content in contents)
  assert {content.partition('\n\n')[2] for content in contents} == {
      f'User: {example["questions"][0]}\n\nAssistant: Yes' for example in task.train[:2]}


def test_models_that_cannot_play_the_user_are_refused(setup, folder, tmp_path):
  ask = lambda where: _users(setup, kind='model', init_from=str(where), max_tokens=6)
  with pytest.raises(ValueError, match='config.user.init_from: not a directory'):
    ask(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='must hold a policy, got a reward model in'):
    ask(folder / 'reward')
  tiny.write_checkpoint(tmp_path / 'other', characters='abc')
  with pytest.raises(ValueError, match='is not that of the policy .* let a server play the user'):
    ask(tmp_path / 'other')
  with pytest.raises(ValueError, match=r"max_length must be at least \d+ .*the user's input"):
    _users(setup, kind='model', max_tokens=99)
