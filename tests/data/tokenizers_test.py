"""Tokenizers: round trips on real text, ids of reference tokenizers, one-line errors."""

import json
import shutil

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from jaxrl_llm.data import gsm8k, tokenizers
from tests.golden import chat_cases

_GOLDENS = json.loads((chat_cases.FOLDER / 'goldens.json').read_text())['tokenizers']
_HARD = 'Ünseen — 東京 \U0001f600\u200d\x00\tqwrtz Supercalifragilistic\r\n\n  1,234.5%  '
_TEXT = strategies.text(strategies.characters(exclude_categories=['Cs']), max_size=40).filter(
    lambda text: '<|' not in text  # Special tokens are recognised, and dropped in decoding.
)


@pytest.fixture(scope='module')
def gsm8k_texts(data_dir):
  return [p.question + '\n' + p.answer for p in gsm8k.load_split(data_dir / 'gsm8k', 'train')]


@pytest.fixture(scope='module')
def qwen2(data_dir):
  return tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'qwen2')


@pytest.fixture(scope='module')
def gpt2(data_dir):
  return tokenizers.load_tokenizer(data_dir / 'tokenizers' / 'gpt2')


@pytest.fixture(scope='module')
def compact(qwen2, gsm8k_texts):
  return tokenizers.compact(qwen2, gsm8k_texts[:300], max_size=1000)


@pytest.fixture(scope='module')
def load(request, tmp_path_factory):
  """Loads one of the tokenizers of the goldens by its name."""
  folder = tmp_path_factory.mktemp('tokenizers')

  def get(name, **options):
    real = None
    if chat_cases.needs_real(name):
      real = request.getfixturevalue('data_dir') / 'tokenizers'
    return tokenizers.load_tokenizer(chat_cases.write(name, folder / name, real), **options)

  return get


@pytest.mark.parametrize('name', chat_cases.TOKENIZERS)
def test_equal_to_transformers(name, load):
  tokenizer, golden = load(name), _GOLDENS[name]
  assert tokenizer.vocab_size == golden['size']
  assert list(tokenizer.start_ids) == golden['start']
  if golden['eos'] is not None:
    assert tokenizer.stop_ids[0] == golden['eos']
  config = chat_cases.TOKENIZERS[name].documents['tokenizer_config.json']
  if config.get('pad_token'):
    assert tokenizer.pad_id == golden['pad']
  else:
    assert tokenizer.pad_id == tokenizer.stop_ids[0]
  for text, ids, decoded in zip(chat_cases.TEXTS, golden['ids'], golden['decoded']):
    assert tokenizer.encode(text) == ids
    if '<unk>' in text and name in ('gemma', 'llama2_legacy'):
      decoded += ' \u2047 '  # Theirs drops the text of an unknown piece.
    assert tokenizer.decode(ids) == decoded


@pytest.mark.parametrize('name', chat_cases.TOKENIZERS)
def test_offsets_are_the_character_ranges_of_tokens(name, load):
  tokenizer = load(name)
  for text in [*chat_cases.TEXTS, _HARD]:
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text) and len(offsets) == len(ids)
    assert all(0 <= first <= last <= len(text) for first, last in offsets)
    assert offsets == sorted(offsets)
    if name != 'bert' and '\u0301' not in text:  # No characters that a normaliser removes.
      covered = {index for first, last in offsets for index in range(first, last)}
      assert covered == set(range(len(text)))


@pytest.mark.parametrize('name', chat_cases.TOKENIZERS)
def test_a_continuation_has_no_leading_space(name, load):
  tokenizer = load(name)
  puts_space = name.startswith(('llama2', 'mistral'))
  for text in ('the', 'the answer', '12 the'):
    ids = tokenizer.encode_continuation(text)
    assert (ids != tokenizer.encode(text)) == puts_space
    if puts_space:
      *first, last = tokenizer.encode('x' + text), tokenizer.encode('x')
      assert first[0] == last + ids
  assert tokenizer.encode_continuation('') == []
  assert tokenizer.encode_continuation(' the')[-1:] == tokenizer.encode(' the')[-1:]


def test_a_continuation_has_the_usual_spaces_after_special_tokens(load):
  for name, spaced in (('llama2', False), ('llama2_legacy', True), ('mistral', True)):
    tokenizer = load(name)
    whole = tokenizer.encode('x the</s>the')
    ids = tokenizer.encode_continuation(' the</s>the')
    assert whole[len(tokenizer.encode('x')) :] == ids
    assert tokenizer.decode(whole) == ('x the the' if spaced else 'x thethe')


def test_a_compact_continuation(gpt2, compact):
  assert compact.encode_continuation('the 12') == compact.encode('the 12')
  assert gpt2.encode_continuation('the') == gpt2.encode('the')


def test_offsets_by_hand(load, compact, qwen2):
  # A space belongs to its word, even if the file would trim it.
  ids, offsets = load('llama3').encode_with_offsets('is the<|eot_id|>')
  assert offsets[-2:] == [(2, 6), (6, 16)] and len(ids) == len(offsets)
  # A character of three bytes is three tokens, each with the range of the character.
  for name in ('llama2', 'llama2_json', 'gemma'):
    assert load(name).encode_with_offsets('<s>a東')[1][-3:] == [(4, 5)] * 3
  # A part of a removed token has the token's range.
  text = 'Supercalifragilistic 1'
  ids, offsets = compact.encode_with_offsets(text)
  assert ids == compact.encode(text)
  assert sorted(set(offsets)) == qwen2.encode_with_offsets(text)[1]
  assert tokenizers.CharacterTokenizer('ab').encode_with_offsets('ba') == (
      [3, 2], [(0, 1), (1, 2)])


def test_characters_by_hand():
  tokenizer = tokenizers.CharacterTokenizer('ab+')
  assert tokenizer.encode('b+a') == [3, 4, 2]
  assert tokenizer.decode([0, 3, 4, 2, 1, 0]) == 'b+a'
  assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.stop_ids) == (5, 0, (1,))
  assert tokenizer.start_ids == ()
  assert tokenizer.decode(np.array([2, 1])) == 'a'
  with pytest.raises(ValueError, match="character 'c' is not in the alphabet 'ab\\+'"):
    tokenizer.encode('abc')
  # A model may have more rows than ids.
  assert tokenizer.decode([2, 5, 3, -1, 1]) == 'a\ufffdb\ufffd'
  assert tokenizer.encode_continuation('ab') == [2, 3]
  for alphabet in ('', 'aa'):
    with pytest.raises(ValueError, match='alphabet must be one or more distinct characters'):
      tokenizers.CharacterTokenizer(alphabet)


@hypothesis.given(strategies.text('0123456789+='))
def test_characters_round_trip(text):
  tokenizer = tokenizers.CharacterTokenizer('0123456789+=')
  assert tokenizer.decode(tokenizer.encode(text)) == text


def test_different_tokenizers_have_different_fingerprints(
    qwen2, gpt2, compact, gsm8k_texts, data_dir):
  folder = data_dir / 'tokenizers'
  others = [
      tokenizers.CharacterTokenizer('ab'),
      tokenizers.CharacterTokenizer('ba'),
      tokenizers.load_tokenizer(folder / 'sentencepiece'),
      tokenizers.compact(gpt2, gsm8k_texts[:5]),
      tokenizers.compact(gpt2, gsm8k_texts[:6]),
  ]
  prints = [tokenizer.fingerprint for tokenizer in [qwen2, gpt2, compact, *others]]
  assert len(set(prints)) == len(prints)
  assert tokenizers.CharacterTokenizer('ab').fingerprint == others[0].fingerprint
  assert tokenizers.load_tokenizer(folder / 'gpt2').fingerprint == gpt2.fingerprint


def test_stop_tokens_are_not_part_of_the_fingerprint(qwen2, compact, data_dir):
  folder = data_dir / 'tokenizers'
  for load, tokens in (
      (lambda **o: tokenizers.load_tokenizer(folder / 'qwen2', **o), ['<|im_end|>']),
      (lambda **o: tokenizers.load_tokenizer(folder / 'sentencepiece', **o), ['<s>']),
      (lambda **o: tokenizers.compact(tokenizers.load_tokenizer(folder / 'qwen2', **o), ['a b']),
       ['<|im_end|>']),
  ):
    plain, other, padded = load(), load(stop_tokens=tokens), load(pad_token=tokens[0])
    assert plain.fingerprint == other.fingerprint == padded.fingerprint
    full = [tokenizers.full_fingerprint(one) for one in (plain, other, padded)]
    assert len({*full, plain.fingerprint}) == 4
    # A directory may have either; the full fingerprint differs with other stop tokens.
    assert all(tokenizers.is_same(plain, one) for one in (plain.fingerprint, full[0]))
    assert not tokenizers.is_same(plain, full[1])

    changed = tokenizers.with_stop_ids(plain, other.stop_ids)
    assert changed.stop_ids == other.stop_ids != plain.stop_ids
    assert tokenizers.stop_tokens(changed) == tokenizers.stop_tokens(other) == tuple(tokens)
    assert tokenizers.with_stop_ids(changed, plain.stop_ids).full_fingerprint == full[0]
    assert tokenizers.with_stop_ids(plain, plain.stop_ids) is plain
    text = 'a b'
    assert changed.decode([*changed.encode(text), changed.stop_ids[0]]) == text

  # Saved directories contain this fingerprint.
  characters = tokenizers.CharacterTokenizer('ab')
  assert characters.fingerprint == tokenizers.full_fingerprint(characters) == '1cebe4ec81488c60'
  assert tokenizers.stop_tokens(characters) == ()


def test_padding_that_is_an_ordinary_token_stays_in_the_text(data_dir, tmp_path):
  source = data_dir / 'tokenizers' / 'gpt2'
  for name in ('encoder.json', 'vocab.bpe'):
    (tmp_path / name).symlink_to(source / name)
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(
      {'eos_token': '<|endoftext|>', 'pad_token': '!', 'tokenizer_class': 'GPT2Tokenizer'}))
  named = tokenizers.load_tokenizer(tmp_path)
  given = tokenizers.load_tokenizer(source, pad_token='!')
  for tokenizer in (named, given, tokenizers.compact(given, ['Hi! 5!'])):
    assert tokenizer.token(tokenizer.pad_id) == '!'
    text = 'Hi! 5! is 120'
    assert tokenizer.decode(tokenizer.encode(text)) == text

  # It is split off a text as in transformers.
  assert named.encode('!!') == [0, 0] and len(given.encode('!!')) == 1
  # A padding token that does not occur in texts is special.
  special = tokenizers.load_tokenizer(source, pad_token='<|endoftext|>', stop_tokens=['!'])
  assert special.decode([50256, *special.encode('a'), 50256]) == 'a'


def test_qwen2_ids(qwen2):
  # Ids of Qwen2's tokenizer: whole words, single digits, special tokens.
  assert qwen2.encode('Hello world 123') == [9707, 1879, 220, 16, 17, 18]
  chat = '<|im_start|>user\nHi<|im_end|>\n'
  assert qwen2.encode(chat) == [151644, 872, 198, 13048, 151645, 198]
  assert qwen2.vocab_size == 151_646
  assert qwen2.pad_id == 151_643 and qwen2.stop_ids == (151_643, 151_645)
  # The normaliser composes e and its accent, as Qwen2's does.
  assert qwen2.encode('e\u0301') == qwen2.encode('\u00e9')


def test_gpt2_ids(gpt2):
  assert gpt2.encode('Hello world 123') == [15496, 995, 17031]
  assert gpt2.vocab_size == 50_257 and gpt2.pad_id == 50_256 and gpt2.stop_ids == (50_256,)


@pytest.mark.parametrize('name', ['qwen2', 'gpt2'])
def test_round_trip_of_gsm8k(name, gsm8k_texts, request):
  tokenizer = request.getfixturevalue(name)
  for text in gsm8k_texts[::5]:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
  assert max(ids) < tokenizer.vocab_size


@hypothesis.settings(max_examples=100, deadline=None,
                     suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(text=_TEXT)
def test_gpt2_round_trip_of_any_text(gpt2, text):
  assert gpt2.decode(gpt2.encode(text)) == text


def test_decode_drops_special_ids_and_marks_unknown_ones(qwen2):
  hello, world = qwen2.encode('Hello world')
  assert qwen2.decode([151643, hello, 151644, world, 151645]) == 'Hello world'
  # A model may have more rows than ids: such an id must not make '4<unknown>2' read '42'.
  assert qwen2.decode([hello, 151_900, world]) == 'Hello\ufffd world'
  assert qwen2.decode([]) == ''


def test_compact_encodes_every_text(compact, qwen2, gsm8k_texts):
  assert compact.vocab_size == 1000
  for text in [_HARD, *gsm8k_texts[300:600]]:
    ids = compact.encode(text)
    assert compact.decode(ids) == qwen2.decode(qwen2.encode(text)) == text
    assert min(ids) >= 0 and max(ids) < 1000
    assert not {compact.pad_id, *compact.stop_ids} & set(ids)
  assert compact.decode([compact.stop_ids[0], *compact.encode('ok'), compact.pad_id]) == 'ok'
  # A text of retained tokens has the same ids.
  assert [compact.kept_ids[i] for i in compact.encode(' the')] == qwen2.encode(' the')
  four, two = compact.encode('4')[0], compact.encode('2')[0]
  assert compact.decode([four, 1000, two, -1, compact.pad_id]) == '4\ufffd2\ufffd'


@hypothesis.settings(max_examples=100, deadline=None,
                     suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@hypothesis.given(text=_TEXT)
def test_compact_round_trip_of_any_text(compact, qwen2, text):
  assert compact.decode(compact.encode(text)) == qwen2.decode(qwen2.encode(text))


def test_compact_is_restored_from_its_ids(compact, qwen2, gpt2, gsm8k_texts):
  restored = tokenizers.restore_compact(qwen2, compact.kept_ids)
  assert restored.full_fingerprint == compact.full_fingerprint
  for text in [_HARD, *gsm8k_texts[:20]]:
    assert restored.encode(text) == compact.encode(text)
  ids = compact.kept_ids
  for base, kept_ids in ((gpt2, ids), (qwen2, ids[1:]), (qwen2, [*ids, -1])):
    with pytest.raises(ValueError, match='are not part of this tokenizer'):
      tokenizers.restore_compact(base, kept_ids)


def test_compact_retains_start_and_stop_ids(load):
  base = load('llama3')
  tokenizer = tokenizers.compact(base, [])
  assert base.start_ids == (400,)
  for ids, expected in (
      (tokenizer.start_ids, base.start_ids), (tokenizer.stop_ids, base.stop_ids)):
    assert [tokenizer.kept_ids[token] for token in ids] == list(expected)


def test_compact_without_a_limit_changes_no_ids(qwen2, gsm8k_texts):
  tokenizer = tokenizers.compact(qwen2, gsm8k_texts[:50])
  for text in gsm8k_texts[:50]:
    assert [tokenizer.kept_ids[token] for token in tokenizer.encode(text)] == qwen2.encode(text)
  # All 256 bytes and the three special tokens are always retained.
  assert tokenizers.compact(qwen2, []).vocab_size == 259
  with pytest.raises(ValueError, match='max_size must be at least 259 .* got 258'):
    tokenizers.compact(qwen2, [], max_size=258)


@pytest.mark.parametrize('name', ['qwen2/vocab.json', 'qwen2/merges.txt', 'gpt2/encoder.json',
                                  'gpt2/vocab.bpe', 'sentencepiece/test_model.model'])
@pytest.mark.parametrize('damage', ['missing', 'cut', 'cut at a line'])
def test_missing_and_truncated_files_are_one_line_errors(name, damage, data_dir, tmp_path):
  source = data_dir / 'tokenizers' / name
  folder = tmp_path / 'tokenizer'
  shutil.copytree(source.parent, folder)
  folder.chmod(0o755)
  broken = folder / source.name
  broken.unlink()

  content = source.read_bytes()
  half = content[: len(content) // 2]
  if damage == 'cut':
    broken.write_bytes(half)
  elif damage == 'cut at a line':
    broken.write_bytes(half[: half.rfind(b'\n') + 1])

  path = broken if name.endswith('.model') else folder
  with pytest.raises(ValueError) as error:
    tokenizers.load_tokenizer(path)
  assert source.stem in str(error.value) and '\n' not in str(error.value)


def test_an_empty_directory(tmp_path):
  with pytest.raises(ValueError, match='no tokenizer in .*: it must contain tokenizer.json'):
    tokenizers.load_tokenizer(tmp_path)


def test_one_of_several_models(data_dir, tmp_path):
  source = data_dir / 'tokenizers' / 'sentencepiece' / 'test_model.model'
  for name in ('a.model', 'b.model'):
    shutil.copyfile(source, tmp_path / name)
  with pytest.raises(ValueError, match='no tokenizer in'):
    tokenizers.load_tokenizer(tmp_path)
  shutil.copyfile(source, tmp_path / 'tokenizer.model')
  assert tokenizers.load_tokenizer(tmp_path).vocab_size == 1000


@pytest.mark.parametrize('name', ['llama2', 'llama3'])
def test_half_a_surrogate_pair_is_one_line(name, load):
  tokenizer = load(name)
  for encode in (tokenizer.encode, tokenizer.encode_with_offsets):
    with pytest.raises(ValueError, match='half a surrogate pair, .* at character 1'):
      encode('a\ud83db')
