"""Tokenizers with the common interface `types.Tokenizer`: text to ids and back.

The libraries (tokenizers, sentencepiece) are imported where they are
used, so that a run with characters needs neither.
"""

import collections
import copy
import functools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from jaxrl_llm.data import model_files, sentencepiece_tokenizer, tokenizer_files
from jaxrl_llm.types import Tokenizer


class CharacterTokenizer:
  """A tokenizer with one id per character: 0 is padding, 1 is stop, then the alphabet in order.

  Attributes:
    alphabet: the characters, in the order of their ids.
    vocab_size: 2 + the number of characters.
    pad_id: 0.
    stop_ids: (1,).
    start_ids: ().
    fingerprint: short hash of the alphabet.
    full_fingerprint: the same.
  """

  pad_id = 0
  stop_ids = (1,)
  start_ids = ()

  def __init__(self, alphabet: str):
    """Initialises the tokenizer with the distinct characters of `alphabet`."""
    if not alphabet or len(set(alphabet)) != len(alphabet):
      raise ValueError(f'alphabet must be one or more distinct characters, got {alphabet!r}')
    self.alphabet = alphabet
    self.vocab_size = len(alphabet) + 2
    self.fingerprint = self.full_fingerprint = model_files.fingerprint('character', alphabet)
    self._ids = {character: index + 2 for index, character in enumerate(alphabet)}

  def encode(self, text: str) -> list[int]:
    """Returns the ids of the characters of `text`; raises ValueError outside the alphabet."""
    try:
      return [self._ids[character] for character in text]
    except KeyError as error:
      raise ValueError(
          f'character {error.args[0]!r} is not in the alphabet {self.alphabet!r}'
      ) from None

  def encode_continuation(self, text: str) -> list[int]:
    """Returns the ids of `text` as a continuation; the same as `encode`."""
    return self.encode(text)

  def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the ids of `text`, and the half-open character range of each."""
    return self.encode(text), [(index, index + 1) for index in range(len(text))]

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the characters of `ids`; padding and stop are dropped, other ids become U+FFFD."""
    return ''.join(
        self.alphabet[token - 2] if 2 <= token < self.vocab_size else tokenizer_files.REPLACEMENT
        for token in map(int, ids) if token not in (self.pad_id, *self.stop_ids)
    )


class HuggingFaceTokenizer:
  """A tokenizer of the `tokenizers` library.

  Special tokens are recognised in the encoded text, as chat templates require,
  and dropped in decoding.

  Attributes:
    backend: the `tokenizers.Tokenizer`.
    vocab_size: largest id plus 1, including added tokens.
    pad_id: padding id.
    stop_ids: ids of the stop tokens; the first ends demonstrations.
    start_ids: ids at the start of a plain text.
    fingerprint: short hash of everything that determines the ids of a text, with `start_ids`.
    full_fingerprint: the same with `stop_ids` and `pad_id`.
  """

  def __init__(self, loaded: tokenizer_files.Loaded):
    """Wraps a loaded tokenizer; see `load_tokenizer`."""
    self.backend = loaded.backend
    # No tokens are added around a text here, and a post-processor would shorten the offsets.
    self.backend.post_processor = None
    self.vocab_size = tokenizer_files.size_of(loaded.backend)
    self.pad_id = loaded.pad_id
    self.stop_ids = loaded.stop_ids
    self.start_ids = loaded.start_ids
    self._source = loaded.source_hash
    self.fingerprint = model_files.fingerprint(
        'hugging_face ids', self.start_ids, loaded.ids_hash
    )

  @property
  def full_fingerprint(self) -> str:
    """Short hash of everything, including stop and pad ids."""
    return model_files.fingerprint(
        'hugging_face', self.stop_ids, self.pad_id, self.start_ids, self._source
    )

  def token(self, number: int) -> str:
    """Returns the text of an id in the vocabulary."""
    return self.backend.id_to_token(number)

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without start or stop tokens."""
    tokenizer_files.check_text(text)
    return self.backend.encode(text, add_special_tokens=False).ids

  def encode_continuation(self, text: str) -> list[int]:
    """Returns the ids of `text` as the continuation of another text, without a leading space."""
    if self._continuing is None:
      return self.encode(text)
    ids, offsets = self.encode_with_offsets(text)
    added = self.backend.get_added_tokens_decoder()
    # From the first added token on, spaces are added as usual.
    count = next((index for index, token in enumerate(ids) if token in added), len(ids))
    end = offsets[count][0] if count < len(ids) else len(text)
    return self._continuing.encode(text[:end], add_special_tokens=False).ids + ids[count:]

  @functools.cached_property
  def _continuing(self) -> Any | None:
    """Backend for continuations; None if it is `backend`."""
    return tokenizer_files.continuing(self.backend)

  def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the ids of `text`, and the half-open character range of each."""
    tokenizer_files.check_text(text)
    encoding = self.backend.encode(text, add_special_tokens=False)
    return encoding.ids, tokenizer_files.cover_empty(encoding.offsets)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`; stop and special ids are dropped, unused ids become U+FFFD.

    A model's embedding may have more rows than the tokenizer has ids. Such ids must
    remain visible in the text: an answer with one in the middle is not correct. A
    padding id that is an ordinary token is part of the text.
    """
    return _decode_known(
        ids,
        dropped=set(self.stop_ids),
        known=lambda token: token >= 0 and self.backend.id_to_token(token) is not None,
        decode=self.backend.decode,
    )


def _decode_known(ids: Sequence[int], *, dropped: set[int], known: Any, decode: Any) -> str:
  """Decodes runs of known ids, with U+FFFD for each unknown id."""
  pieces: list[str] = []
  run: list[int] = []
  for token in map(int, ids):
    if token in dropped:
      continue
    if known(token):
      run.append(token)
    else:
      pieces += [decode(run), tokenizer_files.REPLACEMENT]
      run = []
  return ''.join(pieces) + decode(run)


def load_tokenizer(
    path: str | pathlib.Path,
    *,
    stop_tokens: Sequence[str] | None = None,
    pad_token: str | None = None,
) -> Tokenizer:
  """Loads the tokenizer at `path` with the files next to it.

  tokenizer_config.json, special_tokens_map.json and added_tokens.json name tokens;
  generation_config.json (or else config.json) lists the stop ids in addition to the
  eos_token. The ids are those of transformers. For some classes transformers rebuilds a
  tokenizer instead of using its file as written; here this is done only for LlamaTokenizer
  (`tokenizer_files`). Special tokens in a text are encoded as their ids.

  Args:
    path: a tokenizer.json, a SentencePiece .model file, or a directory with one of:
      tokenizer.json; vocab.json and merges.txt (GPT-2 or Qwen2); encoder.json and
      vocab.bpe (GPT-2); tokenizer.model, or one other .model file.
    stop_tokens: overrides the stop tokens.
    pad_token: overrides the padding token.

  Returns:
    The tokenizer.

  Raises:
    ValueError: a file is missing, damaged or truncated, or the files contradict one
      another; one line that names the file.
  """
  path = pathlib.Path(path)
  folder = path if path.is_dir() else path.parent
  names = sorted({*_FILES, *(model.name for model in folder.glob('*.model')), path.name})
  contents = tuple(model_files.digest(folder / name) for name in names)
  stops = None if stop_tokens is None else tuple(stop_tokens)
  return _load(path, stops, pad_token, contents)


# What `load_tokenizer` reads; and *.model.
_FILES = (
    *model_files.NAMES, 'tokenizer.json', 'vocab.json', 'merges.txt', 'encoder.json', 'vocab.bpe')


@functools.lru_cache(maxsize=2)
def _load(
    path: pathlib.Path, stop_tokens: tuple[str, ...] | None, pad_token: str | None,
    contents: tuple[str, ...],
) -> Tokenizer:
  """Loads a tokenizer, or returns it again: a run needs it several times, at a second each.

  Args:
    path: as in `load_tokenizer`.
    stop_tokens: as in `load_tokenizer`.
    pad_token: as in `load_tokenizer`.
    contents: digests of the files, so that changed files are read again.

  Returns:
    The tokenizer.
  """
  del contents
  roles: dict[str, Any] = {'stop_tokens': stop_tokens, 'pad_token': pad_token}
  if path.is_dir() and (path / 'tokenizer.json').exists():
    path = path / 'tokenizer.json'
  if not path.is_dir():
    if path.suffix == '.json':
      return HuggingFaceTokenizer(tokenizer_files.from_tokenizer_json(path, **roles))
    return sentencepiece_tokenizer.SentencePieceTokenizer(path, **roles)

  for vocabulary, merges in (('vocab.json', 'merges.txt'), ('encoder.json', 'vocab.bpe')):
    if (path / vocabulary).exists() or (path / merges).exists():
      return HuggingFaceTokenizer(
          tokenizer_files.from_byte_level_files(path / vocabulary, path / merges, **roles)
      )

  models = [path / 'tokenizer.model']
  if not models[0].exists():
    models = sorted(path.glob('*.model'))
  if len(models) == 1:
    return sentencepiece_tokenizer.SentencePieceTokenizer(models[0], **roles)

  raise ValueError(
      f'no tokenizer in {path}: it must contain tokenizer.json, vocab.json and merges.txt, '
      'encoder.json and vocab.bpe, or one .model file'
  )


def full_fingerprint(tokenizer: Tokenizer) -> str:
  """Returns a short hash of everything that affects ids and samples, with stop and pad ids."""
  return getattr(tokenizer, 'full_fingerprint', tokenizer.fingerprint)


def is_same(tokenizer: Tokenizer, fingerprint: str) -> bool:
  """True if a fingerprint saved with parameters is that of `tokenizer`.

  Directories written before stop and pad ids were excluded have the full fingerprint.
  """
  return fingerprint in (tokenizer.fingerprint, full_fingerprint(tokenizer))


def with_stop_ids(tokenizer: Tokenizer, stop_ids: Sequence[int]) -> Tokenizer:
  """Returns the same tokenizer with other stop ids."""
  if tuple(stop_ids) == tokenizer.stop_ids:
    return tokenizer
  changed = copy.copy(tokenizer)
  changed.stop_ids = tuple(stop_ids)
  if isinstance(tokenizer, CompactTokenizer):
    changed.base = with_stop_ids(tokenizer.base, [tokenizer.kept_ids[token] for token in stop_ids])
  return changed


def stop_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
  """Returns the texts of the stop ids, as `load_tokenizer` takes them; () for characters."""
  if isinstance(tokenizer, CharacterTokenizer):
    return ()
  return tuple(map(tokenizer.token, tokenizer.stop_ids))


class CompactTokenizer:
  """A byte-level BPE tokenizer reduced to a part of its vocabulary; see `compact`.

  Attributes:
    base: the full tokenizer.
    kept_ids: retained ids of `base`, ascending; id i of this tokenizer is kept_ids[i] of `base`.
    vocab_size: number of retained ids.
    pad_id: padding id of `base`, renumbered.
    stop_ids: stop ids of `base`, renumbered.
    start_ids: start ids of `base`, renumbered.
    fingerprint: short hash of the base's fingerprint and the retained ids.
    full_fingerprint: the same with the base's full fingerprint.
  """

  def __init__(
      self, base: HuggingFaceTokenizer, kept_ids: Iterable[int], parts: dict[int, tuple[int, int]]
  ):
    """Reduces `base` to the ids `kept_ids`.

    Args:
      base: the full tokenizer.
      kept_ids: ids to retain; must include the tokens of all bytes and all special ids.
      parts: {id made by a merge: the two merged ids}.
    """
    self.base = base
    self.kept_ids = tuple(sorted(kept_ids))
    self.vocab_size = len(self.kept_ids)
    self.fingerprint = model_files.fingerprint('compact', base.fingerprint, self.kept_ids)
    self._parts = parts
    self._pieces = {old: (new,) for new, old in enumerate(self.kept_ids)}
    self.pad_id = self._pieces[base.pad_id][0]
    self.stop_ids = tuple(self._pieces[token][0] for token in base.stop_ids)
    self.start_ids = tuple(self._pieces[token][0] for token in base.start_ids)

  @property
  def full_fingerprint(self) -> str:
    """Short hash of everything, including stop and pad ids."""
    return model_files.fingerprint('compact', self.base.full_fingerprint, self.kept_ids)

  def token(self, number: int) -> str:
    """Returns the text of an id in the vocabulary."""
    return self.base.token(self.kept_ids[number])

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`; a removed token is split into retained ones."""
    return self._split_all(self.base.encode(text))

  def encode_continuation(self, text: str) -> list[int]:
    """Returns the ids of `text` as the continuation of another text, without a leading space."""
    return self._split_all(self.base.encode_continuation(text))

  def _split_all(self, tokens: list[int]) -> list[int]:
    """Converts ids of the base to new ids."""
    return [piece for token in tokens for piece in self._split(token)]

  def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the ids of `text`, and for each the character range of its token in the base."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for token, span in zip(*self.base.encode_with_offsets(text)):
      pieces = self._split(token)
      ids += pieces
      offsets += [span] * len(pieces)
    return ids, offsets

  def _split(self, token: int) -> tuple[int, ...]:
    """Converts an id of the base to new ids; undoes merges until every part is retained."""
    pieces = self._pieces.get(token)
    if pieces is None:
      left, right = self._parts[token]
      pieces = self._pieces[token] = self._split(left) + self._split(right)
    return pieces

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`; stop and special ids are dropped, unused ids become U+FFFD."""
    return _decode_known(
        ids,
        dropped=set(self.stop_ids),
        known=lambda token: 0 <= token < self.vocab_size,
        decode=lambda run: self.base.decode([self.kept_ids[token] for token in run]),
    )


def compact(
    tokenizer: HuggingFaceTokenizer, texts: Iterable[str], *, max_size: int | None = None
) -> CompactTokenizer:
  """Reduces a byte-level BPE vocabulary to the tokens used by `texts`, for small models.

  The 256 bytes, the special tokens and the tokens that occur in `texts` are retained. Any
  text can still be encoded: a removed token is split along its merges, down
  to bytes if necessary, so that decoding gives exactly the same text.

  Args:
    tokenizer: a byte-level BPE tokenizer (Qwen2, GPT-2, or a tokenizer.json of one).
    texts: training texts of the model.
    max_size: maximum size of the vocabulary, which retains the most frequent tokens
      (of equally frequent ones, the lower id); None retains all.

  Returns:
    The reduced tokenizer.

  Raises:
    ValueError: `tokenizer` is not byte-level BPE, or `max_size` is too small for the
      required tokens.
  """
  parts, kept_ids = _merge_tree(tokenizer)
  counts: collections.Counter[int] = collections.Counter()
  for text in texts:
    counts.update(tokenizer.encode(text))

  by_frequency = sorted(counts.keys() - kept_ids, key=lambda token: (-counts[token], token))
  if max_size is not None:
    if max_size < len(kept_ids):
      raise ValueError(
          f'max_size must be at least {len(kept_ids)} (bytes and special tokens), got {max_size}'
      )
    by_frequency = by_frequency[: max_size - len(kept_ids)]
  return CompactTokenizer(tokenizer, kept_ids.union(by_frequency), parts)


def restore_compact(tokenizer: HuggingFaceTokenizer, kept_ids: Iterable[int]) -> CompactTokenizer:
  """Rebuilds a tokenizer made by `compact` from its base and its ids.

  Args:
    tokenizer: the base.
    kept_ids: `CompactTokenizer.kept_ids`.

  Returns:
    The reduced tokenizer.

  Raises:
    ValueError: `tokenizer` is not byte-level BPE, or is not the base of these ids.
  """
  kept_ids = set(kept_ids)
  parts, needed = _merge_tree(tokenizer)
  if not needed <= kept_ids or not kept_ids <= needed | parts.keys():
    raise ValueError(
        f'the {len(kept_ids)} retained ids are not part of this tokenizer: another one was reduced')
  return CompactTokenizer(tokenizer, kept_ids, parts)


def _merge_tree(
    tokenizer: HuggingFaceTokenizer,
) -> tuple[dict[int, tuple[int, int]], set[int]]:
  """Returns {merged id: its two parts}, and the required ids: special ids and unmerged ones."""
  from tokenizers import pre_tokenizers

  model = json.loads(tokenizer.backend.to_str())['model']
  vocabulary = model.get('vocab')
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  if model['type'] != 'BPE' or not all(byte in vocabulary for byte in alphabet):
    raise ValueError('compact needs a byte-level BPE tokenizer with all 256 bytes')

  pairs = (
      tuple(merge.split(' ')) if isinstance(merge, str) else tuple(merge)
      for merge in model['merges']
  )
  parts: dict[int, tuple[int, int]] = {}
  for left, right in pairs:
    # If two merges make the same token, the first one applies.
    parts.setdefault(vocabulary[left + right], (vocabulary[left], vocabulary[right]))

  everything = tokenizer.backend.get_vocab(with_added_tokens=True).values()
  special = {tokenizer.pad_id, *tokenizer.stop_ids, *tokenizer.start_ids}
  return parts, set(everything) - parts.keys() | special
