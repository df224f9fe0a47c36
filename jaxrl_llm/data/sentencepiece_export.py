"""Converts SentencePiece models to the `tokenizers` library, as far as it supports them.

Unigram and BPE models are rebuilt from their pieces, scores and normaliser. The result is
compared with the model on a few texts, and is rejected if they differ.
"""

from collections.abc import Iterator
from typing import Any

from jaxrl_llm.data import model_files, tokenizer_files
from jaxrl_llm.data.sentencepiece_tokenizer import SentencePieceTokenizer

_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type.
_USER_DEFINED = 4  # A type of piece.
_TEXTS = (
    '', 'Hello, world: 12 apples.', 'two  spaces and  three   of them ', 'x\n\n\ty \u00a0z',
    "don't 3.14 1,000", 'Gr\u00fc\u00dfe \u6771\u4eac \U0001f600\u200d!', 'e\u0301 \u00e9 \ufb01',
    'The user asks; the assistant answers it.', 'qzxqzx\u0416\u0416 a',
)


def to_backend(tokenizer: SentencePieceTokenizer) -> Any | None:
  """Converts a tokenizer to a `tokenizers.Tokenizer`.

  Args:
    tokenizer: the model with its added tokens.

  Returns:
    The backend, or None if the library gives different ids. A text that begins with a space may
    get one space fewer, because the library then adds no leading space.
  """
  import tokenizers

  spec = _Spec(tokenizer.content)
  model = _model(tokenizer, spec)
  if model is None:
    return None

  backend = tokenizers.Tokenizer(model)
  _write_spaces(backend, tokenizer, spec)
  added = {number: model_files.AddedToken(text, special=False)
           for number, text in spec.defined.items()} | tokenizer.added
  backend.add_tokens([
      tokenizers.AddedToken(**token._asdict()) for _, token in sorted(added.items())
  ])

  contents = [token.content for token in added.values()]
  texts = [*_TEXTS, *(f'{token}the{token}the {token} 12' for token in contents)]
  encode = lambda text: backend.encode(text, add_special_tokens=False).ids
  if any(encode(text) != tokenizer.encode(text) for text in texts):
    return None
  return backend


class _Spec:
  """Text processing of a model file.

  Attributes:
    model_type: `_UNIGRAM`, `_BPE` or another.
    byte_fallback: encode an unknown character as its bytes.
    charsmap: the normaliser's table; b'' for none.
    adds_prefix: add a space at the start of a text.
    removes_spaces: collapse repeated spaces, and strip them at both ends.
    defined: {id: piece} of user-defined pieces, which are split off a text.
    is_plain: the model needs no other processing.
  """

  def __init__(self, content: bytes):
    """Reads a ModelProto by field numbers."""
    whole = dict(_fields(content))  # Of repeated fields, keeps the last.
    pieces = [dict(_fields(piece)) for number, piece in _fields(content) if number == 1]
    self.defined = {
        index: piece[1].decode() for index, piece in enumerate(pieces)
        if piece.get(3) == _USER_DEFINED
    }
    trainer, normalizer = (dict(_fields(whole.get(number, b''))) for number in (2, 3))
    self.model_type = trainer.get(3, _UNIGRAM)
    self.byte_fallback = bool(trainer.get(35, 0))
    self.charsmap = normalizer.get(2, b'')
    self.adds_prefix = bool(normalizer.get(3, 1))
    self.removes_spaces = bool(normalizer.get(4, 1))
    escapes, suffixes = normalizer.get(5, 1), trainer.get(24, 0)
    self.is_plain = bool(escapes) and not suffixes and not normalizer.get(6)


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
  """Yields (number, value) of each field of a protocol buffer; values are undecoded."""
  position = 0

  def number() -> int:
    nonlocal position
    value = shift = 0
    while True:
      byte = content[position]
      position += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while position < len(content):
    key = number()
    match key & 7:
      case 0:
        yield key >> 3, number()
      case 2:
        size = number()
        yield key >> 3, content[position : position + size]
        position += size
      case kind:
        size = {1: 8, 5: 4}[kind]
        yield key >> 3, content[position : position + size]
        position += size


def _model(tokenizer: SentencePieceTokenizer, spec: _Spec) -> Any | None:
  """Builds the library's model; None if it has no equivalent."""
  from tokenizers import models

  pieces, count = tokenizer.processor, tokenizer.processor.vocab_size()
  names = [pieces.id_to_piece(number) for number in range(count)]
  unknown = pieces.unk_id()
  if not spec.is_plain or unknown < 0:
    return None
  if spec.model_type == _UNIGRAM:
    scores = [(name, pieces.get_score(number)) for number, name in enumerate(names)]
    return models.Unigram(scores, unk_id=unknown, byte_fallback=spec.byte_fallback)
  if spec.model_type != _BPE:
    return None

  vocabulary = {name: number for number, name in enumerate(names)}
  merges = sorted(
      (-pieces.get_score(number), vocabulary[name[:cut]], name[:cut], name[cut:])
      for name, number in vocabulary.items() for cut in range(1, len(name))
      if name[:cut] in vocabulary and name[cut:] in vocabulary
  )

  return models.BPE(
      vocab=vocabulary, merges=[merge[2:] for merge in merges], unk_token=names[unknown],
      fuse_unk=True, byte_fallback=spec.byte_fallback,
  )


def _write_spaces(backend: Any, tokenizer: SentencePieceTokenizer, spec: _Spec) -> None:
  """Sets the normaliser and the leading space of `backend`."""
  from tokenizers import Regex, decoders, normalizers, pre_tokenizers

  parts = [normalizers.Precompiled(spec.charsmap)] if spec.charsmap else []
  if spec.removes_spaces:
    ends = normalizers.Replace(Regex(rf'\A +|[ {tokenizer_files.SPACE}]+\z'), '')
    parts += [ends, normalizers.Replace(Regex(' {2,}'), ' ')]
  backend.normalizer = normalizers.Sequence(parts)

  scheme = 'never'
  if spec.adds_prefix and not tokenizer.never_prefixed:
    scheme = 'always' if tokenizer.is_legacy else 'first'

  backend.pre_tokenizer = pre_tokenizers.Metaspace(
      replacement=tokenizer_files.SPACE, prepend_scheme=scheme, split=False
  )
  strip = [] if scheme == 'never' else [decoders.Strip(content=' ', left=1)]
  backend.decoder = decoders.Sequence([
      decoders.Replace(tokenizer_files.SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(),
      *strip,
  ])
