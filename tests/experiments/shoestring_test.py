"""The study of Shoestring: what it trains, what it writes, what it refuses."""

import ast
import csv
import dataclasses
import importlib
import inspect
import json
import pickle
import re

import numpy as np
import pytest

from experiments import settings_shoestring, shoestring, shoestring_criteria, shoestring_report
from jaxrl_llm.data import planetoid
from jaxrl_llm.tasks import graphs
from jaxrl_llm.training import metrics
from tests.experiments import tiny

BLOCKS, CORA = (f'experiments/configs/shoestring_{name}.py' for name in ('blocks', 'cora'))
SMALL = ('--config.steps=25', '--config.num_splits=2', '--config.refinement_ratios=(0.0,0.2)',
         '--config.width=4')
SMALL_BLOCKS = (*SMALL, '--config.labels_per_class=(1,3)', '--config.backbones=gcn,lp',
                '--config.heads=softmax,cos',
                '--config.blocks.nodes_per_class=12', '--config.blocks.num_words=48',
                '--config.blocks.words_per_node=6')


def _run(workdir, *arguments, config=BLOCKS):
  return tiny.run(shoestring.main, f'--workdir={workdir}', f'--config={config}', *arguments,
                  experiment='shoestring', default_config=BLOCKS)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('shoestring') / 'run'
  assert _run(workdir, *SMALL_BLOCKS) == 0
  return workdir


def _results(workdir):
  return json.loads((workdir / 'results.json').read_text())


def _rows(path):
  with open(path, newline='') as file:
    return list(csv.DictReader(file))


def test_results_are_means_over_the_splits_that_are_listed(workdir):
  results, rows = _results(workdir), _rows(workdir / 'accuracy_by_split.csv')
  for backbone in ('lp', 'gcn'):
    for head in ('softmax', 'cos'):
      for labels in ('n1', 'n3'):
        values = lambda way, arm=(backbone, head, labels): np.array([
            float(row['accuracy']) for row in rows
            if (row['backbone'], row['head'], row['split'], row['read_by']) == (*arm, way)])
        honest = values('softmax' if head == 'softmax' else 'prototypes')
        prefix = f'eval/{backbone}/{head}/{labels}'
        assert len(honest) == 2
        assert results[f'{prefix}/accuracy'] == pytest.approx(honest.mean())
        assert results[f'{prefix}/standard_error'] == pytest.approx(
            honest.std(ddof=1) / np.sqrt(2))
        assert results[f'{prefix}/leaky_accuracy'] == pytest.approx(values('leaky').mean())
        assert results[f'{prefix}/prototype_accuracy'] == pytest.approx(
            values('prototypes').mean())
        assert results[f'{prefix}/refined_0.2_accuracy'] == pytest.approx(
            values('refined_0.2').mean())
        np.testing.assert_array_equal(values('refined_0'), values('prototypes'))
        # Every accuracy is a fraction of the nodes that are not trained on.
        whole = honest * (48 - 4 * int(labels[1:]))
        np.testing.assert_allclose(whole, np.round(whole), atol=1e-4)
        names = {'softmax': 'softmax_difference', 'prototypes': 'prototype_difference'}
        for way, name in names.items():
          # Nothing is trained in label propagation, so that λ changes nothing.
          assert (f'{prefix}/{name}' in results) == ((backbone, head) == ('gcn', 'cos'))
          if f'{prefix}/{name}' in results:  # Read in the same way at λ = 0.
            plain = values(way, (backbone, 'softmax', labels))
            expected = (values(way) - plain).mean()
            assert results[f'{prefix}/{name}'] == pytest.approx(expected)
            assert (results[f'{prefix}/{name}_low'] <= results[f'{prefix}/{name}']
                    <= results[f'{prefix}/{name}_high'])
        # At λ = 0 every metric reads the outputs.
        assert (f'{prefix}/prototype_l1_accuracy' in results) == (head == 'softmax')
        assert (f'{prefix}/unreached' in results) == ((backbone, head) == ('lp', 'softmax'))
        if head == 'softmax':
          for metric in ('l1', 'l2'):
            assert results[f'{prefix}/leaky_{metric}_accuracy'] == pytest.approx(
                values(f'leaky_{metric}').mean())
            assert results[f'{prefix}/prototype_{metric}_accuracy'] == pytest.approx(
                values(f'prototypes_{metric}').mean())
  assert {row['seed'] for row in rows} == {'0', '1'}


def test_a_run_leaves_a_table_a_figure_with_its_data_and_curves(workdir):
  assert (workdir / 'figures' / 'accuracy.png').read_bytes().startswith(b'\x89PNG')
  rows = _rows(workdir / 'figures' / 'accuracy.csv')
  assert {row['read_by'] for row in rows} == {
      'softmax', 'prototypes', 'mixed', 'leaky', 'leaky_mixed'}
  text = (workdir / 'table.md').read_text()
  assert 'prototypes of test labels (leaky)' in text and '(d)' in text and '(f)' in text
  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  assert [record['step'] for record in records] == [0, 20, 24]
  arms = [f'train/gcn/{head}/{n}/loss' for head in ('softmax', 'cos') for n in ('n1', 'n3')]
  assert all(set(arms) == set(record) - {'step'} for record in records)
  # The first loss is about log 4 of each head: that of cos has .01 of it more, and decay.
  first = records[0]
  assert first['train/gcn/softmax/n1/loss'] == pytest.approx(np.log(4), abs=.1)
  assert 0 < first['train/gcn/cos/n1/loss'] - first['train/gcn/softmax/n1/loss'] < .03
  assert records[-1]['train/gcn/softmax/n3/loss'] < first['train/gcn/softmax/n3/loss']


def test_arms_that_are_kept_are_not_trained_again(workdir, monkeypatch):
  before = _results(workdir)
  (workdir / 'results.json').unlink()
  (workdir / 'arms' / 'gcn_cos_n3.npz').unlink()
  trained, train = [], shoestring.Trainer.train
  monkeypatch.setattr(shoestring.Trainer, 'train', lambda *arguments: (
      trained.append(arguments[-1]), train(*arguments))[1])
  assert _run(workdir, *SMALL_BLOCKS) == 0
  assert trained == ['gcn_cos_n3']
  timeless = lambda results: {k: v for k, v in results.items() if k not in ('wall_seconds',
                                                                           'commit')}
  assert timeless(_results(workdir)) == timeless(before)


@pytest.fixture(scope='module')
def data_folder(tmp_path_factory):
  """A small graph under Cora's name, with a public split."""
  folder = tmp_path_factory.mktemp('planetoid')
  graph = graphs.make_graph(seed=0, num_classes=3, nodes_per_class=16, num_words=30,
                            words_per_node=5, word_signal=.8)
  train, test = planetoid.random_split(graph.labels, 4, seed=9)
  planetoid.write(folder / 'cora.npz', dataclasses.replace(
      graph, name='cora', train=train, validation=test[:6], test=test[6:]))
  return folder


def test_the_public_split_has_its_own_numbers_and_data_may_move(tmp_path, data_folder):
  arguments = (*SMALL, '--config.backbones=gcn', '--config.heads=softmax',
               '--config.labels_per_class=(2,)')
  workdir = tmp_path / 'run'
  assert _run(workdir, *arguments, f'--config.data_dir={data_folder}', config=CORA) == 0
  results = _results(workdir)
  for name in ('public', 'public/first_layer_decay'):
    assert 0 <= results[f'eval/gcn/softmax/{name}/accuracy'] <= 1
  # Thirty test nodes of the public split.
  whole = results['eval/gcn/softmax/public/accuracy'] * 30 * 2
  assert whole == pytest.approx(round(whole), abs=1e-4)
  assert 'criteria/a_public' in results
  (workdir / 'results.json').unlink()
  moved = _run(workdir, *arguments, '--config.data_dir=/nowhere', config=CORA)
  assert moved == 0  # What was read is kept in the workdir.


def test_every_field_is_read():
  source = ''.join(map(inspect.getsource, (shoestring, settings_shoestring.Shoestring)))
  read = {node.attr for node in ast.walk(ast.parse(source))
          if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
  assert {field.name for field in dataclasses.fields(settings_shoestring.Shoestring)} <= read


@pytest.mark.parametrize('path', ['cora', 'citeseer'])
def test_the_tables_hold_both_filters_and_the_second_one_with_two_heads(path):
  config = importlib.import_module(f'experiments.configs.shoestring_{path}').get_config()
  config.data_dir = 'somewhere'
  config.validate()
  heads = {name: config.chosen_heads(name) for name in config.chosen_backbones()}
  every, two = ['softmax', 'cos', 'l1', 'l2'], ['softmax', 'cos']
  assert heads == {'lp': every, 'gcn': every, 'igcn': every, 'igcn_ar': two, 'glp': every,
                   'glp_ar': two}


@pytest.mark.parametrize('argument, words', [
    ('--config.seed=3000000000', r'config.seed . config.num_splits must be at most 2\*\*31, got 3'),
    ('--config.num_splits=0', 'config.num_splits must be at least 1, got 0'),
    ('--config.dataset=pubmed', "config.dataset must be one of cora, .*got 'pubmed'"),
    ('--config.dataset=cora', "config.data_dir must name the folder .*got '' for 'cora'"),
    ('--config.data_dir=/tmp', "config.data_dir must name .*be '' for 'blocks'"),
    ('--config.backbones=gat', "config.backbones must be some of lp, .*got 'gat'"),
    ('--config.backbones=gcn,gcn', 'each once'),
    ('--config.heads=cos', "config.heads must contain 'softmax'"),
    ('--config.ar_heads=l1', "config.ar_heads must contain 'softmax'"),
    ('--config.heads=softmax,dot', 'config.heads must be some of softmax, cos, l1, l2'),
    ('--config.labels_per_class=(2,1)', 'config.labels_per_class must be positive and increasing'),
    ('--config.labels_per_class=(1,150)', 'less than the 150 nodes of class 0, got 150'),
    ('--config.learning_rate=0.0', 'config.learning_rate must be positive and finite'),
    ('--config.dropout=1.0', r'config.dropout must lie in \[0, 1\)'),
    ('--config.algorithm.metric=l1', "config.algorithm.metric must be 'cos' here"),
    ('--config.algorithm.metric_coefficient=0.0', 'metric_coefficient must be positive here'),
    ('--config.algorithm.leaky_eval=true', 'leaky_eval must be False here .both evaluations'),
    ('--config.algorithm.refinement_ratio=.1', 'refinement_ratio must be 0 here'),
    ('--config.refinement_ratios=(2.0,)', r'config.refinement_ratios must lie in \[0, 1\]'),
    ('--config.public_split=true', "config.public_split must be False for 'blocks'"),
    ('--config.blocks.homophily=2.0', r'homophily must lie in \[0, 1\], got 2.0'),
])
def test_bad_settings_are_one_line_and_status_2(tmp_path, capsys, argument, words):
  assert _run(tmp_path / 'run', argument) == 2
  _expect_line(capsys, words)
  assert not (tmp_path / 'run').exists()


def _expect_line(capsys, words):
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith('shoestring: error: ')
  assert re.search(words, lines[0]), lines[0]


def test_a_missing_folder_and_a_hostile_pickle_are_one_line_and_status_2(tmp_path, capsys):
  folder = tmp_path / 'data'
  run = lambda: _run(tmp_path / 'run', f'--config.data_dir={folder}', config=CORA)
  assert run() == 2
  _expect_line(capsys, 'data_dir must be a folder with cora.npz or the files ind.cora.graph')
  folder.mkdir()
  for part in ('y', 'tx', 'ty', 'allx', 'ally', 'graph'):
    (folder / f'ind.cora.{part}').write_bytes(pickle.dumps(print, protocol=2))
  assert run() == 2
  _expect_line(capsys, 'ind.cora.y is refused: its pickle asks for __builtin__.print')


# --- Criteria and tables, on outcomes made by hand.


def _outcome(**readings):
  names = ('softmax', 'prototypes', 'mixed', 'leaky', 'leaky_mixed', 'refined_0', 'refined_0.1')
  defaults = dict.fromkeys(names, [.5, .5])
  return {name: np.asarray(value, float) for name, value in (defaults | readings).items()}


def _plain_outcome(**readings):
  """At λ = 0: read by every metric."""
  made = _outcome(**readings)
  ways = ('prototypes', 'leaky')
  return {f'{way}_{metric}': made[way] for way in ways for metric in ('l1', 'l2')} | made


def _cora():
  """Outcomes of which every criterion holds."""
  made = {}
  for place, n in enumerate(('n1', 'n2', 'n20')):
    wide = np.array([-.06, .06]) / (place + 1)
    gcn = (.44, .54, .80)[place] + wide
    leak = (.19, .13, .005)[place]
    made['lp', 'softmax', n] = _outcome(softmax=gcn + .02, unreached=[.1, .2])
    made['gcn', 'softmax', n] = _plain_outcome(softmax=gcn, prototypes=gcn, leaky=gcn + leak)
    made['gcn', 'cos', n] = _outcome(
        softmax=gcn, prototypes=gcn - .01, leaky=gcn - .01 + leak, **{'refined_0.1': gcn})
    made['igcn', 'softmax', n] = _plain_outcome(softmax=gcn + .06)
  for decay, value in (('all', .817), ('first', .813)):
    made['gcn', 'softmax', f'public/{decay}'] = _outcome(softmax=[value, value])
  return made


def _verdicts(outcomes, dataset='cora'):
  return {f.name: f.holds for f in shoestring_criteria.findings(dataset, outcomes)}


def test_criteria_hold_where_they_should():
  assert _verdicts(_cora()) == {
      'a': True, 'a_public': True, 'b': True, 'b_lp': True, 'c': True, 'd': None, 'e': None,
      'f': True}


@pytest.mark.parametrize('name, arm, reading, shift', [
    ('a', ('gcn', 'softmax', 'n20'), 'softmax', .04),
    ('a_public', ('gcn', 'softmax', 'public/all'), 'softmax', .02),
    ('b', ('igcn', 'softmax', 'n2'), 'softmax', -.03),
    ('b_lp', ('lp', 'softmax', 'n1'), 'softmax', -.03),
    ('c', ('gcn', 'cos', 'n1'), 'leaky', -.08),
    ('c', ('gcn', 'cos', 'n2'), 'leaky', -.06),
    ('c', ('gcn', 'cos', 'n20'), 'leaky', .03),
    ('f', ('igcn', 'softmax', 'n2'), 'softmax', -.2),
])
def test_each_criterion_can_fail(name, arm, reading, shift):
  outcomes = _cora()
  outcomes[arm][reading] = outcomes[arm][reading] + shift
  assert _verdicts(outcomes)[name] is False


def test_a_criterion_of_cora_is_not_asked_of_another_graph_nor_of_missing_arms():
  assert set(_verdicts(_cora(), 'citeseer')) == {'c', 'd', 'e', 'f'}
  assert set(_verdicts(_cora(), 'blocks')) == {'d', 'e', 'f'}
  few = {name: arm for name, arm in _cora().items() if name[0] == 'lp'}
  assert set(_verdicts(few)) == {'e', 'f'}
  wider = _cora()
  wider['lp', 'softmax', 'n20']['softmax'] = np.array([.6, 1.0])
  assert _verdicts(wider)['f'] is False


def test_numbers_and_tables_by_hand():
  outcomes = _cora()
  numbers = shoestring_report.summarise(outcomes)
  assert numbers['eval/gcn/cos/n1/accuracy'] == pytest.approx(.43)
  assert numbers['eval/gcn/cos/n1/leaky_accuracy'] == pytest.approx(.62)
  assert numbers['eval/gcn/cos/n1/standard_error'] == pytest.approx(.06)
  assert numbers['eval/gcn/cos/n1/standard_deviation'] == pytest.approx(.06 * np.sqrt(2))
  assert numbers['eval/gcn/softmax/n1/accuracy'] == pytest.approx(.44)
  assert numbers['eval/lp/softmax/n1/unreached'] == pytest.approx(.15)
  # Both splits differ by one point, read by prototypes, and not at all, read by softmax: an
  # interval without width.
  for end in ('', '_low', '_high'):
    assert numbers[f'eval/gcn/cos/n1/prototype_difference{end}'] == pytest.approx(-.01)
    assert numbers[f'eval/gcn/cos/n1/softmax_difference{end}'] == pytest.approx(0)
  assert numbers['eval/gcn/softmax/public/accuracy'] == pytest.approx(.817)
  assert numbers['eval/gcn/softmax/public/first_layer_decay/accuracy'] == pytest.approx(.813)
  assert '| 43.0 ± 6.0 |' in shoestring_report.table(outcomes)
  assert 'no label reaches, which its softmax calls class 0: 15.0 % with 1' in (
      shoestring_report.table(outcomes))
  assert '-1.0 [-1.0, -1.0]' in shoestring_report.differences(outcomes)
  assert '+1.0 [+1.0, +1.0]' in shoestring_report.refinement(outcomes, (0, .1))


def test_a_head_is_compared_with_the_same_reading_by_the_same_metric():
  outcomes = _cora()
  for n in ('n1', 'n2', 'n20'):
    outcomes['gcn', 'l1', n] = _outcome(softmax=[.61, .61], prototypes=[.35, .35])
    outcomes['gcn', 'softmax', n] |= {
        'softmax': np.array([.6, .6]), 'prototypes': np.array([.2, .2]),
        'prototypes_l1': np.array([.3, .3]), 'prototypes_l2': np.array([.1, .1])}
  numbers = shoestring_report.summarise(outcomes)
  assert numbers['eval/gcn/l1/n1/softmax_difference'] == pytest.approx(.01)
  assert numbers['eval/gcn/l1/n1/prototype_difference'] == pytest.approx(.05)
  assert numbers['eval/gcn/softmax/n1/prototype_l1_accuracy'] == pytest.approx(.3)
  squeezed = lambda text: ' '.join(text.split())
  assert '| gcn + l1 | honest prototypes | +5.0 [+5.0, +5.0] |' in squeezed(
      shoestring_report.differences(outcomes))
  assert '| gcn | prototypes of training labels, l1 | 30.0 ± 0.0 |' in squeezed(
      shoestring_report.table(outcomes))


def test_the_leak_is_judged_only_where_all_of_it_was_measured():
  for missing in ('n1', 'n2', 'n20'):
    outcomes = {name: arm for name, arm in _cora().items() if name[2] != missing}
    assert 'c' not in _verdicts(outcomes)


def test_refinement_is_judged_at_one_ratio_whatever_is_best():
  outcomes = _cora()
  for arm in outcomes.values():
    arm['refined_0.2'] = arm['refined_0.1'] + .5
  told = {f.name: f.measured for f in shoestring_criteria.findings('cora', outcomes)}['e']
  assert 'gcn + cos +1.0 [+1.0, +1.0]' in told and 'gcn, λ = 0' in told and '+51' not in told


def test_steps_are_written_once_each(tmp_path):
  workdir = tmp_path / 'run'
  assert _run(workdir, *SMALL_BLOCKS, '--config.steps=1', '--config.backbones=gcn') == 0
  assert [r['step'] for r in metrics.read_jsonl(workdir / 'metrics.jsonl')] == [0]


def test_label_propagation_says_how_many_nodes_it_cannot_reach(tmp_path):
  # Nodes have hardly any neighbours: of most components no node is labelled.
  workdir = tmp_path / 'run'
  assert _run(workdir, *SMALL_BLOCKS, '--config.backbones=lp', '--config.heads=softmax',
              '--config.blocks.mean_degree=.2') == 0
  assert _results(workdir)['eval/lp/softmax/n1/unreached'] > .7
  assert 'no label reaches' in (workdir / 'table.md').read_text()


def test_cora_with_fewer_splits_and_epochs(tmp_path, data_dir):
  workdir = tmp_path / 'run'
  assert _run(workdir, '--config.steps=100', '--config.num_splits=2', '--config.backbones=gcn,lp',
              '--config.heads=softmax', '--config.labels_per_class=(1,20)',
              '--config.public_split=false', f'--config.data_dir={data_dir / "planetoid"}',
              config=CORA) == 0
  results = _results(workdir)
  assert results['eval/gcn/softmax/n20/accuracy'] > .72
  assert results['eval/lp/softmax/n20/accuracy'] > .55
  # What test labels in the prototypes are worth, to a network that knows nothing of prototypes:
  # much with one label a class, little with twenty (two splits settle no more than that).
  leak = lambda n: (results[f'eval/gcn/softmax/{n}/leaky_accuracy'] -
                    results[f'eval/gcn/softmax/{n}/prototype_accuracy'])
  assert leak('n1') > .08 and leak('n20') < leak('n1') / 3
