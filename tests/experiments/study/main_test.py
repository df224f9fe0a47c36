"""The study driver: runs, copied results and invalid flags."""

import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from experiments.study import __main__ as study
from jaxrl_llm.runs import command_line, launch

CONFIG = 'experiments/configs/a_star_po_ablation.py'


@pytest.fixture
def calls(tmp_path, monkeypatch):
  """Runs nothing: each arm leaves a results.json that names it."""
  made = []

  def run_arm(module, workdir, config, arguments):
    made.append((module, pathlib.Path(workdir).name, config, arguments))
    workdir.mkdir(parents=True, exist_ok=True)
    (seed,) = [int(a.partition('=')[2]) for a in arguments if a.startswith('--config.seed=')]
    (workdir / 'results.json').write_text(json.dumps(launch.with_digest({
        'experiment': module, 'setting': f'ablation_{config.rpartition(":")[2]}', 'seed': seed,
        'config_sha256': launch.config_digest(command_line.load_config(config)),
        'fingerprint' if module == 'sft' else 'fingerprint/reference': f'reference {seed}',
        'arm': config, 'arguments': ' '.join(arguments)})))

  monkeypatch.setattr(study, 'run_arm', run_arm)
  return made


def run(tmp_path, *arguments):
  values = flags.FlagValues()
  study.define_flags(values)
  values(['study', f'--work={tmp_path}/work', f'--results={tmp_path}/out', *arguments])
  study.main(values)


def test_each_arm_and_seed_runs_once_from_the_reference_of_its_seed(tmp_path, calls):
  run(tmp_path, f'--config={CONFIG}', '--arms=softmax,n32', '--seeds=0,1')
  assert [call[0] for call in calls] == ['sft', 'a_star_po', 'a_star_po'] * 2
  for seed in (0, 1):
    for arm in ('softmax', 'n32'):
      path = tmp_path / 'out' / 'a_star_po' / f'ablation_{arm}' / f'seed{seed}' / 'results.json'
      result = json.loads(path.read_text())
      assert result['arm'] == f'{CONFIG}:{arm}'
      assert f'--config.seed={seed}' in result['arguments']
      assert f'reference_seed{seed}/params' in result['arguments']


def test_finished_arms_are_not_run_again(tmp_path, calls):
  run(tmp_path, f'--config={CONFIG}', '--arms=softmax', '--seeds=0')
  run(tmp_path, f'--config={CONFIG}', '--arms=softmax,mean', '--seeds=0')
  arms = [config for module, _, config, _ in calls if module == 'a_star_po']
  assert arms == [f'{CONFIG}:softmax', f'{CONFIG}:mean']


def test_damaged_results_are_refused(tmp_path, calls):
  arguments = (f'--config={CONFIG}', '--arms=softmax', '--seeds=0')
  run(tmp_path, *arguments)
  path = tmp_path / 'out' / 'a_star_po' / 'ablation_softmax' / 'seed0' / 'results.json'
  path.write_text(path.read_text().replace('softmax', 'mean'))
  with pytest.raises(ValueError, match='seed0/results.json cannot be used: it is damaged'):
    run(tmp_path, *arguments)


@pytest.mark.parametrize('damage, words', [
    (lambda text: text[: len(text) // 2], 'is damaged'),
    (lambda text: '', 'is damaged'),
    (lambda text: '[' * 100_000, 'is damaged'),
    (lambda text: '[]', 'not an object'),
    (lambda text: '{}', 'has no digest'),
    (lambda text: text.replace('"seed": 0', '"seed": null'), 'does not match its digest'),
    (lambda text: text.replace('"seed": 0', '"seed": NaN'), 'does not match its digest'),
    (lambda text: text.replace('"seed": 0', '"seeds": 0'), 'does not match its digest'),
])
def test_any_damage_to_results_is_one_line_with_the_file(tmp_path, calls, damage, words):
  arguments = (f'--config={CONFIG}', '--arms=softmax', '--seeds=0')
  run(tmp_path, *arguments)
  path = tmp_path / 'out' / 'a_star_po' / 'ablation_softmax' / 'seed0' / 'results.json'
  before = path.read_text()
  path.write_text(damage(before))
  assert path.read_text() != before
  with pytest.raises(ValueError, match='seed0/results.json cannot be used: ') as error:
    run(tmp_path, *arguments)
  assert words in str(error.value) and '\n' not in str(error.value)


def test_results_of_another_arm_are_refused(tmp_path, calls):
  arguments = (f'--config={CONFIG}', '--arms=softmax,mean', '--seeds=0')
  run(tmp_path, *arguments)
  folder = tmp_path / 'out' / 'a_star_po'
  (folder / 'ablation_mean' / 'seed0' / 'results.json').write_text(
      (folder / 'ablation_softmax' / 'seed0' / 'results.json').read_text())
  with pytest.raises(ValueError, match="its setting must be 'ablation_mean', got 'ablation_soft"):
    run(tmp_path, *arguments)


def test_results_of_another_reference_are_refused_before_an_arm_runs(tmp_path, calls):
  run(tmp_path, f'--config={CONFIG}', '--arms=softmax', '--seeds=0')
  path = tmp_path / 'out' / 'a_star_po' / 'ablation_softmax' / 'seed0' / 'results.json'
  path.write_text(json.dumps(launch.with_digest(
      json.loads(path.read_text()) | {'fingerprint/reference': 'another'})))
  run(tmp_path, f'--config={CONFIG}', '--arms=softmax', '--seeds=0')  # Nothing is to be run.
  with pytest.raises(ValueError, match='started from the reference another, the other arms from'):
    run(tmp_path, f'--config={CONFIG}', '--arms=softmax,mean', '--seeds=0')
  assert [call[2] for call in calls if call[0] == 'a_star_po'] == [f'{CONFIG}:softmax']


def test_results_of_every_seed_are_checked_before_an_arm_runs(tmp_path, calls):
  run(tmp_path, f'--config={CONFIG}', '--arms=softmax', '--seeds=1')
  path = tmp_path / 'out' / 'a_star_po' / 'ablation_softmax' / 'seed1' / 'results.json'
  path.write_text('{}')
  calls.clear()
  with pytest.raises(ValueError, match='seed1/results.json cannot be used'):
    run(tmp_path, f'--config={CONFIG}', '--arms=softmax', '--seeds=0,1')
  assert not calls


def test_a_config_file_that_changes_during_the_study_is_noticed(tmp_path, monkeypatch, calls):
  edited = pathlib.Path(tmp_path, 'a_star_po_ablation.py')
  edited.write_text(pathlib.Path(CONFIG).read_text())
  run_arm = study.run_arm

  def edit_and_run(module, *arguments):
    if module != 'sft':
      edited.write_text(edited.read_text().replace('240_000', '250_000'))
    run_arm(module, *arguments)

  monkeypatch.setattr(study, 'run_arm', edit_and_run)
  with pytest.raises(ValueError, match='softmax_seed0/results.json is of another version of the'):
    run(tmp_path, f'--config={edited}', '--arms=softmax', '--seeds=0')
  assert not list((tmp_path / 'out').rglob('results.json'))


def test_results_of_an_edited_config_file_are_refused(tmp_path, calls):
  edited = pathlib.Path(tmp_path, 'a_star_po_ablation.py')
  edited.write_text(pathlib.Path(CONFIG).read_text())
  arguments = (f'--config={edited}', '--arms=softmax', '--seeds=0')
  run(tmp_path, *arguments)
  run(tmp_path, *arguments)
  edited.write_text(edited.read_text().replace('240_000', '250_000'))
  with pytest.raises(ValueError, match='seed0/results.json is of another version of the config'):
    run(tmp_path, *arguments)


@pytest.mark.parametrize('text, words', [
    ('', 'has no get_config'),
    ('def get_config(): return None', 'has no variant'),
    ('from experiments.configs import arena\nget_config = lambda arm: arena.get_config()',
     'config must be a config of experiments.a_star_po that trains .*, got experiments.arena.'),
    ('from experiments.configs import rebel_chat\n'
     'get_config = lambda arm: rebel_chat.get_config()',
     'config must be a config of experiments.a_star_po that trains .*, got experiments.rebel.'),
    ('from experiments.configs import a_star_po_ablation\n'
     'def get_config(arm):\n  config = a_star_po_ablation.get_config()\n'
     '  config.steps = -1\n  return config', 'config.steps'),
])
def test_a_config_that_an_arm_cannot_use_is_refused_before_anything_runs(
    tmp_path, calls, text, words):
  (tmp_path / 'other.py').write_text(f"ARMS = ('softmax',)\n{text}\n")
  with pytest.raises(ValueError, match=words) as error:
    run(tmp_path, f'--config={tmp_path / "other.py"}')
  assert not calls and '\n' not in str(error.value)


def test_an_arm_that_fails_copies_nothing_and_stops_the_study(tmp_path, monkeypatch, calls):
  run_arm = study.run_arm

  def fail(module, *arguments):
    if module != 'sft':
      raise ValueError('softmax_seed0 ended with status 2')
    run_arm(module, *arguments)

  monkeypatch.setattr(study, 'run_arm', fail)
  with pytest.raises(ValueError, match='status 2'):
    run(tmp_path, f'--config={CONFIG}', '--arms=softmax', '--seeds=0')
  assert not list((tmp_path / 'out').rglob('results.json'))


def test_all_arms_have_different_configs(tmp_path):
  module = command_line.load_module(CONFIG)
  configs = [module.get_config(arm) for arm in module.ARMS]
  for config in configs:
    config.validate()
  assert len({repr(config) for config in configs}) == len(module.ARMS)


@pytest.mark.parametrize('arms', ['3', '()', '(1, 2)', '"abc"'])
def test_arms_must_be_names(tmp_path, arms):
  (tmp_path / 'wrong.py').write_text(f'ARMS = {arms}')
  with pytest.raises(ValueError, match='with ARMS, a non-empty list of names'):
    run(tmp_path, f'--config={tmp_path / "wrong.py"}')


@pytest.mark.parametrize(
    ('arguments', 'line'),
    [
        (['--arms=median'], 'arms must be some of softmax, mean, max, zero, n1, n4, n32, got'),
        (['--seeds=-1'], "seeds must be non-negative integers, got '-1'"),
        (['--arms='], 'arms must name at least one, got none'),
        (['--seeds='], 'seeds must name at least one, got none'),
        (['--experiment=configs'], "experiment must be a program in experiments/, got 'configs'"),
        (['--experiment=study'], "experiment must be a program in experiments/, got 'study'"),
        (['--experiment=../x'], "experiment must be a program in experiments/, got '../x'"),
        (['--config=experiments/configs/arena.py'], 'config must be a file with ARMS'),
        (['--results=/dev/null/x'], '/dev/null'),
        (['--config=nothing.py'], "config file 'nothing.py' does not exist"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, line):
  done = subprocess.run(
      [sys.executable, '-m', 'experiments.study', *arguments],
      capture_output=True, text=True, check=False, timeout=60,
  )
  assert done.returncode == 2
  assert line in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
