"""The campaign of faults: what it plans, how it judges, and a few cases of the cheapest program."""

import collections
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from experiments.configs import faults as config_file
from experiments.faults import cases, config, invocations, processes, report, targets
from jaxrl_llm.training import metrics
from tests.experiments import tiny
from tests.experiments.faults import campaigns


def _ended(status, stderr='', stdout=''):
  return processes.Ended(status, stdout, stderr, 1.0)


@pytest.mark.parametrize('ended, outcome', [
    (_ended(0), cases.EQUAL),
    (_ended(0, 'warning: checkpoint 10 is corrupt; continuing from step 9\n'), cases.REPAIRED),
    (_ended(2, 'sft: error: config.seed must be at least 0, got -1\n'), cases.ONE_LINE),
    (_ended(2, 'a: error: x\nb: error: y\n'), cases.TRACEBACK),
    (_ended(2), cases.TRACEBACK),
    (_ended(1, 'Traceback (most recent call last):\nKeyError: 3\n'), cases.TRACEBACK),
    (_ended(0, 'Traceback (most recent call last):\nKeyError: 3\n'), cases.TRACEBACK),
    (_ended(-11), cases.TRACEBACK),
    (_ended(None, 'step 3\n'), cases.HUNG),
])
def test_outcomes_are_judged_by_status_and_output(ended, outcome):
  assert cases.judge(ended)[0] == outcome


def test_the_plan_follows_from_the_seed_and_covers_all_targets():
  campaign = config_file.get_config()
  plan = cases.plan(campaign, pathlib.Path('inputs'))
  assert plan == cases.plan(campaign, pathlib.Path('inputs'))
  kinds = collections.Counter(case.kind for case in plan)
  assert kinds == {'kill': 60, 'signal': 40, 'damage': 450, 'disk': 30, 'invocation': 450}
  assert len(plan) >= 1_000 and [case.index for case in plan] == list(range(len(plan)))
  assert {case.target for case in plan if case.kind == 'damage'} == {
      target.name for target in targets.TARGETS}
  other = cases.plan(config.Faults(seed=1), pathlib.Path('inputs'))
  assert [case.invocation for case in other] != [case.invocation for case in plan]


def test_the_table_of_wrong_commands_has_every_field_of_every_config():
  table = invocations.table(pathlib.Path('inputs'))
  programs = collections.Counter(line.program for line in table)
  assert len(table) > 2_000 and min(programs.values()) >= 5
  assert {target.program for target in targets.TARGETS} <= set(programs)


def test_every_program_has_wrong_commands():
  folder = pathlib.Path(cases.__file__).parents[1]
  programs = {path.stem for path in folder.glob('*.py')} | {
      path.parent.name for path in folder.glob('*/__main__.py')}
  table = invocations.table(pathlib.Path('inputs'))
  assert {line.program for line in table} == programs - {'__init__'}
  for program in cases._TOOLS:
    text = '\n'.join(path.read_text() for path in (
        folder / f'{program}.py', folder / program / '__main__.py') if path.is_file())
    assert 'launch.run_tool(' in text, program


def test_counts_and_table_name_the_failures():
  records = [
      {'case': i, 'kind': kind, 'target': 'sft', 'detail': 'd', 'outcome': outcome, 'line': 'why'}
      for i, (kind, outcome) in enumerate([
          ('kill', cases.EQUAL), ('damage', cases.ONE_LINE), ('damage', cases.WRONG)])]
  counts = report.numbers(records)
  assert counts['cases/damage/tried'] == 2 and counts['cases/damage/wrong'] == 1
  assert counts['cases/all/tried'] == 3 and counts['cases/all/hung'] == 0
  assert '- case 2, sft, d: wrong (why)' in report.table(records)
  assert '- case' not in report.table(records[:2])


@pytest.mark.parametrize('flag, line', [
    ('--config.targets=sft,no', 'config.targets must be some of a_star_po, sft'),
    ('--config.kills=-1', 'config.kills must be at least 0, got -1'),
    ('--config.workers=0', 'config.workers must be at least 1, got 0'),
    ('--config.time_limit=0', 'config.time_limit must be positive and finite, got 0'),
])
def test_bad_configs_are_one_line(tmp_path, capsys, flag, line):
  from experiments.faults import __main__ as faults_main

  status = tiny.run(faults_main.main, f'--workdir={tmp_path / "run"}', flag, experiment='faults',
                    default_config=campaigns.CONFIG)
  assert status == 2 and line in capsys.readouterr().err


def test_a_few_cases_end_well_and_a_stopped_campaign_goes_on(tmp_path):
  workdir = tmp_path / 'campaign'
  done = campaigns.run(workdir)
  assert done.returncode == 0, done.stderr
  results = json.loads((workdir / 'results.json').read_text())
  failed = [r for r in metrics.read_jsonl(workdir / 'cases.jsonl')[1:]
            if r['outcome'] in cases.FAILURES]
  assert not failed, failed
  assert results['cases/all/tried'] == campaigns.NUM_CASES

  # The last cases are missing, as after a kill.
  (workdir / 'results.json').unlink()
  lines = (workdir / 'cases.jsonl').read_bytes().splitlines(keepends=True)
  (workdir / 'cases.jsonl').write_bytes(b''.join(lines[:-2]))
  again = campaigns.run(workdir)
  assert again.returncode == 0, again.stderr
  assert results == json.loads((workdir / 'results.json').read_text()) | {
      name: results[name] for name in ('wall_seconds', 'commit', 'sha256')}


def test_two_threads_read_the_status_of_their_own_processes(tmp_path):
  """Starting a process polls all others; a status that is read twice would be 255."""
  code = textwrap.dedent(f'''
      import pathlib
      from concurrent import futures
      from experiments.faults import processes

      if __name__ == '__main__':
        folder = pathlib.Path({str(tmp_path)!r})
        server = processes.Server(folder / 'compiled')

        def run(index):
          return server.run('this', [], folder / str(index), time_limit=60,
                            interrupt=lambda process, seconds: False).status

        with futures.ThreadPoolExecutor(2) as pool:
          assert not any(pool.map(run, range(200)))
  ''')
  (tmp_path / 'threads.py').write_text(code)
  done = subprocess.run(
      [sys.executable, str(tmp_path / 'threads.py')], cwd=tiny.REPOSITORY, capture_output=True,
      text=True, env=os.environ | {'PYTHONPATH': str(tiny.REPOSITORY)}, check=False)
  assert done.returncode == 0, done.stderr
