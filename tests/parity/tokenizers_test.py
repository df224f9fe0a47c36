"""Tokenizers and chat templates against transformers, live, on fresh random texts."""

import os
import random

import pytest
import transformers

from jaxrl_llm.data import chat_templates, tokenizers
from tests.golden import chat_cases, make_chat_goldens

# Each run draws other texts; a failure shows the seed.
SEED = int(os.environ.get('JAXRL_LLM_PARITY_SEED', random.SystemRandom().randrange(2**32)))
_PARTS = (
    'the', ' answer', 'Größe', ' ', '  ', '\n', '\n\n', '\t', "'s", '12', ' 345', '6789.', '?!',
    '東京', '😀', 'e\u0301', '\u200d', '\u00a0', '\u2581', 'A', ' user', '<s>', '</s>', '<unk>',
    '<pad>', '<think>', '</think>', '<|im_end|>', '<|endoftext|>', '[INST]', ' [/INST] ',
    '<start_of_turn>', '<end_of_turn>', '<|eot_id|>', '<｜User｜>', '<tool>', ' <wide>', '[MASK]',
    '<one>', '<plain>', '<end>', '{{ 7 }}', '\\', '\x00', '\x7f',
)


@pytest.fixture(scope='module')
def both(data_dir, tmp_path_factory):
  """Name -> (ours, theirs, the directory)."""
  folder = tmp_path_factory.mktemp('tokenizers')
  pairs = {}
  for name in chat_cases.TOKENIZERS:
    directory = chat_cases.write(name, folder / name, data_dir / 'tokenizers')
    pairs[name] = (
        tokenizers.load_tokenizer(directory),
        transformers.AutoTokenizer.from_pretrained(directory),
        directory,
    )
  return pairs


def _text(rng):
  """A random text of words, signs, white space and special tokens."""
  return ''.join(rng.choice(_PARTS) for _ in range(rng.randrange(12)))


def _messages(rng):
  """A random conversation; not every template accepts every one."""
  first = [{'role': 'system', 'content': _text(rng)}] if rng.random() < 0.4 else []
  roles = ['user', 'assistant'] * rng.randrange(1, 4)
  if rng.random() < 0.2:
    rng.shuffle(roles)
  messages = [{'role': role, 'content': 'x' + _text(rng)} for role in roles]
  for message in messages:
    if message['role'] == 'assistant' and rng.random() < 0.5:
      if rng.random() < 0.5:
        message['reasoning_content'] = _text(rng)
      else:
        message['content'] = f'<think>{_text(rng)}</think>{_text(rng)}'
  return first + messages


@pytest.mark.parametrize('name', chat_cases.TOKENIZERS)
def test_ids_texts_and_roles(name, both):
  ours, theirs, _ = both[name]
  rng = random.Random(SEED)
  for text in [*chat_cases.TEXTS, *(_text(rng) for _ in range(500))]:
    ids = theirs(text, add_special_tokens=False)['input_ids']
    assert ours.encode(text) == ids, (SEED, text)
    # Our decoding of an unknown piece is not empty.
    if theirs.unk_token_id not in ids or theirs.unk_token_id in (*ours.stop_ids, ours.pad_id):
      assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), (SEED, text)
  assert ours.vocab_size == len(theirs)
  expected = make_chat_goldens.of_tokenizer(theirs)
  assert list(ours.start_ids) == expected['start']
  assert expected['eos'] in (None, ours.stop_ids[0])


@pytest.mark.parametrize('name', chat_cases.TOKENIZERS)
def test_tokenizers_saved_by_transformers(name, both, tmp_path):
  before, theirs, _ = both[name]
  theirs.save_pretrained(tmp_path)
  ours = tokenizers.load_tokenizer(tmp_path)
  reloaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
  rng = random.Random(SEED)
  for text in [*chat_cases.TEXTS, *(_text(rng) for _ in range(200))]:
    ids = reloaded(text, add_special_tokens=False)['input_ids']
    assert ours.encode(text) == ids, (SEED, text)
  assert ours.start_ids == before.start_ids and ours.vocab_size == len(reloaded)
  assert ours.stop_ids[0] == before.stop_ids[0]


@pytest.mark.parametrize('name', chat_cases.CASES)
def test_conversations(name, both):
  tokenizer_name, template_name, variables = chat_cases.CASES[name]
  ours, theirs, directory = both[tokenizer_name]
  source = chat_cases.template(template_name)
  (directory / 'chat_template.jinja').write_text(source)
  template = chat_templates.load(directory)
  template = chat_templates.ChatTemplate(template.source, {**template.variables, **variables})
  named = {key: token for key, token in theirs.special_tokens_map.items() if key != 'pad_token'}
  assert named.items() <= template.variables.items()

  rng = random.Random(SEED)
  accepted = []
  for messages in [*chat_cases.CONVERSATIONS.values(), *(_messages(rng) for _ in range(100))]:
    expected = make_chat_goldens.of_conversation(theirs, source, variables, messages)
    if 'error' in expected:
      with pytest.raises(ValueError, match='chat template, conversation 0: '):
        template.render(messages)
    else:
      accepted.append((messages, expected))

  for prompt in (False, True):
    texts = template.render_many([m for m, _ in accepted], add_generation_prompt=prompt)
    for text, (messages, expected) in zip(texts, accepted):
      ids, whole = expected['ids'], expected['text']
      if prompt:
        count, more = expected['prompt']
        whole = whole[:count] + more
        count, more = expected['prompt_ids']
        ids = ids[:count] + more
      assert text == whole, (SEED, messages)
      assert ours.encode(text) == ids, (SEED, messages)
  assert len(accepted) > 30
