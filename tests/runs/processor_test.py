"""Fields of the processor in results.json, from /proc/cpuinfo of several architectures."""

import os
import pathlib
import platform
import subprocess
import textwrap

import pytest

from jaxrl_llm.runs import processor

# Cut to the lines that matter and some that look like them.
X86 = textwrap.dedent('''
    processor\t: 0
    vendor_id\t: AuthenticAMD
    model\t\t: 2
    model name\t: AMD EPYC 9B45
    flags\t\t: fpu sse sse2 fxsr_opt misalignsse sme smep sse4_1 sse4_2 ssse3 sse4a fma avx avx2 \
avx512f vmx svm amx_tile

    processor\t: 1
    model name\t: AMD EPYC 9B45
    flags\t\t: fpu sse sse2 sse4_1 sse4_2 ssse3 sse4a fma avx avx2 avx512f
''')
ARM = textwrap.dedent('''
    processor\t: 0
    BogoMIPS\t: 243.75
    Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp sve i8mm bf16
    CPU implementer\t: 0x41
    CPU architecture: 8
    CPU variant\t: 0x1
    CPU part\t: 0xd40

    processor\t: 1
    Features\t: fp asimd evtstrm asimddp
    CPU implementer\t: 0x41
    CPU part\t: 0xd05

    Hardware\t: BCM2835
    Model\t\t: A board
''')


@pytest.mark.parametrize('text, model, extensions', [
    (X86, 'AMD EPYC 9B45', 'avx avx2 avx512f fma sse sse2 sse4_1 sse4_2 sse4a ssse3'),
    (ARM, 'Arm (implementer 0x41 part 0xd40) + Arm (implementer 0x41 part 0xd05)',
     'asimd asimddp'),
    ('processor : 0\ncpu : POWER9 (raw), altivec supported\n', 'POWER9 (raw)', ''),
    ('processor : 0\nisa : rv64imafdcv\nuarch : sifive,u74\n', 'sifive,u74', ''),
    ('vendor_id : IBM/S390\nfeatures : esan3 zarch vx vxd\nprocessor 0: version = FF\n',
     'unknown', 'vx vxd'),
    ('', 'unknown', ''), ('\n\n:\n : \nmodel name\nflags:\n', 'unknown', ''),
    ('\x00\ufffd : model name : x\n', 'unknown', ''),
])
def test_cpuinfo(text, model, extensions):
  assert processor.parse_cpuinfo(text) == (model, extensions)


def _set_files(monkeypatch, read):
  monkeypatch.setattr(pathlib.Path, 'read_text', lambda self, **_: read(self))


def _fail(error):
  def fail(*_, **__):
    raise error
  return fail


@pytest.mark.parametrize('error', [
    FileNotFoundError(2, 'x'), PermissionError(13, 'x'),
    UnicodeDecodeError('utf-8', b'', 0, 1, 'x')])
def test_unknown_processors(monkeypatch, error):
  _set_files(monkeypatch, _fail(error))
  monkeypatch.setattr(platform, 'system', lambda: 'Plan 9')
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  monkeypatch.setattr(os, 'cpu_count', lambda: None)
  for name in ('PJRT_NPROC', 'NPROC'):
    monkeypatch.delenv(name, raising=False)
  assert processor.fields() == {
      'processor/model': 'unknown', 'processor/vector_extensions': 'unknown',
      'processor/threads': 1}


def test_macos(monkeypatch):
  answers = {
      'machdep.cpu.brand_string': 'Intel(R)  Core(TM) i5\n',
      'machdep.cpu.features': 'FPU SSE SSE4.2 AVX1.0 F16C',
      'machdep.cpu.leaf7_features': 'AVX2 SMEP'}
  _set_files(monkeypatch, _fail(FileNotFoundError()))
  monkeypatch.setattr(platform, 'system', lambda: 'Darwin')
  monkeypatch.setattr(platform, 'machine', lambda: 'x86_64')
  monkeypatch.setattr(subprocess, 'run', lambda command, **_: subprocess.CompletedProcess(
      command, 0, answers[command[-1]]))
  fields = processor.fields()
  assert fields['processor/model'] == 'Intel(R) Core(TM) i5'
  assert fields['processor/vector_extensions'] == 'avx avx2 f16c sse sse4_2'

  monkeypatch.setattr(platform, 'machine', lambda: 'arm64')
  for error in (FileNotFoundError(), subprocess.TimeoutExpired('sysctl', 10),
                subprocess.CalledProcessError(1, 'sysctl')):
    monkeypatch.setattr(subprocess, 'run', _fail(error))
    fields = processor.fields()
    assert fields['processor/model'] == 'unknown'
    assert fields['processor/vector_extensions'] == 'asimd'


def test_threads_are_those_available_to_the_process(monkeypatch):
  monkeypatch.delenv('NPROC', raising=False)
  monkeypatch.delenv('PJRT_NPROC', raising=False)
  monkeypatch.setattr(os, 'cpu_count', lambda: 64)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {3, 5, 7}, raising=False)
  assert processor.num_threads() == 3
  for pjrt, nproc, expected in (
      ('', '5', 5), ('1', '5', 1), ('', '0', 1), ('', '-3', 1), ('', 'many', 3), ('', '', 3)):
    monkeypatch.setenv('NPROC', nproc)
    monkeypatch.setenv('PJRT_NPROC', pjrt)
    assert processor.num_threads() == expected, (pjrt, nproc)
  monkeypatch.delattr(os, 'sched_getaffinity')
  assert processor.num_threads() == 64


@pytest.mark.skipif(not pathlib.Path('/proc/cpuinfo').exists(), reason='Linux')
def test_this_machine():
  text = pathlib.Path('/proc/cpuinfo').read_text()
  fields = processor.fields()
  assert fields['processor/model'] != 'unknown'
  for word in fields['processor/vector_extensions'].split():
    assert f' {word}' in text or word == 'unknown'
  if platform.machine() == 'x86_64':
    assert fields['processor/model'] in text and 'sse2' in fields['processor/vector_extensions']
