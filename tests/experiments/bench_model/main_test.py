"""Load, decode, a LoRA step and a full step of a small checkpoint, through the tool."""

import json

import pytest
from absl import flags

from experiments.bench_model import __main__ as bench_model
from tests.experiments import tiny


def _values(*arguments):
  values = flags.FlagValues()
  bench_model.define_flags(values)
  values(['bench_model', *map(str, arguments)])
  return values


def test_a_checkpoint_is_loaded_sampled_from_and_trained(tmp_path):
  config = tiny.write_checkpoint(tmp_path / 'checkpoint', num_kv_heads=2)
  bench_model.main(_values(
      f'--checkpoint={tmp_path / "checkpoint"}', f'--json={tmp_path / "out.json"}', '--rank=2',
      '--prompt_tokens=4', '--new_tokens=3', '--sequence_tokens=16'))
  numbers = json.loads((tmp_path / 'out.json').read_text())
  layers, width = config.num_layers, config.width
  # A and B of query, key, value and output (16 to 16) and of gate, up and down (16 to 32).
  assert numbers['lora/trained_parameters'] == layers * 2 * (4 * 2 * width + 3 * (16 + 32))
  assert numbers['full/trained_parameters'] == numbers['parameters']
  for name in ('lora', 'full'):
    assert numbers[f'{name}/loss/second'] < numbers[f'{name}/loss/first']
  assert numbers['decode/mean_log_prob'] < 0


@pytest.mark.parametrize(('argument', 'line'), [
    ('--shape=foo', 'flag --shape=foo: value should be one of <llama_100m|'),
    ('--folder=/nowhere', "folder must exist, got '/nowhere' (--folder)"),
    ('--json=/nowhere/x', "json must name a file in an existing folder, got '/nowhere/x' (--json)"),
])
def test_bad_flags_are_one_line_before_anything_is_written(argument, line, monkeypatch):
  monkeypatch.setattr(bench_model, 'measure', lambda *_: pytest.fail('it has begun'))
  with pytest.raises((ValueError, flags.Error)) as error:
    bench_model.main(_values(argument, '--checkpoint=.'))
  assert line in str(error.value)


@pytest.mark.parametrize('name', [
    'rows', 'prompt_tokens', 'new_tokens', 'sequence_tokens', 'rank'])
def test_sizes_that_cannot_fit_are_one_line_before_anything_is_written(name, monkeypatch):
  monkeypatch.setattr(bench_model, 'measure', lambda *_: pytest.fail('it has begun'))
  monkeypatch.setattr(bench_model.subprocess, 'run', lambda *_: pytest.fail('it has begun'))
  with pytest.raises(ValueError, match=rf'the run cannot fit: .*\(.*--{name}.*\)'):
    bench_model.main(_values(f'--{name}={10**12}'))


def test_a_directory_without_a_checkpoint_is_rejected(tmp_path):
  with pytest.raises(ValueError, match='neither parameters'):
    bench_model.main(_values(f'--checkpoint={tmp_path}'))
