"""README.md and docs/ agree with the committed results, and what they name exists."""

import json
import pathlib
import re

import pytest

from experiments import make_tables
from jaxrl_llm.tables import digests, readme, render

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = make_tables.find_pages([str(ROOT / 'README.md'), str(ROOT / 'docs')])


def test_the_blocks_are_those_of_the_committed_results():
  blocks = make_tables.page_blocks(render.read_results(ROOT / 'results'), str(ROOT / 'results'))
  used = set()
  for page in PAGES:
    text = page.read_text()
    assert readme.fill(text, blocks) == text, page
    used |= set(re.findall('<!-- begin (.+) -->', text))
  assert used == set(blocks)  # Every table is shown somewhere.


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


def test_every_algorithm_and_config_is_in_the_map():
  text = (ROOT / 'docs' / 'algorithms.md').read_text()
  for folder in ('jaxrl_llm/algorithms', 'experiments/configs'):
    for path in (ROOT / folder).glob('*.py'):
      if path.stem != '__init__':
        assert f'{folder}/{path.name}' in text, path


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_file_and_command_of_a_page_exists(page):
  text = page.read_text()
  for target in re.findall(r'\]\(([^)#:]+)\)', text):
    assert (page.parent / target).exists(), target
  for module in re.findall(r'python -m experiments\.(\w+)', text):
    program = ROOT / 'experiments' / module
    assert program.with_suffix('.py').exists() or (program / '__main__.py').exists(), module
  targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
  for target in re.findall(r'`make (\w+)`|^make (\w+) ', text, re.MULTILINE):
    assert ''.join(target) in targets


def test_the_readme_is_short_and_its_example_runs():
  text = (ROOT / 'README.md').read_text()
  assert len(text.encode()) <= 9_000
  code = re.search(r'```python\n(.*?)```', text, re.DOTALL)[1]
  statements = [line for line in code.splitlines() if line and not re.match('import|from', line)]
  assert len(statements) <= 12
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  assert int(names['state'].step) == 1
  assert names['scored'].rewards.shape == (64, 4)


def test_fill_replaces_a_block_and_nothing_else():
  text = 'a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n'
  filled = readme.fill(text, {'x': r'new \1'})
  assert filled == 'a\n<!-- begin x -->\nnew \\1\n<!-- end x -->\nb\n'
  assert readme.fill(filled, {'x': r'new \1'}) == filled


def test_an_unknown_block_is_named():
  with pytest.raises(ValueError, match="got 'y'"):
    readme.fill('<!-- begin y -->\nold\n<!-- end y -->', {'x': ''})
  with pytest.raises(ValueError, match='must be followed by'):
    readme.fill('<!-- begin x -->\nold', {'x': ''})


def test_a_study_of_the_arena_is_a_table_of_its_algorithms():
  runs = {seed: {'eval/sft/score': 0.5, 'eval/sft/greedy_score': 0.25, 'eval/ppo/score': score,
                 'eval/ppo/greedy_score': 0.75, 'eval/ppo/kl_to_reference': 1.5}
          for seed, score in ((0, 0.6), (1, 0.8))}
  assert readme.arena(render.Setting('arena', 'addition', runs)).split('\n') == [
      '| addition | score, sampled | greedy | KL (nats) |', '|---|---|---|---|',
      '| sft | 0.500 | 0.250 | - |', '| ppo | 0.700 ± 0.100 | 0.750 | 1.50 |']


def test_word_problems_are_a_table_of_the_arms_of_both_programs():
  run = {'eval/reference/pass@1': 0.5, 'eval/control/pass@1': 0.625, 'eval/trained/pass@1': 0.75,
         'eval/trained/kl_to_reference': 1.25, 'sampled_tokens': 8_000, 'wall_seconds': 600.0,
         'memory/host_peak_bytes': 3_250_000_000, 'processor/model': 'X'}
  arms = [render.Setting('a_star_po', 'words_n8', {0: run}),
          render.Setting('online_rl', 'words_grpo', {0: run, 1: {**run, 'wall_seconds': 720.0}})]
  lines = readme.words(arms).split('\n')
  assert lines[2:6] == [
      '| reference | 50.0 | - | - | - | - | - | - |',
      '| reference at temperature 0.5 | 62.5 | - | - | - | - | - | - |',
      '| A\\*-PO, N = 8 | 75.0 | - | 1.25 | - | 8,000 | 10 | 3.2 |',
      '| grpo | 75.0 | - | 1.25 | - | 8,000 | 11 ± 1 | 3.2 |']
  assert lines[-1] == 'Seeds 0, 1; X.'


def test_guided_policies_are_rows_by_rule_and_eta():
  run = {'processor/model': 'X', 'expected/eta_0.1/accuracy': 1.0, 'expected/eta_0.1/kl': 1.3}
  run |= {f'eval/{arm}/{key}': value for arm in ('reference', 'q_sharp/eta_0.1', 'q_sharp/eta_10')
          for key, value in (('accuracy', 0.5), ('maj@16', 0.25), ('kl', 0.125))}
  lines = readme.guided(render.Setting('q_sharp', 'noisy_sum', {0: run, 2: run})).split('\n')
  assert lines[2:] == [
      '| reference | 50.0 | 25.0 | 0.125 | - |', '| reference at temperature 0.5 | - | - | - | - |',
      '| Q#, η = 10 | 50.0 | 25.0 | 0.125 | -, - |',
      '| Q#, η = 0.1 | 50.0 | 25.0 | 0.125 | 100.0, 1.300 |', '',
      'Seeds 0, 2; mean ± standard error over seeds; X.']


def test_searches_are_rows_and_budgets_columns():
  runs = {seed: {'processor/model': 'X', 'eval/pass@1': 0.25, 'eval/mv@2': 0.2, 'eval/mv@16': 0.1,
                 'eval/vgs@2': score, 'eval/vgs@16': 1.0} for seed, score in ((0, 0.4), (1, 0.6))}
  assert readme.searches(render.Setting('vgs', 'noisy_sum', runs)).split('\n') == [
      '| accuracy (%) | N = 2 | N = 16 |', '|---|---|---|',
      '| majority vote of N samples | 20.0 | 10.0 |',
      '| search by value, weighted vote | 50.0 ± 10.0 | 100.0 |', '',
      'One sample: 25.0 %. Seeds 0, 1; mean ± standard error over seeds; X.']


def test_the_gap_of_hmms_in_context_is_paired_by_seed():
  runs = {seed: {f'eval/{method}/accuracy/T4': accuracy + 0.1 * seed for method, accuracy in (
      ('icl', 0.25), ('filter', 0.5), ('bigram', 0.125))} for seed in range(2)}
  assert readme.icl_hmm(render.Setting('icl_hmm', 'default', runs)).split('\n') == [
      '| T | in context | filter (knows the HMM) | bigrams of the context | Baum-Welch, best of 5 '
      '| gap to the filter |', '|---|---|---|---|---|---|',
      '| 4 | 0.300 ± 0.050 | 0.550 ± 0.050 | 0.175 ± 0.050 | - | 0.250 |']


def test_a_language_model_on_hmms_is_a_row_like_the_recorded_ones():
  run = {f'{name}/accuracy/T{length}': 0.5 for length in (4, 8) for name in (
      'eval/filter', 'eval/123', 'recorded/qwen2.5_0.5b')}
  run |= {'eval/123/accuracy_se/T8': 0.01, 'eval/123/hellinger/T8': 0.25,
          'eval/123/final_gap': 0.125, 'eval/123/reached_0.05': 4.0}
  assert readme.icl_hmm_checkpoint(render.Setting('icl_hmm', 'checkpoint', {0: run})).split(
      '\n') == [
          '| | T = 4 | T = 8 | H | ε | T(0.05) |', '|---|---|---|---|---|---|',
          '| filter (knows the HMM) | 50.0 | 50.0 | - | - | - |',
          '| the model, numbers | 50.0 | 50.0 ± 1.0 | 0.250 | 0.125 | 4 |',
          '| Qwen2.5-0.5B, letters, recorded | 50.0 | 50.0 | - | - | - |']


def test_simulated_mice_are_excluded_from_the_table_of_mice():
  run = {'mice/M1/glm/accuracy': 0.5, 'mice/simulated_0/glm/accuracy': 0.75,
         'mean/glm/accuracy': 0.5}
  lines = readme.icl_hmm_mice(render.Setting('icl_hmm', 'mice', {0: run})).split('\n')
  assert lines[0] == '| accuracy (%) | M1 | mean |' and '| GLM | 50.0 | 50.0 |' in lines


@pytest.mark.parametrize('text, words', [
    ('{', 'a.json is not JSON'), ('[' * 100_000, 'a.json is not JSON'),
    ('[1]', 'a.json must hold one flat object'), ('{"a": 1.5}', 'a.json is damaged')])
def test_a_damaged_benchmark_is_named(tmp_path, text, words):
  path = tmp_path / 'a.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=words):
    readme.speed([path], [('a', 'label', 1)])


def test_a_benchmark_needs_its_number_and_its_digest(tmp_path):
  path = tmp_path / 'a.json'
  for numbers in ({}, {'a': 'x'}):
    path.write_text(json.dumps(digests.with_digest(numbers)))
    with pytest.raises(ValueError, match="a.json must have a number 'a'"):
      readme.speed([path], [('a', 'label', 1)])
  path.write_text(json.dumps(digests.with_digest({'a': 1.5})))
  assert '| label | 1.5 |' in readme.speed([path], [('a', 'label', 1)])
  path.write_text(path.read_text().replace('1.5', '2.5'))
  with pytest.raises(ValueError, match='a.json is damaged'):
    readme.speed([path], [('a', 'label', 1)])
