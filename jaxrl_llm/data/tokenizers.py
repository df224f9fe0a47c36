"""Text to ids and back: tokenizers behind the one interface `types.Tokenizer`.

The libraries underneath (tokenizers, sentencepiece) are imported where they are
used, so that a run with characters needs neither.
"""

import collections
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from jaxrl_llm.types import Tokenizer

# How Qwen2 cuts text into the pieces within which its merges work: contractions,
# letters with at most one leading sign, single digits, signs, line ends, spaces.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
# These follow the 151,643 entries of Qwen2's vocab.json, which does not hold them.
_QWEN2_SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
_END_OF_TEXT = '<|endoftext|>'
_REPLACEMENT = '\ufffd'  # What an id that stands for nothing is written as.


def _fingerprint(*parts: Any) -> str:
  """The first 16 hexadecimal digits of the SHA-256 of `parts` as JSON."""
  text = json.dumps(parts, ensure_ascii=True, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class CharacterTokenizer:
  """One id a character: 0 is padding, 1 is stop, then the alphabet in its order.

  Attributes:
    alphabet: the characters, in the order of their ids.
    vocab_size: 2 + the number of characters.
    pad_id: 0.
    stop_ids: (1,).
    fingerprint: a short hash of the alphabet.
  """

  pad_id = 0
  stop_ids = (1,)

  def __init__(self, alphabet: str):
    """Makes a tokenizer of the characters of `alphabet`, which must be distinct."""
    if not alphabet or len(set(alphabet)) != len(alphabet):
      raise ValueError(f'alphabet must hold distinct characters, at least one, got {alphabet!r}')
    self.alphabet = alphabet
    self.vocab_size = len(alphabet) + 2
    self.fingerprint = _fingerprint('character', alphabet)
    self._ids = {character: index + 2 for index, character in enumerate(alphabet)}

  def encode(self, text: str) -> list[int]:
    """Ids of the characters of `text`; ValueError for one outside the alphabet."""
    try:
      return [self._ids[character] for character in text]
    except KeyError as error:
      raise ValueError(
          f'character {error.args[0]!r} is not in the alphabet {self.alphabet!r}'
      ) from None

  def decode(self, ids: Sequence[int]) -> str:
    """The characters of `ids`; padding and stop are dropped."""
    ids = [int(token) for token in ids]
    outside = [token for token in ids if not 0 <= token < self.vocab_size]
    if outside:
      raise ValueError(f'ids must lie in [0, {self.vocab_size}), got {outside[0]}')
    return ''.join(self.alphabet[token - 2] for token in ids if token >= 2)


class SentencePieceTokenizer:
  """A SentencePiece model file.

  The model's own normaliser applies (commonly, runs of spaces become one), so that
  `decode(encode(text))` is the normalised text. Characters that the model does not
  know become its unknown piece.

  Attributes:
    vocab_size: the model's number of pieces.
    pad_id: the model's padding id, or its end id where it has none.
    stop_ids: the model's end-of-sentence id.
    fingerprint: a short hash of the file.
  """

  def __init__(self, path: str | pathlib.Path):
    """Loads the model file at `path`; ValueError if it is missing or damaged."""
    import sentencepiece

    path = pathlib.Path(path)
    content = _read_bytes(path)
    try:
      processor = sentencepiece.SentencePieceProcessor(model_proto=content)
      size = processor.vocab_size()
    except (RuntimeError, OSError):
      size = 0
    if not size:
      raise ValueError(f'{path} is not a complete SentencePiece model ({len(content)} bytes)')
    if processor.eos_id() < 0:
      raise ValueError(f'{path} has no end-of-sentence piece, which a response ends with')
    self._processor = processor
    self.vocab_size = size
    self.stop_ids = (processor.eos_id(),)
    self.pad_id = processor.pad_id() if processor.pad_id() >= 0 else processor.eos_id()
    self.fingerprint = _fingerprint('sentencepiece', hashlib.sha256(content).hexdigest())

  def encode(self, text: str) -> list[int]:
    """Ids of `text`."""
    return self._processor.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`; padding and stop are dropped, ids of nothing become U+FFFD."""
    return _decode_known(
        ids,
        dropped={self.pad_id, *self.stop_ids},
        known=lambda token: 0 <= token < self.vocab_size,
        decode=self._processor.decode,
    )


class HuggingFaceTokenizer:
  """A tokenizer of the `tokenizers` library.

  Special tokens are recognised in the text that is encoded, as chat templates need
  it, and dropped when decoding.

  Attributes:
    backend: the `tokenizers.Tokenizer`.
    vocab_size: the largest id + 1.
    pad_id: the id of the padding token.
    stop_ids: the ids of the stop tokens; the first ends demonstrations.
    fingerprint: a short hash of the files and of pad and stop.
  """

  def __init__(
      self, backend: Any, *, stop_tokens: Sequence[str], pad_token: str, source_hash: str
  ):
    """Wraps `backend`; see `load_tokenizer` for the ways to get one.

    Args:
      backend: a `tokenizers.Tokenizer`.
      stop_tokens: at least one token that ends a response.
      pad_token: the token that fills.
      source_hash: a hash of everything that `backend` was made from.
    """
    if not stop_tokens:
      raise ValueError('stop_tokens must name at least one token, got none')
    for token in (*stop_tokens, pad_token):
      if backend.token_to_id(token) is None:
        raise ValueError(f'token {token!r} is not in the vocabulary')
    self.backend = backend
    self.stop_ids = tuple(backend.token_to_id(token) for token in stop_tokens)
    self.pad_id = backend.token_to_id(pad_token)
    self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    self.fingerprint = _fingerprint('hugging_face', source_hash, self.stop_ids, self.pad_id)

  def encode(self, text: str) -> list[int]:
    """Ids of `text`."""
    return self.backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`; special ids are dropped, ids of nothing become U+FFFD.

    A model's embedding may have more rows than the tokenizer has ids. Such ids must
    leave a trace in the text: an answer with one in its middle is no right answer.
    """
    return _decode_known(
        ids,
        dropped={self.pad_id, *self.stop_ids},
        known=lambda token: token >= 0 and self.backend.id_to_token(token) is not None,
        decode=self.backend.decode,
    )


def _decode_known(ids: Sequence[int], *, dropped: set[int], known: Any, decode: Any) -> str:
  """Decodes the runs of known ids, with U+FFFD for each id between them."""
  pieces: list[str] = []
  run: list[int] = []
  for token in map(int, ids):
    if token in dropped:
      continue
    if known(token):
      run.append(token)
    else:
      pieces += [decode(run), _REPLACEMENT]
      run = []
  return ''.join(pieces) + decode(run)


def load_tokenizer(
    path: str | pathlib.Path,
    *,
    stop_tokens: Sequence[str] | None = None,
    pad_token: str | None = None,
) -> Tokenizer:
  """Loads whatever tokenizer lies at `path`.

  Args:
    path: a tokenizer.json, a SentencePiece .model file, or a folder with one of:
      tokenizer.json (with tokenizer_config.json beside it where the stop tokens are
      not given); vocab.json and merges.txt (Qwen2, or GPT-2 where <|endoftext|> is
      in the vocabulary); encoder.json and vocab.bpe (GPT-2); one .model file.
    stop_tokens: overrides which tokens end a response (not for SentencePiece).
    pad_token: overrides which token fills (not for SentencePiece).

  Returns:
    The tokenizer.

  Raises:
    ValueError: a file is missing, damaged or truncated; one line that names it.
  """
  path = pathlib.Path(path)
  if path.suffix == '.model' or (not path.is_dir() and path.suffix != '.json'):
    return SentencePieceTokenizer(path)
  if not path.is_dir():
    return _from_tokenizer_json(path, stop_tokens, pad_token)
  if (path / 'tokenizer.json').exists():
    return _from_tokenizer_json(path / 'tokenizer.json', stop_tokens, pad_token)
  for vocabulary, merges in (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe')):
    if (path / vocabulary).exists() or (path / merges).exists():
      return _from_byte_level_files(path / vocabulary, path / merges, stop_tokens, pad_token)
  models = sorted(path.glob('*.model'))
  if len(models) == 1:
    return SentencePieceTokenizer(models[0])
  raise ValueError(
      f'no tokenizer in {path}: it must hold tokenizer.json, vocab.json and merges.txt, '
      'encoder.json and vocab.bpe, or one .model file'
  )


def _from_tokenizer_json(
    path: pathlib.Path, stop_tokens: Sequence[str] | None, pad_token: str | None
) -> HuggingFaceTokenizer:
  """A tokenizer.json; stop and pad from tokenizer_config.json where not given."""
  import tokenizers

  content = _read_bytes(path)
  try:
    backend = tokenizers.Tokenizer.from_str(content.decode())
  except Exception as error:
    raise ValueError(f'{path} is not a complete tokenizer.json: {_one_line(error)}') from None
  config: dict[str, Any] = {}
  if (path.parent / 'tokenizer_config.json').exists():
    config = _read_json_object(path.parent / 'tokenizer_config.json')

  def configured(name: str) -> str | None:
    value = config.get(name)
    return value.get('content') if isinstance(value, dict) else value

  if stop_tokens is None:
    if configured('eos_token') is None:
      raise ValueError(f'{path.parent} names no eos_token: pass stop_tokens')
    stop_tokens = (configured('eos_token'),)
  pad_token = pad_token or configured('pad_token') or stop_tokens[0]
  return HuggingFaceTokenizer(
      backend,
      stop_tokens=stop_tokens,
      pad_token=pad_token,
      source_hash=hashlib.sha256(content).hexdigest(),
  )


def _from_byte_level_files(
    vocabulary_path: pathlib.Path,
    merges_path: pathlib.Path,
    stop_tokens: Sequence[str] | None,
    pad_token: str | None,
) -> HuggingFaceTokenizer:
  """Byte-level BPE from a vocabulary and a list of merges: GPT-2 or Qwen2."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  vocabulary = _read_json_object(vocabulary_path)
  merges = _read_merges(merges_path)
  is_gpt2 = _END_OF_TEXT in vocabulary
  special = (_END_OF_TEXT,) if is_gpt2 else _QWEN2_SPECIAL
  # Every token is a byte, a special token, or was made by one merge.
  if len(vocabulary) != 256 + len(merges) + (1 if is_gpt2 else 0):
    raise ValueError(
        f'{merges_path} has {len(merges)} merges, which does not fit the {len(vocabulary)} '
        f'tokens of {vocabulary_path.name}: one of the files is truncated'
    )
  try:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
  except Exception as error:
    raise ValueError(f'{merges_path} does not fit {vocabulary_path}: {_one_line(error)}') from None
  if is_gpt2:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  else:
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(tokenizers.Regex(_QWEN2_SPLIT), behavior='isolated'),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(list(special))
  default_stops = (_END_OF_TEXT,) if is_gpt2 else (_END_OF_TEXT, '<|im_end|>')
  digest = hashlib.sha256(_read_bytes(vocabulary_path) + b'\0' + _read_bytes(merges_path))
  return HuggingFaceTokenizer(
      backend,
      stop_tokens=default_stops if stop_tokens is None else stop_tokens,
      pad_token=pad_token or _END_OF_TEXT,
      source_hash=_fingerprint(digest.hexdigest(), special, None if is_gpt2 else _QWEN2_SPLIT),
  )


def _read_bytes(path: pathlib.Path) -> bytes:
  """The file's content; one clear line if there is none."""
  try:
    return path.read_bytes()
  except OSError as error:
    raise ValueError(f'cannot read the tokenizer file {path}: {error.strerror}') from None


def _read_json_object(path: pathlib.Path) -> dict[str, Any]:
  """The JSON object in a file."""
  try:
    value = json.loads(_read_bytes(path))
  except ValueError as error:
    if str(error).startswith('cannot read'):
      raise
    raise ValueError(f'{path} is not complete JSON: {_one_line(error)}') from None
  if not isinstance(value, dict):
    raise ValueError(f'{path} must hold a JSON object, got {type(value).__name__}')
  return value


def _read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
  """The merges of a text file, one pair a line after an optional version line."""
  try:
    lines = _read_bytes(path).decode().split('\n')
  except UnicodeDecodeError:
    raise ValueError(f'{path} is not UTF-8: the file is damaged or truncated') from None
  start = 1 if lines[0].startswith('#version') else 0
  merges = []
  for number, line in enumerate(lines[start:], start + 1):
    pair = line.rstrip('\r').split(' ')
    if pair == ['']:
      continue
    if len(pair) != 2 or not all(pair):
      raise ValueError(f'{path}, line {number}: expected two tokens and one space, got {line!r}')
    merges.append((pair[0], pair[1]))
  return merges


def _one_line(error: Exception) -> str:
  """An error's message without line ends."""
  return ' '.join(str(error).split())


class CompactTokenizer:
  """A byte-level BPE tokenizer reduced to a part of its vocabulary; see `compact`.

  Attributes:
    base: the full tokenizer.
    kept: the ids of `base` that are kept, ascending; id i here is kept[i] there.
    vocab_size: how many are kept.
    pad_id: that of `base`, renumbered.
    stop_ids: those of `base`, renumbered.
    fingerprint: a short hash of the base's fingerprint and the kept ids.
  """

  def __init__(
      self, base: HuggingFaceTokenizer, kept: Iterable[int], parts: dict[int, tuple[int, int]]
  ):
    """Keeps the ids `kept` of `base`.

    Args:
      base: the full tokenizer.
      kept: must hold all bytes' tokens and all special ids.
      parts: for each id that a merge made, the two ids that were merged.
    """
    self.base = base
    self.kept = tuple(sorted(kept))
    self.vocab_size = len(self.kept)
    self.fingerprint = _fingerprint('compact', base.fingerprint, self.kept)
    self._parts = parts
    self._pieces = {old: (new,) for new, old in enumerate(self.kept)}
    self.pad_id = self._pieces[base.pad_id][0]
    self.stop_ids = tuple(self._pieces[token][0] for token in base.stop_ids)

  def encode(self, text: str) -> list[int]:
    """Ids of `text`; a token that was not kept becomes the kept ones it consists of."""
    return [piece for token in self.base.encode(text) for piece in self._split(token)]

  def _split(self, token: int) -> tuple[int, ...]:
    """The new ids of an id of the base; undoes merges until each part is kept."""
    pieces = self._pieces.get(token)
    if pieces is None:
      left, right = self._parts[token]
      pieces = self._pieces[token] = self._split(left) + self._split(right)
    return pieces

  def decode(self, ids: Sequence[int]) -> str:
    """The text of `ids`; special ids are dropped."""
    ids = [int(token) for token in ids]
    outside = [token for token in ids if not 0 <= token < self.vocab_size]
    if outside:
      raise ValueError(f'ids must lie in [0, {self.vocab_size}), got {outside[0]}')
    return self.base.decode([self.kept[token] for token in ids])


def compact(
    tokenizer: HuggingFaceTokenizer, texts: Iterable[str], *, max_size: int | None = None
) -> CompactTokenizer:
  """Reduces a byte-level BPE vocabulary to what `texts` use, for small models.

  Kept are the 256 bytes, the special tokens and the tokens that occur in `texts`. Any
  text can still be encoded: a token that was not kept is split along its merges, down
  to bytes if need be, so that decoding gives the very same text.

  Args:
    tokenizer: a byte-level BPE tokenizer (Qwen2, GPT-2, or a tokenizer.json of one).
    texts: what the model will be trained on.
    max_size: an upper limit of the vocabulary, met by keeping the tokens that occur
      most often (of equally frequent ones, the lower id); None keeps all.

  Returns:
    The reduced tokenizer.

  Raises:
    ValueError: `tokenizer` is no byte-level BPE, or `max_size` is below what must be
      kept.
  """
  parts, kept = _merge_tree(tokenizer)
  kept |= {tokenizer.pad_id, *tokenizer.stop_ids}
  counts: collections.Counter[int] = collections.Counter()
  for text in texts:
    counts.update(tokenizer.encode(text))
  by_frequency = sorted(counts.keys() - kept, key=lambda token: (-counts[token], token))
  if max_size is not None:
    if max_size < len(kept):
      raise ValueError(
          f'max_size must be at least {len(kept)} (bytes and special tokens), got {max_size}'
      )
    by_frequency = by_frequency[: max_size - len(kept)]
  return CompactTokenizer(tokenizer, kept.union(by_frequency), parts)


def _merge_tree(
    tokenizer: HuggingFaceTokenizer,
) -> tuple[dict[int, tuple[int, int]], set[int]]:
  """For each merged id its two parts; and the ids that no merge made."""
  from tokenizers import pre_tokenizers

  model = json.loads(tokenizer.backend.to_str())['model']
  vocabulary = model.get('vocab')
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  if model['type'] != 'BPE' or not all(byte in vocabulary for byte in alphabet):
    raise ValueError('compact needs a byte-level BPE tokenizer, which holds all 256 bytes')
  pairs = (
      tuple(merge.split(' ')) if isinstance(merge, str) else tuple(merge)
      for merge in model['merges']
  )
  parts: dict[int, tuple[int, int]] = {}
  for left, right in pairs:
    # Where two merges make the same token, the first one is the one that is used.
    parts.setdefault(vocabulary[left + right], (vocabulary[left], vocabulary[right]))
  everything = tokenizer.backend.get_vocab(with_added_tokens=True).values()
  return parts, set(everything) - parts.keys()
