"""Tables from results.json files: numbers by hand, golden Markdown, malformed files."""

import csv
import dataclasses
import io
import json
import math
import subprocess
import sys

import pytest

from jaxrl_llm.tables import digests, reference, render


def _write(folder, experiment, setting, seed, **numbers):
  path = folder / experiment / setting / f'seed{seed}' / 'results.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(digests.with_digest({
      'experiment': experiment, 'setting': setting, 'seed': seed, 'commit': 'abc123',
      'sampled_tokens': 1500, 'wall_seconds': 12.5, 'device': '1 x cpu', 'versions/jax': '0.10.2',
      **numbers})))
  return path


def test_mean_and_standard_error_by_hand(tmp_path):
  # 1, 2, 3, 6: mean 3; deviations -2, -1, 0, 3 with squares summing to 14; sample variance 14/3;
  # standard error √(14/3) / √4 = 1.0801234.
  for seed, value in enumerate((1, 2, 3, 6)):
    _write(tmp_path, 'x', 'y', seed, score=value)
  (setting,) = render.read_results(tmp_path)
  summary = setting.summary('score')
  assert summary.mean == 3 and summary.count == 4
  assert summary.standard_error == pytest.approx(1.0801234497)
  assert setting.summary('absent') is None


def test_one_seed_has_no_error(tmp_path):
  _write(tmp_path, 'x', 'y', 0, score=1.5)
  (setting,) = render.read_results(tmp_path)
  assert setting.summary('score') == render.Summary(1.5, None, 1)


GOLDEN = """\
# toy

## Measured

Mean ± standard error over seeds. One seed alone has no error, or that over what it took several \
of: seeds side by side, splits, episodes, animals.

| setting | seeds | eval/trained/pass@1 | eval/trained/kl_to_reference | sampled_tokens | \
wall_seconds |
|---|---|---|---|---|---|
| big | 1 | – | 0.1250 | 1,500 | 12.5 |
| small | 3 | 0.9500 ± 0.0289 | 0.3000 (1 seeds) | 2,500 ± 577 | 12.5 ± 0.0 |

## Where the numbers come from

| setting | seeds | commit | jax | device |
|---|---|---|---|---|
| big | 4 | abc123 | 0.10.2 | 1 x cpu |
| small | 0, 1, 2 | abc123, def456 | 0.10.2 | 1 x cpu |
"""


def test_golden_markdown(tmp_path):
  # pass@1 of .9, .95, 1: standard error .05 / √3 = .0289. Tokens 1500, 2500, 3500: 1000 / √3 = 577.
  key = 'eval/trained/pass@1'
  _write(tmp_path, 'toy', 'small', 2, **{key: 1.0, 'sampled_tokens': 3500, 'commit': 'def456'})
  _write(tmp_path, 'toy', 'small', 0, **{key: 0.9, 'eval/trained/kl_to_reference': 0.3})
  _write(tmp_path, 'toy', 'small', 1, **{key: 0.95, 'sampled_tokens': 2500})
  _write(tmp_path, 'toy', 'big', 4, **{'eval/trained/kl_to_reference': 0.125, 'note': 'text'})
  assert render.markdown('toy', render.read_results(tmp_path)) == GOLDEN


def _processor(model, extensions='avx2 fma', threads=2):
  return {'processor/model': model, 'processor/vector_extensions': extensions,
          'processor/threads': threads}


def _note(folder):
  text = render.markdown('toy', render.read_results(folder))
  return text.partition('different processors')[2].partition('\n\n')[2]


def test_runs_from_different_processors_are_named(tmp_path):
  _write(tmp_path, 'toy', 'small', 0)  # Before processors were recorded.
  _write(tmp_path, 'toy', 'small', 1, **_processor('AMD EPYC'))
  _write(tmp_path, 'toy', 'big', 0, **_processor('AMD EPYC'))
  # The host of a GPU does not compute.
  _write(tmp_path, 'toy', 'big', 1, **_processor('Intel Xeon'), device='1 x NVIDIA H200')
  assert not _note(tmp_path)
  _write(tmp_path, 'toy', 'small', 2, **_processor('Intel Xeon', 'avx512f'))
  assert _note(tmp_path) == '''\
- AMD EPYC (2 threads; avx2 fma): big (seeds 0); small (seeds 1)
- processor not recorded: small (seeds 0)
- Intel Xeon (2 threads; avx512f): small (seeds 2)
'''


@pytest.mark.parametrize('other', [
    _processor('A', 'avx2 avx512f fma'), _processor('A', threads=1), _processor('B')])
def test_extensions_and_threads_make_another_processor(tmp_path, other):
  _write(tmp_path, 'toy', 'small', 0, **_processor('A'))
  _write(tmp_path, 'toy', 'small', 1, **_processor('A'))
  assert not _note(tmp_path)
  _write(tmp_path, 'toy', 'small', 2, **other)
  assert _note(tmp_path).count('\n') == 2


def test_threads_are_not_a_measurement(tmp_path):
  _write(tmp_path, 'toy', 'small', 0, **_processor('A'))
  (setting,) = render.read_results(tmp_path)
  assert setting.quantities() == ['sampled_tokens', 'wall_seconds']
  assert 'processor' not in render.csv_text([setting])
  assert 'processor' not in render.markdown('toy', [setting])


def test_a_run_of_several_seeds_records_its_error(tmp_path):
  _write(tmp_path, 'x', 'y', 0, score=1.5, score_se=0.25)
  (setting,) = render.read_results(tmp_path)
  assert setting.summary('score') == render.Summary(1.5, 0.25, 1)
  # With a second run the error is that between the two.
  _write(tmp_path, 'x', 'y', 1, score=2.5, score_se=9.0)
  (setting,) = render.read_results(tmp_path)
  assert setting.summary('score') == render.Summary(2.0, 0.5, 2)


def test_a_study_of_many_splits_records_its_error_next_to_the_accuracy(tmp_path):
  _write(tmp_path, 'x', 'y', 0, **{
      'eval/gcn/n1/accuracy': 0.5, 'eval/gcn/n1/standard_error': 0.02,
      'eval/gcn/n1/leaky_accuracy': 0.7, 'eval/gcn/n1/leaky_standard_error': 0.01})
  (setting,) = render.read_results(tmp_path)
  assert setting.summary('eval/gcn/n1/accuracy') == render.Summary(0.5, 0.02, 1)
  assert setting.summary('eval/gcn/n1/leaky_accuracy') == render.Summary(0.7, 0.01, 1)
  assert setting.summary('eval/gcn/n1/standard_error') == render.Summary(0.02, None, 1)


def test_other_spellings_of_an_error(tmp_path):
  _write(tmp_path, 'x', 'y', 0, **{
      'eval/icl/nll/T64': 0.5, 'eval/icl/nll_se/T64': 0.02, 'accuracy': 0.7, 'standard_error': 0.03,
      'mean/glm/probability': 0.6, 'mean/glm/probability_standard_error': 0.01})
  (setting,) = render.read_results(tmp_path)
  errors = {'eval/icl/nll/T64': 0.02, 'accuracy': 0.03, 'mean/glm/probability': 0.01}
  assert {key: setting.summary(key).standard_error for key in errors} == errors


def test_what_is_never_reached_makes_the_mean_infinite(tmp_path):
  for seed, value in enumerate((4, 32, 'inf')):
    _write(tmp_path, 'x', 'y', seed, reached=value)
  (setting,) = render.read_results(tmp_path)
  assert setting.summary('reached') == render.Summary(math.inf, None, 3)


def test_without_a_headline_everything_is_shown(tmp_path):
  _write(tmp_path, 'reward_model', 'demo', 0, **{'eval/accuracy': 0.75})
  text = render.markdown('reward_model', render.read_results(tmp_path))
  assert 'eval/accuracy' in text and '0.7500' in text


@pytest.mark.parametrize('experiment, shown, hidden', [
    ('icl_hmm', ('eval/icl/accuracy/T64', 'published/ngram1/hellinger_mae', 'mean/glm/accuracy'),
     ('eval/icl/accuracy_se/T64', 'eval/icl/nll/T64', 'mice/CSHL_001/glm/accuracy')),
    ('shoestring', ('eval/gcn/softmax/public/accuracy', 'eval/lp/cos/n1/leaky_accuracy'),
     ('eval/gcn/l2/n1/accuracy', 'eval/gcn/cos/n1/refined_0.1_accuracy')),
    ('shoestring_few_shot', ('eval/lp/5way_1shot/accuracy',), ('eval/lp/5way_1shot/difference',)),
])
def test_the_headlines_of_a_study_with_hundreds_of_numbers(tmp_path, experiment, shown, hidden):
  _write(tmp_path, experiment, 'y', 0, **{key: 0.25 for key in (*shown, *hidden)})
  text = render.markdown(experiment, render.read_results(tmp_path))
  assert [key in text for key in (*shown, *hidden)] == [True] * len(shown) + [False] * len(hidden)


def test_many_numbers_are_transposed(tmp_path):
  arms = {f'eval/arm_{i}/score': i for i in range(12)}
  _write(tmp_path, 'arena', 'addition', 0, **arms, **{'eval/arm_0/greedy_score': 7})
  _write(tmp_path, 'arena', 'dialogue', 0, **{'eval/arm_0/kl_to_reference': 0.5})
  lines = render.markdown('arena', render.read_results(tmp_path)).split('\n')
  assert lines[6] == '| setting | addition | dialogue |'
  assert '| eval/arm_11/score | 11 | – |' in lines
  assert '| eval/arm_0/kl_to_reference | – | 0.5000 |' in lines
  assert not any('greedy' in line for line in lines)


def _rows(text):
  return list(csv.DictReader(io.StringIO(text)))


def test_csv_holds_every_number(tmp_path):
  for seed in range(2):
    _write(tmp_path, 'toy', 'small', seed, other=seed, text='a', broken='nan')
  rows = {row['quantity']: row for row in _rows(render.csv_text(render.read_results(tmp_path)))}
  assert set(rows) == {'sampled_tokens', 'wall_seconds', 'other', 'broken'}
  assert rows['other']['mean'] == '0.5' and rows['other']['standard_error'] == '0.5'
  assert rows['other']['seeds'] == '2' and rows['broken']['mean'] == 'nan'


def test_published_numbers_follow_with_address_and_note(tmp_path):
  _write(tmp_path, 'a_star_po', 'arithmetic', 0, **{'eval/trained/greedy_accuracy': 0.97})
  settings = render.read_results(tmp_path)
  text = render.markdown('a_star_po', settings)
  assert '| Qwen2.5-7B, A*-PO | 11.01 | 76.57 | 0.078 | 76.2 | 34.56 | 34.27 | 56.25 |' in text
  assert '| Qwen2.5-1.5B, base | – | – | – | 45.8 | 16.91 | 17.66 | 20.55 |' in text
  assert 'ZhaolinGao/A-PO, assets/evaluations.png.' in text
  assert 'Scale differs' in text and '[published' not in text
  (row,) = [r for r in _rows(render.csv_text(settings)) if r['quantity'].startswith('eval/')]
  assert row['published'] == '' and row['note'].startswith('Scale differs')


def test_a_setting_at_the_published_scale_shows_its_counterpart(tmp_path, monkeypatch):
  (cell,) = [c for c in reference.PUBLISHED if (c.row, c.column) == (
      'Qwen2.5-1.5B, A*-PO', 'MATH500')]
  same = dataclasses.replace(
      cell, setting='math_qwen2.5_1.5b', key='eval/trained/greedy_accuracy', factor=100.0)
  monkeypatch.setattr(reference, 'PUBLISHED', (same,))
  _write(tmp_path, 'a_star_po', 'math_qwen2.5_1.5b', 0, **{'eval/trained/greedy_accuracy': 0.57})
  settings = render.read_results(tmp_path)
  assert '0.5700 [published: 0.578]' in render.markdown('a_star_po', settings)
  (row,) = [r for r in _rows(render.csv_text(settings)) if r['quantity'].startswith('eval/')]
  assert row['published'] == '57.8' and row['note'] == ''
  assert row['address'].endswith('row Qwen2.5-1.5B, A*-PO, column MATH500')


def test_the_public_split_is_next_to_its_published_accuracy(tmp_path):
  key = 'eval/gcn/softmax/public/first_layer_decay/accuracy'
  _write(tmp_path, 'shoestring', 'cora', 0, **{key: 0.8142})
  assert '0.8142 [published: 0.815]' in render.markdown('shoestring', render.read_results(tmp_path))


def test_every_published_number_has_an_address_of_its_own():
  addresses = [cell.address for cell in reference.PUBLISHED]
  assert len(set(addresses)) == len(addresses) == 3 * (4 + 4 * 7) + 2
  for cell in reference.PUBLISHED:
    assert cell.row in cell.address and cell.column in cell.address and 'arXiv' in cell.address
    assert cell.unit


@pytest.mark.parametrize('mean,error,text', [
    (0.95312, 0.00421, '0.9531 ± 0.0042'), (0.5, None, '0.5000'), (12.345, 0.05, '12.3 ± 0.1'),
    (1_204_000, None, '1,204,000'), (1_204_000.4, 1200.2, '1,204,000 ± 1,200'), (3, None, '3'),
    (float('nan'), None, 'nan'), (0.0, 0.0, '0 ± 0'), (-0.25, None, '-0.2500'),
])
def test_format_number(mean, error, text):
  assert render.format_number(mean, error) == text


@pytest.mark.parametrize('content,message', [
    ('{"a": 1', 'is not JSON'),
    ('[1, 2]', 'must hold one flat object, got a list'),
    ('{"experiment": "x"}', 'must have setting, got experiment'),
    ({'score': [1]}, r'score must be a number or a string, got \[1\]'),
    ({'score': None}, 'score must be a number or a string, got None'),
    ({'score': True}, 'score must be a number or a string, got True'),
    ({'seed': 'a'}, "seed must be an integer, got 'a'"),
    ({'seed': 3}, 'seed must be 0, as its directory says, got 3'),
    ('', 'is not JSON'),
    ('[' * 100_000, 'is not JSON'),
    ({'score': float('nan')}, 'score must be a finite number, got nan'),
    ({'score': float('-inf')}, 'score must be a finite number, got -inf'),
    ({'score': 10**400}, r'score must be a finite number, got 1000'),
    ({'experiment': 5}, 'experiment must be a string, got 5'),
    ({'experiment': '../x'}, "experiment must be the name of a program, got '../x'"),
    ({'device': 0}, 'device must be a string, got 0'),
    ({'wall_seconds': 'a'}, "wall_seconds must be a number, got 'a'"),
    ({'sha256': '0' * 64}, 'is damaged: its content does not match its digest'),
])
def test_malformed_results_are_one_line_errors(tmp_path, content, message):
  path = _write(tmp_path, 'x', 'y', 0)
  if isinstance(content, dict):
    content = json.loads(path.read_text()) | content
    if 'digest' not in message and 'finite' not in message:
      content = digests.with_digest(content)
    content = json.dumps(content)
  path.write_text(content)
  with pytest.raises(ValueError, match=message) as error:
    render.read_results(tmp_path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_every_change_of_results_with_a_digest_is_noticed(tmp_path):
  path = _write(tmp_path, 'x', 'y', 0, score=0.25)
  intact = json.loads(path.read_text())
  assert render.read_results(tmp_path)[0].runs[0]['score'] == 0.25
  for changed in (intact | {'score': 0.5}, intact | {'score': '0.25'}, intact | {'more': 1},
                  {name: value for name, value in intact.items() if name != 'score'},
                  {name: value for name, value in intact.items() if name != 'sha256'}):
    path.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match='results.json is damaged'):
      render.read_results(tmp_path)


def test_a_number_that_is_text_in_another_seed_is_an_error(tmp_path):
  _write(tmp_path, 'x', 'y', 0, score=0.25, other='nan', note='a')
  _write(tmp_path, 'x', 'y', 1, score=0.5, other=1, note='b')
  assert render.read_results(tmp_path)[0].summary('score').mean == 0.375
  _write(tmp_path, 'x', 'y', 2, score='0.5')
  with pytest.raises(ValueError, match="seed2/results.json: score must be .*'0.5' here and 0.25"):
    render.read_results(tmp_path)


def test_the_same_run_twice_is_an_error(tmp_path):
  path = _write(tmp_path, 'x', 'y', 0)
  copy = tmp_path / 'runs' / 'copy' / 'results.json'
  copy.parent.mkdir(parents=True)
  copy.write_text(path.read_text())
  with pytest.raises(ValueError, match='hold the same run, x / y / 0'):
    render.read_results(tmp_path)


def test_nothing_to_read(tmp_path):
  with pytest.raises(FileNotFoundError, match='no results.json below'):
    render.read_results(tmp_path)
  with pytest.raises(FileNotFoundError, match='not a directory'):
    render.read_results(tmp_path / 'absent')


def test_standard_library_only():
  script = (
      'import sys; before = set(sys.modules); from jaxrl_llm.tables import render; '
      'new = {name.partition(".")[0] for name in set(sys.modules) - before}; '
      'print(sorted(name for name in new if name not in sys.stdlib_module_names))')
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "['jaxrl_llm']"
