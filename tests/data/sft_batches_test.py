"""Batches for fine-tuning: masks by hand; packing and padding do not change the loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import sft
from jaxrl_llm.data import batching, mixtures, sft_batches, tokenizers
from jaxrl_llm.tasks import arithmetic, countdown, gsm8k
from tests.algorithms import tiny
from tests.golden import chat_cases

# Ids: a=2, b=3, c=4, d=5, e=6; 0 is padding, 1 is stop.
TOKENIZER = tokenizers.CharacterTokenizer('abcde')
TEXTS = [
    {'id': 4, 'prompt': 'ab', 'response': 'c'},
    {'id': 9, 'prompt': 'c', 'response': 'ab'},
]
# Two turns: the assistant's replies are 'c', stop and 'd', stop.
CHAT = {'id': 5, 'ids': [2, 4, 1, 3, 3, 5, 1], 'loss_mask': [0, 1, 1, 0, 0, 1, 1]}


class Padding(tokenizers.CharacterTokenizer):
  """A tokenizer with the given padding id."""

  def __init__(self, pad_id):
    super().__init__('abcde')
    self.pad_id = pad_id


def _encoded(examples=TEXTS, tokenizer=TOKENIZER, **overrides):
  limits = {'max_prompt_tokens': 3, 'max_response_tokens': 3}
  return sft_batches.encode_sequences(examples, tokenizer, **(limits | overrides))


def _random_examples(count, seed=0, longest=8):
  """Conversations of random ids with random, not necessarily connected, assistant parts."""
  rng = np.random.default_rng(seed)
  examples = []
  for index in range(count):
    length = rng.integers(2, longest + 1)
    mask = rng.random(length) < 0.6
    mask[rng.integers(1, length)] = True
    examples.append({
        'id': index, 'ids': rng.integers(0, 7, length), 'loss_mask': mask,
        'source': ('x', 'y')[index % 3 == 0],
    })
  return examples


# --- Rows of one sequence.


def test_texts_by_hand():
  batch = sft_batches.sft_batch(_encoded(), np.array([0, 1]))
  # Rows 'a b c stop' and 'c a b stop'; inputs without the last, targets without the first.
  np.testing.assert_array_equal(batch.tokens, [[2, 3, 4, 0, 0], [4, 2, 3, 0, 0]])
  np.testing.assert_array_equal(batch.targets, [[3, 4, 1, 0, 0], [2, 3, 1, 0, 0]])
  np.testing.assert_array_equal(batch.loss_mask, [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
  np.testing.assert_array_equal(batch.valid, [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
  np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 0, 0]] * 2)
  np.testing.assert_array_equal(batch.weight, [1, 1])
  assert batch.tokens.dtype == batch.targets.dtype == batch.positions.dtype == np.int32
  assert batch.valid.dtype == bool and batch.segments is None
  assert batch.loss_mask.dtype == batch.weight.dtype == np.float32


def test_turns_by_hand():
  encoded = _encoded([CHAT], max_prompt_tokens=4, max_response_tokens=4)
  batch = sft_batches.sft_batch(encoded, [0])
  np.testing.assert_array_equal(batch.tokens, [[2, 4, 1, 3, 3, 5, 0]])
  np.testing.assert_array_equal(batch.targets, [[4, 1, 3, 3, 5, 1, 0]])
  # The user's turns are context, the assistant's stop tokens are learned.
  np.testing.assert_array_equal(batch.loss_mask, [[1, 1, 0, 0, 1, 1, 0]])
  np.testing.assert_array_equal(encoded.response_lengths, [4])
  np.testing.assert_array_equal(encoded.lengths, [7])


def test_loss_on_all_includes_everything_except_padding():
  encoded = _encoded([*TEXTS, CHAT], max_prompt_tokens=4, max_response_tokens=4, loss_on='all')
  batch = sft_batches.sft_batch(encoded, [0, 2])
  np.testing.assert_array_equal(batch.loss_mask, [[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]])
  np.testing.assert_array_equal(batch.loss_mask, batch.valid)
  np.testing.assert_array_equal(encoded.response_lengths, [2, 3, 4])


def test_texts_against_a_loop():
  task = arithmetic.Config(
      num_demonstrations=50, num_train=0, num_evaluation=0, padding='none').make(0)
  encoded = sft_batches.encode_demonstrations(task)
  indices = batching.batch_indices(50, 20, seed=0, step=3)
  batch = sft_batches.sft_batch(encoded, indices)
  for row, index in enumerate(indices):
    example = task.demonstrations[index]
    prompt = task.tokenizer.encode(example['prompt'])
    tokens = prompt + task.tokenizer.encode(example['response']) + [1]
    count = len(tokens) - 1
    assert list(batch.tokens[row, :count]) == tokens[:-1]
    assert list(batch.targets[row, :count]) == tokens[1:]
    mask = [float(t + 1 >= len(prompt)) for t in range(count)]
    assert list(batch.loss_mask[row]) == mask + [0.0] * (batch.tokens.shape[1] - count)
    assert batch.valid[row].sum() == count and batch.valid[row, :count].all()


def test_a_text_gets_the_tokenizers_start_ids_and_ids_do_not():
  tokenizer = Padding(0)
  tokenizer.start_ids = (6,)
  encoded = _encoded([TEXTS[0], CHAT], tokenizer, max_prompt_tokens=4)
  assert list(encoded.tokens) == [6, 2, 3, 4, 1, *CHAT['ids']]
  assert list(encoded.assistant) == [0, 0, 0, 1, 1, *CHAT['loss_mask']]


@pytest.fixture(scope='module')
def load(tmp_path_factory, data_dir):
  """Loads a tokenizer of the goldens, or of the data directory, by its name."""
  folder = tmp_path_factory.mktemp('tokenizers')

  @functools.cache
  def get(name):
    if name in chat_cases.TOKENIZERS:
      chat_cases.write(name, folder / name, data_dir / 'tokenizers')
      return tokenizers.load_tokenizer(folder / name)
    return tokenizers.load_tokenizer(data_dir / 'tokenizers' / name)

  return get


# Tokenizers that add a leading space.
_SPACING = ('sentencepiece', 'llama2', 'llama2_json', 'llama2_legacy', 'mistral')


def _ids(tokenizer, prompt, response):
  """Returns (ids of the prompt, ids of the response without its stop token)."""
  encoded = _encoded([{'id': 0, 'prompt': prompt, 'response': response}], tokenizer,
                     max_prompt_tokens=40, max_response_tokens=40)
  *ids, stop = encoded.tokens[encoded.assistant].tolist()
  assert stop == tokenizer.stop_ids[0]
  return encoded.tokens[~encoded.assistant].tolist(), ids


@pytest.mark.parametrize('name', [*_SPACING, 'gemma', 'llama3', 'deepseek', 'gpt2', 'qwen2'])
@pytest.mark.parametrize(('prompt', 'response'), [
    ('The user asks:', 'the answer'), ('The user asks:', ' the answer'), ('It is\n', '\n12'),
    ('The user asks: ', 'the answer'), ('The user as', 'sistant'), ('the ans', 'wer</s>the'),
])
def test_a_response_follows_its_prompt_without_an_extra_space(load, name, prompt, response):
  tokenizer = load(name)
  prompt_ids, ids = _ids(tokenizer, prompt, response)
  # The prompt's ids are those that a sampler receives.
  example = {'id': 0, 'prompt': prompt}
  assert prompt_ids == batching.prompt_ids(example, tokenizer)
  both = tokenizer.encode(prompt + response)
  assert tokenizer.decode(prompt_ids + ids) == tokenizer.decode(both)
  joined = [*tokenizer.start_ids, *both]
  if joined[: len(prompt_ids)] == prompt_ids:
    assert prompt_ids + ids == joined
  if name not in _SPACING:
    assert ids == tokenizer.encode(response)


@pytest.mark.parametrize('name', _SPACING)
def test_a_response_encoded_alone_would_get_an_extra_space(load, name):
  tokenizer = load(name)
  for prompt, response in (('The user asks:', 'the'), ('the ans', 'wer')):
    prompt_ids, ids = _ids(tokenizer, prompt, response)
    alone = tokenizer.encode(response)
    assert ids != alone and tokenizer.decode(prompt_ids + alone) == f'{prompt} {response}'
    assert tokenizer.decode(prompt_ids + ids) == prompt + response


def test_after_an_empty_prompt_the_response_starts_the_text(load):
  tokenizer = load('llama2')
  assert _ids(tokenizer, '', 'the answer') == ([1], tokenizer.encode('the answer'))


def _assert_encoded_separately(task):
  """Checks that demonstrations are the ids of the prompt, those of the response and a stop id."""
  encoded = sft_batches.encode_demonstrations(task)
  assert len(encoded) == len(task.demonstrations) > 0
  for index, example in enumerate(task.demonstrations):
    start, end = encoded.starts[index : index + 2]
    expected = [*task.tokenizer.encode(example['prompt']),
                *task.tokenizer.encode(example['response']), task.tokenizer.stop_ids[0]]
    assert encoded.tokens[start:end].tolist() == expected


def test_prompts_and_responses_of_our_tasks_are_encoded_as_if_separate(data_dir, load):
  for padding in ('zeros', 'none'):
    _assert_encoded_separately(arithmetic.Config(
        num_demonstrations=200, num_train=0, num_evaluation=0, padding=padding).make(0))
  _assert_encoded_separately(countdown.Config(num_demonstrations=200, num_train=0).make(
      0, data_dir / 'countdown'))
  task = gsm8k.Config(
      num_demonstrations=100, tokenizer_dir=str(data_dir / 'tokenizers' / 'gpt2')).make(
          0, data_dir / 'gsm8k')
  texts = [example['response'] for example in task.demonstrations]
  qwen2 = load('qwen2')
  for tokenizer in (task.tokenizer, qwen2, tokenizers.compact(qwen2, texts, max_size=1000)):
    _assert_encoded_separately(dataclasses.replace(
        task, tokenizer=tokenizer, max_prompt_tokens=2000, max_response_tokens=2000))


def test_long_demonstrations_are_errors_or_counted_but_never_truncated():
  with pytest.raises(ValueError, match='the prompt of example 4 has 2 tokens, the limit is 1'):
    _encoded(max_prompt_tokens=1)
  with pytest.raises(ValueError, match='of example 9, with its stop token, has 3 tokens, the lim'):
    _encoded(max_response_tokens=2)
  with pytest.raises(ValueError, match='example 5 has 7 tokens, the limit is 6'):
    _encoded([CHAT])
  fitting = _encoded([*TEXTS, CHAT], max_prompt_tokens=1, overlong='filter')
  assert fitting.num_filtered == 2 and [example['id'] for example in fitting.examples] == [9]
  with pytest.raises(ValueError, match='all 2 examples are too long'):
    _encoded(max_prompt_tokens=0, overlong='filter')


@pytest.mark.parametrize('change, message', [
    ({'loss_mask': [0, 1]}, 'example 5 has 7 ids, but 2 entries in its loss_mask'),
    ({'loss_mask': [1, 0, 0, 0, 0, 0, 0]}, 'example 5 has no tokens of the assistant'),
    ({'ids': [2, 4, 1, 3, 3, 5, 7]}, r'of example 5 must be in \[0, 7\), got 1 to 7'),
    ({'ids': [2, 4, -1, 3, 3, 5, 1]}, r'of example 5 must be in \[0, 7\), got -1 to 5'),
    ({'ids': [], 'loss_mask': []}, 'example 5 has no tokens'),
])
def test_invalid_demonstrations_as_ids(change, message):
  with pytest.raises(ValueError, match=message):
    _encoded([CHAT | change], max_prompt_tokens=9)


# --- Packed rows.


def test_a_packed_row_by_hand():
  encoded = _encoded([*TEXTS, CHAT], max_prompt_tokens=4, max_response_tokens=4)
  batch = sft_batches.packed_batch(encoded, [[1, 2], [0]], 10)
  # 'c a b stop' and the two turns: no pair of tokens spans both.
  np.testing.assert_array_equal(
      batch.tokens, [[4, 2, 3, 2, 4, 1, 3, 3, 5, 0], [2, 3, 4] + [0] * 7])
  np.testing.assert_array_equal(
      batch.targets, [[2, 3, 1, 4, 1, 3, 3, 5, 1, 0], [3, 4, 1] + [0] * 7])
  np.testing.assert_array_equal(
      batch.loss_mask, [[1, 1, 1, 1, 1, 0, 0, 1, 1, 0], [0, 1, 1] + [0] * 7])
  np.testing.assert_array_equal(
      batch.segments, [[1, 1, 1, 2, 2, 2, 2, 2, 2, 0], [1, 1, 1] + [0] * 7])
  np.testing.assert_array_equal(
      batch.positions, [[0, 1, 2, 0, 1, 2, 3, 4, 5, 0], [0, 1, 2] + [0] * 7])
  np.testing.assert_array_equal(batch.valid, batch.segments > 0)
  assert batch.segments.dtype == np.int32


@pytest.mark.parametrize('loss_on', sft_batches.LOSS_ON)
def test_packed_rows_against_a_loop(loss_on):
  examples = _random_examples(23)
  encoded = _encoded(examples, max_prompt_tokens=5, max_response_tokens=5, loss_on=loss_on)
  rows = [[3, 0], [22], [7, 8, 1], [5, 6]]
  batch = sft_batches.packed_batch(encoded, rows, 24)
  for b, row in enumerate(rows):
    slot = 0
    for number, index in enumerate(row, 1):
      ids, mask = examples[index]['ids'], examples[index]['loss_mask']
      for t in range(len(ids) - 1):
        assert batch.tokens[b, slot] == ids[t] and batch.targets[b, slot] == ids[t + 1]
        assert batch.loss_mask[b, slot] == (mask[t + 1] or loss_on == 'all')
        assert batch.positions[b, slot] == t and batch.segments[b, slot] == number
        slot += 1
    assert batch.valid[b].sum() == slot and not batch.loss_mask[b, slot:].any()


PARAMETERS = tiny.params()


@functools.cache
def _train_step(num_micro_batches):
  config = sft.Config(num_micro_batches=num_micro_batches, head_chunk=0)
  return jax.jit(sft.make(config, tiny.MODEL, tiny.recorder()).train_step)


def _loss_and_gradient(batch, num_micro_batches=1):
  """Loss and gradient of one step of the SFT algorithm."""
  loss, gradient, _ = tiny.run_once(_train_step(num_micro_batches), PARAMETERS, batch)
  return loss, gradient


def test_packing_changes_neither_loss_nor_gradient():
  encoded = _encoded(_random_examples(13), max_prompt_tokens=4, max_response_tokens=4)
  unpacked = sft_batches.sft_batch(encoded, range(13))
  batches = sft_batches.Batches(encoded, batch_size=8, seed=0, packed_length=14)
  assert batches.num_rows < 13
  (packed,) = batches.in_order()
  loss, gradient = _loss_and_gradient(unpacked)
  for num_micro_batches in (1, 4):
    packed_loss, packed_gradient = _loss_and_gradient(packed, num_micro_batches)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    tiny.assert_trees_close(packed_gradient, gradient, tolerance=1e-5)
  # Control: attention across segments changes the loss.
  leaking = packed._replace(segments=np.minimum(packed.segments, 1))
  assert abs(_loss_and_gradient(leaking)[0] - loss) > 1e-3


@pytest.mark.parametrize('packed_length', [0, 13])
def test_padding_has_no_effect_for_any_padding_id(packed_length):
  # The stop id, an id of the texts, an id of no text, and 0.
  outcomes = []
  for pad_id in (1, 2, 6, 0):
    encoded = _encoded([*TEXTS, CHAT], Padding(pad_id), max_prompt_tokens=4,
                       max_response_tokens=4)
    batches = sft_batches.Batches(encoded, batch_size=3, seed=0, packed_length=packed_length)
    (batch,) = batches.in_order()
    assert (batch.tokens[~batch.valid] == pad_id).all() and (~batch.valid).any()
    assert batch.loss_mask[batch.weight > 0].sum() == encoded.response_lengths.sum() == 9
    outcomes.append(_loss_and_gradient(batch))
  for loss, gradient in outcomes[1:]:
    np.testing.assert_allclose(loss, outcomes[0][0], rtol=1e-6)
    tiny.assert_trees_close(gradient, outcomes[0][1], tolerance=1e-6)


# --- Steps and epochs.


def test_a_step_is_a_pure_function_and_epochs_contain_everything_once():
  encoded = _encoded(_random_examples(20), max_prompt_tokens=4, max_response_tokens=4)
  for packed_length in (0, 16):
    make = lambda seed, length=packed_length: sft_batches.Batches(
        encoded, batch_size=3, seed=seed, packed_length=length)
    batches, again = make(0), make(0)
    for step in (5, 2):
      jax.tree.map(np.testing.assert_array_equal, batches.batch(step), again.batch(step))
    assert (batches.batch(0).tokens != make(1).batch(0).tokens).any()
    assert batches.num_rows == make(1).num_rows

    steps = [batches.batch(step) for step in range(batches.num_rows)]  # Three epochs.
    for passed in (steps, [b for _ in range(3) for b in batches.in_order()]):
      seen = [b.targets[(b.valid & (b.weight > 0)[:, None])] for b in passed]
      counts = np.bincount(np.concatenate(seen), minlength=7)
      targets = np.concatenate([example['ids'][1:] for example in encoded.examples])
      np.testing.assert_array_equal(counts, 3 * np.bincount(targets, minlength=7))

  assert batches.utilisation == pytest.approx(
      (encoded.lengths - 1).sum() / (batches.num_rows * 16))


def test_the_order_without_weights_is_that_of_batch_indices():
  encoded = _encoded(_random_examples(10), max_prompt_tokens=4, max_response_tokens=4)
  batches = sft_batches.Batches(encoded, batch_size=4, seed=7)
  for step in range(4):
    indices = batching.batch_indices(10, 4, seed=7, step=step)
    jax.tree.map(np.testing.assert_array_equal,
                 batches.batch(step), sft_batches.sft_batch(encoded, indices))


def test_sources_are_drawn_by_weight():
  encoded = _encoded(_random_examples(20), max_prompt_tokens=4, max_response_tokens=4)
  names = [example['source'] for example in encoded.examples]
  weights = {'y': 3.0, 'x': 1.0}
  batches = sft_batches.Batches(encoded, batch_size=4, seed=0, weights=weights)
  groups = [[i for i, name in enumerate(names) if name == source] for source in ('y', 'x')]
  for step in range(9):
    sources, indices = mixtures.mixture_indices([7, 13], [3, 1], 4, seed=0, step=step)
    expected = [groups[k][i] for k, i in zip(sources, indices)]
    jax.tree.map(np.testing.assert_array_equal,
                 batches.batch(step), sft_batches.sft_batch(encoded, expected))

  # A packed row has sequences of one source.
  packed = sft_batches.Batches(encoded, batch_size=4, seed=0, weights=weights, packed_length=20)
  assert packed.num_rows < 20
  (rows,) = sft_batches.Batches(
      encoded, batch_size=packed.num_rows, seed=0, weights=weights, packed_length=20).in_order()
  of_source = [np.concatenate([encoded.examples[i]['ids'][1:] for i in group]) for group in groups]
  cut = next(n for n in range(packed.num_rows + 1)
             if rows.valid[:n].sum() == len(of_source[0]))
  np.testing.assert_array_equal(
      np.bincount(rows.targets[:cut][rows.valid[:cut]]), np.bincount(of_source[0]))


@pytest.mark.parametrize('change, message', [
    ({'weights': {'x': 1.0}}, r'demonstrations \(x, y\), got weights for x'),
    ({'weights': {'x': 1.0, 'y': 1.0, 'z': 1.0}}, 'got weights for x, y, z'),
    ({'packed_length': -1}, 'packed_length must be at least 0, got -1'),
    ({'packed_length': 3}, 'must have 1 to 3 tokens for a packed row'),
    ({'batch_size': 0}, 'batch_size must be at least 1, got 0'),
])
def test_invalid_arguments(change, message):
  encoded = _encoded(_random_examples(9), max_prompt_tokens=4, max_response_tokens=4)
  with pytest.raises(ValueError, match=message):
    sft_batches.Batches(encoded, **({'batch_size': 2, 'seed': 0} | change)).batch(0)


def test_nothing_to_learn_from():
  with pytest.raises(ValueError, match='there are no demonstrations'):
    sft_batches.Batches(_encoded([]), batch_size=2, seed=0)
  with pytest.raises(ValueError, match="loss_on must be 'assistant' or 'all', got 'user'"):
    _encoded(loss_on='user')


def test_a_batch_goes_to_the_device_with_and_without_segments():
  encoded = _encoded()
  for batch in (sft_batches.sft_batch(encoded, [0]), sft_batches.packed_batch(encoded, [[0]], 7)):
    on_device = jax.device_put(batch)
    assert isinstance(on_device, sft_batches.SftBatch)
    assert isinstance(on_device.tokens, jnp.ndarray)
    assert (on_device.segments is None) == (batch.segments is None)
