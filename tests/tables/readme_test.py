"""README.md stays true: numbers are those of committed results, the map names what exists."""

import pathlib
import re

import pytest

from experiments import make_tables
from jaxrl_llm.tables import readme, render

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'README.md').read_text()


def test_the_blocks_are_those_of_the_committed_results():
  settings = render.read_results(ROOT / 'results')
  assert make_tables.readme_text(TEXT, settings, str(ROOT / 'results')) == TEXT


def test_the_committed_tables_are_those_of_the_committed_results():
  everything = render.read_results(ROOT / 'results')
  for experiment in {setting.experiment for setting in everything}:
    settings = [s for s in everything if s.experiment == experiment]
    written = (ROOT / 'results' / 'tables' / f'{experiment}.md').read_text()
    assert render.markdown(experiment, settings) == written


def test_committed_results_come_from_clean_commits():
  for setting in render.read_results(ROOT / 'results'):
    for run in setting.runs.values():
      assert re.fullmatch('[0-9a-f]{40}', run['commit'])


def test_every_algorithm_and_config_stands_in_the_map():
  for folder in ('jaxrl_llm/algorithms', 'experiments/configs'):
    for path in (ROOT / folder).glob('*.py'):
      if path.stem != '__init__':
        assert f'{folder}/{path.name}' in TEXT, path


def test_every_file_and_command_of_the_readme_exists():
  for target in re.findall(r'\]\(([^)#:]+)\)', TEXT):
    assert (ROOT / target).exists(), target
  for module in re.findall(r'python -m experiments\.(\w+)', TEXT):
    assert (ROOT / 'experiments' / f'{module}.py').exists(), module
  targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
  for target in re.findall(r'`?make (\w+)`', TEXT):
    assert target in targets


def test_fill_replaces_a_block_and_nothing_else():
  text = 'a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n'
  filled = readme.fill(text, {'x': r'new \1'})
  assert filled == 'a\n<!-- begin x -->\nnew \\1\n<!-- end x -->\nb\n'
  assert readme.fill(filled, {'x': r'new \1'}) == filled


def test_a_missing_block_is_named():
  with pytest.raises(ValueError, match="block 'y'"):
    readme.fill('nothing', {'y': ''})


def test_a_study_of_the_arena_is_a_table_of_its_algorithms():
  runs = {seed: {'eval/sft/score': 0.5, 'eval/sft/greedy_score': 0.25, 'eval/ppo/score': score,
                 'eval/ppo/greedy_score': 0.75, 'eval/ppo/kl_to_reference': 1.5}
          for seed, score in ((0, 0.6), (1, 0.8))}
  assert readme.arena(render.Setting('arena', 'addition', runs)).split('\n') == [
      '| addition | score, sampled | greedy | KL (nats) |', '|---|---|---|---|',
      '| sft | 0.500 | 0.250 | - |', '| ppo | 0.700 ± 0.100 | 0.750 | 1.50 |']
