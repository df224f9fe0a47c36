"""Files with finished results, which a later process checks before it uses them.

Each file has its content, the identity of what made it (plain data such as config fields, seed and
name of the arm), the commit, and a SHA-256 digest of all three. Two formats:

  NAME.json   {"sha256": ..., "commit": ..., "identity": {...}, "content": JSON data}
  NAME.npz    arrays by name, and the same header without the content as text; never a pickle

`read` raises `Damaged` unless digest and identity match. The commit is recorded, not compared.
"""

import hashlib
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.training import files, metrics

_HEADER = '_header'  # Name of the header in an npz file.


class Damaged(ValueError):
  """A file that cannot be used: damaged, or written for something else.

  Attributes:
    path: the file.
    problem: what is wrong, without the name of the file.
    is_older: True if the file has no digest, as those of earlier versions.
  """

  def __init__(self, path: pathlib.Path, problem: str, *, is_older: bool = False):
    self.path, self.problem, self.is_older = path, problem, is_older
    new = ' (or give another --workdir)' if is_older else ''
    super().__init__(
        f'{path} cannot be used: {problem}; delete it{new} and run the command again')


def write(
    path: pathlib.Path, content: Any, identity: Mapping[str, Any], *, commit: str = ''
) -> None:
  """Writes a result atomically; makes its directory if needed.

  Args:
    path: NAME.json or NAME.npz.
    content: for NAME.json, data that `metrics.plain` accepts; for NAME.npz, arrays of numbers,
      booleans or text by name.
    identity: what the content depends on; data that `metrics.plain` accepts.
    commit: commit of the source.

  Raises:
    ValueError: an array holds Python objects, or the suffix is neither.
    OSError: the file cannot be written; an existing one is then unchanged.
  """
  header = {'commit': commit, 'identity': metrics.plain(identity)}

  if path.suffix == '.json':
    data = _json_bytes(header, metrics.plain(content))
  elif path.suffix == '.npz':
    data = _npz_bytes(header, {name: np.asarray(value) for name, value in content.items()})
  else:
    raise ValueError(f'the suffix must be .json or .npz, got {path}')

  path.parent.mkdir(parents=True, exist_ok=True)
  with files.replacing(path) as temporary:
    temporary.write_bytes(data)


def _json_bytes(header: Mapping[str, Any], content: Any) -> bytes:
  document = {'sha256': _digest_of_json(header, content), **header, 'content': content}
  return (json.dumps(document, indent=2, allow_nan=False) + '\n').encode()


def _npz_bytes(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
  for name, array in arrays.items():
    if array.dtype.hasobject or name == _HEADER:
      raise ValueError(f'arrays must hold no Python objects, got {array.dtype} ({name})')
  document = {'sha256': _digest_of_arrays(header, arrays), **header}
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays, **{_HEADER: np.array(json.dumps(document))})
  return buffer.getvalue()


def read(path: pathlib.Path, identity: Mapping[str, Any]) -> Any:
  """Reads a result written by `write`.

  Args:
    path: NAME.json or NAME.npz.
    identity: the identity that the file must have.

  Returns:
    The content: JSON data, or arrays by name.

  Raises:
    Damaged: the content is not what was written, or it was written for another identity.
    OSError: the file cannot be read.
  """
  data = path.read_bytes()
  is_json = path.suffix == '.json'
  try:
    document, content = _read_json(data) if is_json else _read_arrays(data)
    if not isinstance(document, dict):
      raise ValueError('not a result')
    header = {name: document.get(name) for name in ('commit', 'identity')}
    actual = _digest_of_json(header, content) if is_json else _digest_of_arrays(header, content)
  except Exception as error:  # A damaged file can raise almost anything.
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    raise Damaged(path, f'it is damaged ({reason[:200]})') from None

  if 'sha256' not in document:
    raise Damaged(path, 'it has no digest, like files of earlier versions', is_older=True)
  if document['sha256'] != actual:
    raise Damaged(path, 'it is damaged (its content does not match its digest)')

  different = differences(header['identity'], metrics.plain(identity))
  if different:
    raise Damaged(path, 'it was made for something else: ' + '; '.join(different[:3]))
  return content


def pin(
    path: pathlib.Path, content: Any, identity: Mapping[str, Any], *, description: str, commit: str
) -> None:
  """Writes what a run depends on apart from its config, or compares it with an earlier one.

  Args:
    path: NAME.json.
    content: see `write`; the run is resumed only with the same.
    identity: see `write`.
    description: subject of the error.
    commit: commit of the source.

  Raises:
    ValueError: the content differs, or the file is damaged; one line.
  """
  if not path.exists():
    write(path, content, identity, commit=commit)
    return
  try:
    begun_with = read(path, identity)
  except Damaged as error:
    raise ValueError(f'{path}: {error.problem}; give another --workdir') from error
  if begun_with != metrics.plain(content):
    raise ValueError(
        f'{description} changed since the run began ({path}): restore what it was, or give another '
        '--workdir')


def digest(arrays: Mapping[str, Any]) -> str:
  """Returns the SHA-256 digest of arrays by name, for the identity of what is made from them."""
  return _digest_of_arrays({}, {name: np.asarray(value) for name, value in arrays.items()})


def _read_json(data: bytes) -> tuple[Any, Any]:
  document = json.loads(data, parse_constant=_refuse_constant)
  return document, document.get('content') if isinstance(document, dict) else None


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is not JSON')


def _read_arrays(data: bytes) -> tuple[Any, dict[str, np.ndarray]]:
  with np.load(io.BytesIO(data), allow_pickle=False) as archive:
    arrays = {name: archive[name] for name in archive.files}
  return json.loads(arrays.pop(_HEADER, np.array('{}')).item()), arrays


def _digest_of_json(header: Mapping[str, Any], content: Any) -> str:
  text = json.dumps([header, content], sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


def _digest_of_arrays(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
  described = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
  digest = hashlib.sha256(_digest_of_json(header, described).encode())
  for name in sorted(arrays):
    digest.update(np.ascontiguousarray(arrays[name]).tobytes())
  return digest.hexdigest()


def differences(theirs: Any, ours: Any) -> list[str]:
  """Lists the fields in which two identities differ, with both values."""
  return [f'{name} is {there!r} there, {here!r} here'
          for name, there, here in metrics.differences(theirs, ours)]
