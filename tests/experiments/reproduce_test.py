"""experiments/reproduce: the command of each committed result, and verdicts."""

import json

import pytest
from absl import flags

from experiments import reproduce
from jaxrl_llm.runs import launch, programs
from jaxrl_llm.tables import render
from tests.experiments import tiny


def _run(**changes):
  return {'experiment': 'a_star_po', 'setting': 'arithmetic', 'seed': 0, 'commit': 'c',
          'device': '1 x cpu', 'sampled_tokens': 7, 'versions/jax': '0',
          'eval/trained/pass@1': 0.5, 'wall_seconds': 10.0, **changes}


def _values(tmp_path, *arguments):
  values = flags.FlagValues()
  reproduce.define_flags(values)
  values(['reproduce', f'--runs={tmp_path / "committed"}', f'--workdir={tmp_path / "new"}',
          '--experiment=a_star_po', '--setting=arithmetic', *arguments])
  return values


def _commit(tmp_path, *runs):
  for run in runs:
    folder = tmp_path / 'committed' / f'seed{run["seed"]}'
    folder.mkdir(parents=True)
    (folder / 'results.json').write_text(json.dumps(launch.with_digest(run)))


def test_every_committed_setting_has_its_config():
  for setting in render.read_results(tiny.REPOSITORY / 'results'):
    config, _ = reproduce.command_of(setting.experiment, setting.name)
    assert config.startswith(f'{tiny.REPOSITORY}/experiments/configs/{setting.experiment}')
  config, more = reproduce.command_of('arena', 'dialogue_one_turn')
  assert config.endswith('/arena.py:one_turn') and '--config.task=dialogue' in more
  with pytest.raises(ValueError, match="got 'x' \\(--setting\\)"):
    reproduce.command_of('nothing', 'x')


def test_verdicts_by_hand():
  assert reproduce.verdict(0.5, 0.5, None, 3) == 'equal'
  assert reproduce.verdict(float('nan'), float('nan'), None, 3) == 'equal'
  assert reproduce.verdict(0.6, 0.5, 0.05, 3) == '2.0 SE'
  assert reproduce.verdict(0.7, 0.5, 0.05, 3) == 'differs (4.0 SE)'
  assert reproduce.verdict(0.5 + 1e-9, 0.5, None, 3) == 'differs'  # No standard error.


@pytest.mark.parametrize('new, status, verdict', [
    (0.5, 0, 'equal'), (0.6, 0, '1.0 SE'), (0.9, 1, 'differs (4.0 SE)'),
    ('nan', 1, 'differs (nan SE)')])
def test_a_run_is_compared(tmp_path, monkeypatch, capsys, new, status, verdict):
  # Seeds at 0.5 and 0.7: a standard error of 0.1.
  _commit(tmp_path, _run(), _run(seed=1, **{'eval/trained/pass@1': 0.7}))

  def run(command):
    assert f'--config.seed={0}' in command and command[2] == 'experiments.a_star_po'
    workdir = tmp_path / 'new' / 'a_star_po_arithmetic_seed0'
    workdir.mkdir(parents=True)
    results = _run(wall_seconds=99.0, **{'eval/trained/pass@1': new, 'processor/model': 'Other'})
    (workdir / 'results.json').write_text(json.dumps(launch.with_digest(results)))
    return 0

  monkeypatch.setattr(programs, 'run', run)
  monkeypatch.setattr(launch, 'current_commit', lambda: 'c')
  if status:
    with pytest.raises(SystemExit) as error:
      reproduce.main(_values(tmp_path))
    assert error.value.code == 1
  else:
    reproduce.main(_values(tmp_path))
  shown = capsys.readouterr().out
  assert verdict in shown and 'Other' in shown and 'wall_seconds' not in shown


def test_a_complete_run_of_another_commit_is_refused(tmp_path, monkeypatch, capsys):
  _commit(tmp_path, _run())
  workdir = tmp_path / 'new' / 'a_star_po_arithmetic_seed0'
  workdir.mkdir(parents=True)
  path, text = workdir / 'results.json', json.dumps(launch.with_digest(_run()))
  monkeypatch.setattr(programs, 'run', lambda _: 0)

  for commit, damaged, words in (('d', text, 'must be of commit d, got c: delete it or give'),
                                 ('c', text.replace('0.5', '0.6'), 'it is damaged')):
    monkeypatch.setattr(launch, 'current_commit', lambda commit=commit: commit)
    path.write_text(damaged)
    with pytest.raises(ValueError, match=words):
      reproduce.main(_values(tmp_path))

  path.write_text(text)
  reproduce.main(_values(tmp_path))
  assert '| equal' in capsys.readouterr().out


def test_bad_input_is_one_line(tmp_path):
  _commit(tmp_path, _run())
  with pytest.raises(ValueError, match='must be one of a_star_po/arithmetic'):
    reproduce.main(_values(tmp_path, '--setting=other'))
  with pytest.raises(ValueError, match="got '7' \\(--seeds\\)"):
    reproduce.main(_values(tmp_path, '--seeds=7'))
  with pytest.raises(ValueError, match="got '²' \\(--seeds\\)"):
    reproduce.main(_values(tmp_path, '--seeds=²'))
  with pytest.raises(ValueError, match="got '' \\(--seeds\\)"):
    reproduce.main(_values(tmp_path, '--seeds='))
  for tolerance in ('nan', 'inf', '-1'):
    with pytest.raises(ValueError, match='tolerance must be non-negative and finite'):
      reproduce.main(_values(tmp_path, f'--tolerance={tolerance}'))
