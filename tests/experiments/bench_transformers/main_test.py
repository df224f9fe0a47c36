"""The tool on a small checkpoint: our side for real, the other library replaced by a stub."""

import functools
import importlib.util
import json

import numpy as np
import pytest
from absl import flags

from experiments.bench_transformers import __main__ as bench
from experiments.bench_transformers import ours, theirs, workload
from tests.experiments import tiny

SMALL = ('--batches=3', '--prompt_tokens=4', '--new_tokens=3', '--rows=4', '--sequence_tokens=8',
         '--micro_batches=2', '--rank=2', '--repeats=2')

CHECK_INSTALLED = theirs.check_installed


def _values(*arguments):
  values = flags.FlagValues()
  bench.define_flags(values)
  values(['bench_transformers', *map(str, arguments)])
  return values


class _Stub:
  """Another library that computes the same; `shift` makes its losses differ."""

  shift = 0.0

  def __init__(self, directory, sizes, *, threads):
    assert threads >= 1
    self._ours = ours.Model(directory, sizes)
    self.logits, self.sampling = self._ours.logits, self._ours.sampling

  def training(self, kind):
    inner = self._ours.training(kind)
    return workload.Workload(lambda: inner.run() + self.shift, inner.tokens)


@pytest.fixture(scope='module')
def stub():
  with pytest.MonkeyPatch.context() as patch:
    # Everything is compiled once: the stub runs the workloads of our side.
    for name in ('sampling', 'training'):
      patch.setattr(ours.Model, name, functools.cache(getattr(ours.Model, name)))
    patch.setattr(ours, 'Model', functools.cache(ours.Model))
    patch.setattr(theirs, 'Model', _Stub)
    patch.setattr(theirs, 'check_installed', lambda: None)
    yield


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bench') / 'checkpoint'
  tiny.write_checkpoint(folder, num_kv_heads=2)
  return folder


def test_both_libraries_run_the_same_workloads(checkpoint, tmp_path, stub, capsys):
  path = tmp_path / 'out.json'
  bench.main(_values(f'--checkpoint={checkpoint}', f'--json={path}', *SMALL))
  numbers = json.loads(path.read_text())
  assert numbers['logits/max_difference'] == 0

  for name, tokens in {'sample_3': 9, 'lora': 32, 'full': 32}.items():
    for library in ('ours', 'transformers'):
      of = lambda key: numbers[f'{name}/{library}/{key}']  # noqa: B023
      assert of('tokens_per_second') == pytest.approx(tokens / of('seconds'))
      assert of('seconds_min') <= of('seconds') <= of('seconds_max') < of('first_seconds') + 5
    assert numbers[f'{name}/ours/peak_bytes'] > 0
    if not name.startswith('sample'):  # The stub takes the second step of the same training.
      assert numbers[f'{name}/transformers/first_loss'] < numbers[f'{name}/ours/first_loss']

  # Adapters begin with B = 0: both steps start from the loss of the checkpoint.
  assert numbers['lora/ours/first_loss'] == pytest.approx(numbers['full/ours/first_loss'], abs=1e-5)
  output = capsys.readouterr().out
  assert '| sample_3 |' in output and 'medians of 2 alternating repetitions' in output


def test_libraries_that_disagree_are_an_error(checkpoint, stub, monkeypatch):
  monkeypatch.setattr(_Stub, 'shift', 0.1)
  with pytest.raises(ValueError, match='the losses of lora of the two libraries must agree'):
    bench.main(_values(f'--checkpoint={checkpoint}', '--parts=lora', *SMALL))


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch, checkpoint):
  find = importlib.util.find_spec
  monkeypatch.setattr(theirs, 'check_installed', CHECK_INSTALLED)
  monkeypatch.setattr(
      importlib.util, 'find_spec', lambda name: None if name == 'peft' else find('json'))
  with pytest.raises(ValueError, match=r'^peft must .*pip install -r requirements-parity.txt'):
    bench.main(_values(f'--checkpoint={checkpoint}', *SMALL))


@pytest.mark.parametrize(('argument', 'line'), [
    ('--checkpoint=', '--checkpoint=DIR is required'),
    ('--parts=lora,half', "parts must be of sample, lora, full, got 'half' (--parts)"),
    ('--batches=4,x', "batches must be positive integers, got 'x' (--batches)"),
    ('--rows=5', 'rows must be divisible by micro_batches (2), got 5 (--rows)'),
    ('--json=/nowhere/x', "json must be a file in an existing directory, got '/nowhere/x'"),
    ('--new_tokens=200', 'sequences must have at most 128 tokens for this model, got 204'),
])
def test_bad_flags_are_one_line(argument, line, checkpoint):
  with pytest.raises(ValueError) as error:
    bench.main(_values(f'--checkpoint={checkpoint}', '--notransformers', *SMALL, argument))
  assert line in str(error.value) and '\n' not in str(error.value)


def test_the_tokens_are_a_function_of_the_seed():
  one, other = (workload.Sizes(4, 3, 4, 8, 2, 2, 'float32', seed) for seed in (0, 1))
  np.testing.assert_array_equal(one.sequences(50), one.sequences(50))
  assert (one.sequences(50) != other.sequences(50)).any()
  assert one.prompts(3, 50).shape == (3, 4) and one.sequences(50).shape == (4, 9)
