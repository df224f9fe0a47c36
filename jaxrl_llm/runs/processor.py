"""Processor of a run: sums round differently with other vector widths or thread counts."""

import contextlib
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence

_UNKNOWN = 'unknown'

# Names of vector instructions in /proc/cpuinfo, by the line that lists them: x86 has `flags` (where
# `sme` means memory encryption); Arm, IBM Z and LoongArch have `Features`.
_VECTOR_FLAGS = {
    'flags': re.compile(r'sse\d*(_\d)?a?|ssse3|avx\w*|fma4?|f16c|amx\w*'),
    'features': re.compile(
        r'neon|vfpv4|asimd\w*|fphp|bf16|i8mm|f(32|64)mm|sve\w*|sme\w*|vx\w*|lsx|lasx'),
}


def fields() -> dict[str, str | int]:
  """Returns flat fields for results.json; unavailable properties are 'unknown'.

  Returns:
    'processor/model': the name reported by the processor, such as 'AMD EPYC'.
    'processor/vector_extensions': sorted names, such as 'avx avx2 fma sse4_2'.
    'processor/threads': number of threads that XLA uses on CPUs.
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
  """Merges the fields of several processors: values that differ are joined by ' + '."""
  values = {key: list(dict.fromkeys(each.get(key, _UNKNOWN) for each in several))
            for key in several[0]}
  return {key: different[0] if len(different) == 1 else ' + '.join(map(str, different))
          for key, different in values.items()}


def num_threads() -> int:
  """Returns the number of threads that XLA uses on CPUs.

  This is PJRT_NPROC or NPROC from the environment, which XLA reads; otherwise the number of cores
  in the process's affinity, which can be fewer than the machine has.
  """
  for name in ('PJRT_NPROC', 'NPROC'):
    with contextlib.suppress(KeyError, ValueError):
      return max(int(os.environ[name]), 1)
  with contextlib.suppress(AttributeError, OSError):  # Not on macOS.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def parse_cpuinfo(text: str) -> tuple[str, str]:
  """Parses model and vector extensions from the text of /proc/cpuinfo.

  Several models (large and small cores of an Arm processor) are joined by ' + '; only extensions
  that all cores have are listed.

  Args:
    text: content of the file, on any architecture.

  Returns:
    (model or 'unknown', extensions separated by spaces or '').
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
  """Returns the name in one block of /proc/cpuinfo; Arm cores have implementer and part numbers."""
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
  extensions = {flag for flag in lowered if _VECTOR_FLAGS['flags'].fullmatch(flag)}
  if platform.machine() == 'arm64':
    extensions.add('asimd')  # Every arm64 processor has it, and sysctl lists no flags.
  return model or _UNKNOWN, ' '.join(sorted(extensions))


def _sysctl(name: str) -> str:
  """Returns a macOS sysctl value, or '' if there is none of that name."""
  with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
    done = subprocess.run(
        ['/usr/sbin/sysctl', '-n', name], capture_output=True, text=True, errors='replace',
        timeout=10, check=True)
    return ' '.join(done.stdout.split())
  return ''
