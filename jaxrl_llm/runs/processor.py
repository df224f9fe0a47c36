"""The processor that a run used: sums round differently with other vector widths or threads."""

import contextlib
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence

_UNKNOWN = 'unknown'

# Names of vector instructions in /proc/cpuinfo, by the line that lists them: x86 has `flags` (and
# an `sme` that encrypts memory), Arm, IBM Z and LoongArch have `Features`.
_VECTOR_FLAGS = {
    'flags': re.compile(r'sse\d*(_\d)?a?|ssse3|avx\w*|fma4?|f16c|amx\w*'),
    'features': re.compile(
        r'neon|vfpv4|asimd\w*|fphp|bf16|i8mm|f(32|64)mm|sve\w*|sme\w*|vx\w*|lsx|lasx'),
}


def fields() -> dict[str, str | int]:
  """Flat fields for results.json; a property that the system does not tell is 'unknown'.

  Returns:
    'processor/model': the name that the processor gives itself, such as 'AMD EPYC'.
    'processor/vector_extensions': such as 'avx avx2 fma sse4_2', sorted.
    'processor/threads': how many threads XLA uses on CPUs.
  """
  model, extensions = _UNKNOWN, ''
  with contextlib.suppress(OSError, ValueError):
    model, extensions = parse_cpuinfo(pathlib.Path('/proc/cpuinfo').read_text(errors='replace'))
  if platform.system() == 'Darwin':
    model, extensions = _of_macos()
  return {
      'processor/model': model,
      'processor/vector_extensions': extensions or _UNKNOWN,
      'processor/threads': num_threads(),
  }


def joined(several: Sequence[Mapping[str, str | int]]) -> dict[str, str | int]:
  """The fields of a run that several processors worked on: values that differ, joined by ' + '."""
  values = {key: list(dict.fromkeys(each.get(key, _UNKNOWN) for each in several))
            for key in several[0]}
  return {key: found[0] if len(found) == 1 else ' + '.join(map(str, found))
          for key, found in values.items()}


def num_threads() -> int:
  """How many threads XLA uses on CPUs.

  That is the environment's PJRT_NPROC or NPROC, which XLA reads, otherwise the number of cores
  that this process may use: its affinity, which can be fewer than the machine has.
  """
  for name in ('PJRT_NPROC', 'NPROC'):
    with contextlib.suppress(KeyError, ValueError):
      return max(int(os.environ[name]), 1)
  with contextlib.suppress(AttributeError, OSError):  # Not on macOS.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def parse_cpuinfo(text: str) -> tuple[str, str]:
  """Model and vector extensions from the text of /proc/cpuinfo.

  Several models (large and small cores of an Arm processor) are joined by ' + '; extensions are
  those that all cores have.

  Args:
    text: of the file, on any architecture.

  Returns:
    (model or 'unknown', extensions separated by blanks or '').
  """
  models, extensions = {}, []
  for block in re.split(r'\n\s*\n', text):
    entries = {}
    for line in block.splitlines():
      key, separator, value = line.partition(':')
      if separator:
        entries.setdefault(key.strip().lower(), ' '.join(value.split()))
    if model := _model(entries):
      models[model] = None
    extensions += [
        {flag for flag in entries[key].split() if pattern.fullmatch(flag)}
        for key, pattern in _VECTOR_FLAGS.items() if key in entries]

  common = set.intersection(*extensions) if extensions else set()
  return ' + '.join(models) or _UNKNOWN, ' '.join(sorted(common))


def _model(entries: dict[str, str]) -> str:
  """The name in one block of /proc/cpuinfo; Arm cores are numbered by maker and part."""
  if 'cpu part' in entries and 'cpu implementer' in entries:
    number = f'{entries["cpu implementer"]} part {entries["cpu part"]}'
    return f'{entries.get("model name", "Arm")} (implementer {number})'
  for key in ('model name', 'cpu model', 'uarch'):
    if entries.get(key):
      return entries[key]
  name = entries.get('cpu', '')
  return name.partition(',')[0]  # POWER: 'POWER9 (raw), altivec supported'.


def _of_macos() -> tuple[str, str]:
  names = ('machdep.cpu.brand_string', 'machdep.cpu.features', 'machdep.cpu.leaf7_features')
  model, *flags = map(_sysctl, names)
  lowered = ' '.join(flags).lower().replace('avx1.0', 'avx').replace('.', '_').split()
  found = {flag for flag in lowered if _VECTOR_FLAGS['flags'].fullmatch(flag)}
  if platform.machine() == 'arm64':
    found.add('asimd')  # Every arm64 processor has it, and sysctl lists no flags.
  return model or _UNKNOWN, ' '.join(sorted(found))


def _sysctl(name: str) -> str:
  """A value of macOS's kernel state, '' where it has none of that name."""
  with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
    done = subprocess.run(
        ['/usr/sbin/sysctl', '-n', name], capture_output=True, text=True, errors='replace',
        timeout=10, check=True)
    return ' '.join(done.stdout.split())
  return ''
