"""Tokenizer for SentencePiece .model files, with the special tokens that chat templates write."""

import hashlib
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxrl_llm.data import model_files, tokenizer_files

# Concatenated protocol buffers are merged. This is a ModelProto that sets only
# normalizer_spec.add_dummy_prefix = false.
_NO_SPACE_IN_FRONT = b'\x1a\x02\x18\x00'


class SentencePieceTokenizer:
  """A SentencePiece model file and the files next to it.

  Text is first split at special tokens: the model's control and unknown pieces, and the
  added tokens of tokenizer_config.json. The segments between them go through the
  model and its normaliser (commonly the identity in language models; some collapse
  repeated spaces), so that `decode(encode(text))` is the normalised text. The leading
  space of a model is added only at the start of a text, and with `"legacy": true` in
  tokenizer_config.json also after each special token. A LlamaTokenizer adds none to a text that
  already begins with a space.

  This matches transformers, with two exceptions: the model itself handles the pieces that it
  declares user-defined; and without a tokenizer_class, the model file decides about the leading
  space (transformers then omits it).

  Attributes:
    vocab_size: largest id plus 1, including added tokens.
    pad_id: id of the pad_token, or else the model's padding id, or else the first stop id.
    stop_ids: id of the eos_token (or else the model's end of sentence) and the stop ids of the
      model's config; the first ends demonstrations.
    start_ids: id of the bos_token, if tokenizer_config.json has `"add_bos_token": true`.
    fingerprint: short hash of everything that determines the ids of a text, with `start_ids`.
    full_fingerprint: the same with `stop_ids` and `pad_id`.
    content: contents of the model file.
    processor: the library's processor for it.
    added: {id: token} of the tokens at which text is split.
    is_legacy: add a space before each segment.
    never_prefixed: never add a space, even if the model does.
  """

  def __init__(
      self,
      path: str | pathlib.Path,
      *,
      stop_tokens: Sequence[str] | None = None,
      pad_token: str | None = None,
  ):
    """Loads the model file at `path`; raises ValueError if it is missing or damaged."""
    path = pathlib.Path(path)
    files = model_files.read(path.parent)
    self.content = content = model_files.read_bytes(path)
    self.processor = self._first = _processor(content, path)
    self._later = _processor(content + _NO_SPACE_IN_FRONT, path)
    self._num_pieces = self._first.vocab_size()

    self.added = added = _added_tokens(self._first, files)
    self._ids = {token.content: number for number, token in added.items()}
    self._pattern = _pattern(added.values(), path)

    self.vocab_size = max([self._num_pieces - 1, *added]) + 1
    self.stop_ids, self.pad_id = self._roles(files, stop_tokens, pad_token)
    self.start_ids = self._start(files)

    special = {number for number, token in added.items() if token.special}
    # An unknown piece must remain visible, so that '4<unk>2' does not become '42'.
    self._dropped = special - {self._first.unk_id()} | special & {self.pad_id}
    self._written = {
        number: token.content for number, token in added.items()
        # A padding piece is split off a text in encoding, but decoded by the model.
        if number not in special and (number != self.pad_id or number >= self._num_pieces)
    }

    self.never_prefixed = files.config.get('add_prefix_space') is False
    if self.never_prefixed:
      self._first = self._later

    name = str(files.config.get('tokenizer_class')).removesuffix('Fast')
    self._is_llama = name == 'LlamaTokenizer'
    self.is_legacy = bool(files.config.get('legacy'))
    self._source = (
        hashlib.sha256(content).hexdigest(), sorted(added.items()), self._is_llama,
        self.is_legacy, self.never_prefixed,
    )
    self.fingerprint = model_files.fingerprint(
        'sentencepiece ids', *self._source, self.start_ids
    )

  @property
  def full_fingerprint(self) -> str:
    """Short hash of everything, including stop and pad ids."""
    return model_files.fingerprint(
        'sentencepiece', *self._source, self.stop_ids, self.start_ids, self.pad_id
    )

  def token(self, number: int) -> str:
    """Returns the text of an id in the vocabulary."""
    added = {token: text for text, token in self._ids.items()}
    return added[number] if number in added else self._first.id_to_piece(number)

  def _roles(
      self,
      files: model_files.TokenFiles,
      stop_tokens: Sequence[str] | None,
      pad_token: str | None,
  ) -> tuple[tuple[int, ...], int]:
    """Returns (stop ids, padding id); defaults to the model's own."""
    end, padding = self._first.eos_id(), self._first.pad_id()
    stops, pad = tokenizer_files.stop_and_pad(
        files, self._id_of, self.vocab_size, stop_tokens=stop_tokens, pad_token=pad_token,
        default_stops=[self._first.id_to_piece(end)] if end >= 0 else [],
    )
    is_named = pad_token or 'pad_token' in files.names
    return stops, pad if is_named or padding < 0 else padding

  def _start(self, files: model_files.TokenFiles) -> tuple[int, ...]:
    """Returns the ids at the start of a plain text."""
    if not files.config.get('add_bos_token'):
      return ()
    start = self._first.bos_id()
    if 'bos_token' in files.names:
      start = self._ids[files.names['bos_token']]
    return (start,) if start >= 0 else ()

  def _id_of(self, text: str) -> int | None:
    """Returns the id of an added token or of a piece; None if there is none."""
    return self._ids.get(text, _piece_id(self._first, text))

  def encode(self, text: str) -> list[int]:
    """Returns the ids of `text`, without start or stop tokens."""
    return self._encode(text)[0]

  def encode_continuation(self, text: str) -> list[int]:
    """Returns the ids of `text` as the continuation of another text, without a leading space."""
    return self._encode(text, begins=False)[0]

  def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the ids of `text`, and the half-open character range of each."""
    return self._encode(text)

  def _encode(
      self, text: str, *, begins: bool = True
  ) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns ids and ranges; `begins` is False for the continuation of another text."""
    tokenizer_files.check_text(text)
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    end = 0

    for match in [*self._pattern.finditer(text), None]:
      begin = len(text) if match is None else match.start()
      if begin > end:
        segment = text[end:begin]
        model = self._model(segment, end) if end or begins else self._later
        pieces = model.encode_as_offset_mapping(segment)
        ids += pieces['ids']
        offsets += [(end + first, end + last) for first, last in pieces['offsets']]

      if match is not None:
        end = match.end()
        content = match.group()
        ids.append(self._ids[content if content in self._ids else content.strip()])
        offsets.append((begin, end))

    return ids, tokenizer_files.cover_empty(offsets)

  def _model(self, segment: str, begin: int) -> Any:
    """Returns the processor for a segment, with or without a leading space."""
    if begin and not self.is_legacy:
      return self._later
    has_space = segment[0] in (' ', tokenizer_files.SPACE)
    return self._later if self._is_llama and has_space else self._first

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`; stop and special ids are dropped, unused ids become U+FFFD."""
    texts: list[str] = []
    run: list[int] = []
    dropped = self._dropped.union(self.stop_ids)

    def end_run() -> None:
      if run:
        # Only the first piece of a text may lose its leading space.
        texts.append((self._later if texts else self._first).decode(run))
        run.clear()

    for token in map(int, ids):
      if token in dropped:
        continue
      if token not in self._written and 0 <= token < self._num_pieces:
        run.append(token)
        continue
      end_run()
      texts.append(self._written.get(token, tokenizer_files.REPLACEMENT))

    end_run()
    return ''.join(texts)


def _processor(content: bytes, path: pathlib.Path) -> Any:
  """Returns the library's processor for a model file's contents."""
  import sentencepiece

  try:
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    size = processor.vocab_size()
  except (RuntimeError, OSError):
    size = 0
  if not size:
    raise ValueError(f'{path} is not a complete SentencePiece model ({len(content)} bytes)')
  return processor


def _piece_id(processor: Any, text: str) -> int | None:
  """Returns the id of a piece; None if the model has no such piece."""
  number = processor.piece_to_id(text)
  return number if processor.id_to_piece(number) == text else None


def _added_tokens(
    processor: Any, files: model_files.TokenFiles
) -> dict[int, model_files.AddedToken]:
  """Returns {id: token} of the tokens at which text is split."""
  pieces = range(processor.vocab_size())
  own = {number for number, control in zip(pieces, processor.is_control(list(pieces))) if control}
  if processor.unk_id() >= 0:
    own.add(processor.unk_id())
  added = {number: model_files.AddedToken(processor.id_to_piece(number)) for number in sorted(own)}
  added |= files.numbered

  ids = {token.content: number for number, token in added.items()}
  for token in files.unnumbered:
    number = ids.get(token.content, _piece_id(processor, token.content))
    if number is None:
      number = max([len(pieces) - 1, *added]) + 1
    is_ordinary = token.content == files.filler and number < len(pieces) and number not in own
    added[number] = token._replace(special=not is_ordinary)
  return added


def _pattern(tokens: Iterable[model_files.AddedToken], path: pathlib.Path) -> re.Pattern[str]:
  """Returns a pattern for the tokens, longest first, with the white space that they absorb."""
  choices = []
  for token in sorted(tokens, key=lambda token: -len(token.content)):
    if token.single_word:
      raise ValueError(f'{path.parent}: single_word of {token.content!r} is not supported')
    left, right = ('\\s*' if strip else '' for strip in (token.lstrip, token.rstrip))
    if token.content:
      choices.append(f'{left}{re.escape(token.content)}{right}')
  return re.compile('|'.join(choices) or '(?!)')
