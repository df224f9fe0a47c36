"""The study of Shoestring: what it trains, what it writes, what it refuses."""

import copy
import dataclasses
import functools
import importlib
import pickle
import shutil
import types

import numpy as np
import pytest

from experiments.shoestring import __main__ as shoestring_main
from experiments.shoestring import config as shoestring_config
from experiments.shoestring import data as shoestring_data
from experiments.shoestring import heads
from jaxrl_llm.graphs import block_model, planetoid
from jaxrl_llm.training import metrics
from tests.experiments import studies, tiny

BLOCKS, CORA = (f'experiments/configs/shoestring_{name}.py' for name in ('blocks', 'cora'))
SMALL = ('--config.steps=25', '--config.num_splits=2', '--config.refinement_ratios=(0.0,0.2)',
         '--config.width=4')
SMALL_BLOCKS = (*SMALL, '--config.labels_per_class=(1,3)', '--config.backbones=gcn,lp',
                '--config.heads=softmax,cos',
                '--config.blocks.nodes_per_class=12', '--config.blocks.num_words=48',
                '--config.blocks.words_per_node=6')


def _run(workdir, *arguments, config=BLOCKS):
  return tiny.run(shoestring_main.main, f'--workdir={workdir}', f'--config={config}', *arguments,
                  experiment='shoestring', default_config=BLOCKS)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('shoestring') / 'run'
  assert _run(workdir, *SMALL_BLOCKS) == 0
  return workdir


def test_results_are_means_over_the_splits_that_are_listed(workdir):
  results, rows = studies.results(workdir), studies.rows(workdir / 'accuracy_by_split.csv')
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
        assert results[f'{prefix}/accuracy_se'] == pytest.approx(
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


def test_a_run_writes_a_table_a_figure_with_its_data_and_curves(workdir):
  assert (workdir / 'figures' / 'accuracy.png').read_bytes().startswith(b'\x89PNG')
  rows = studies.rows(workdir / 'figures' / 'accuracy.csv')
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


def test_only_missing_arms_are_trained_again(workdir, monkeypatch):
  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()
  (workdir / 'arms' / 'gcn_cos_n3.npz').unlink()
  trained, train = [], heads.Trainer.train
  monkeypatch.setattr(heads.Trainer, 'train', lambda *arguments: (
      trained.append(arguments[-1]), train(*arguments))[1])
  assert _run(workdir, *SMALL_BLOCKS) == 0
  assert trained == ['gcn_cos_n3']
  assert studies.timeless(workdir) == before


def _permute_labels(arrays):
  arrays['labels'] = arrays['labels'][::-1]


def _remove_edge(arrays):
  arrays['edges'] = arrays['edges'][1:]


@pytest.mark.parametrize('change', [_permute_labels, _remove_edge, None])
def test_a_changed_graph_is_made_again_and_a_damaged_arm_trained_again(
    workdir, monkeypatch, capsys, change):
  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()

  if change:
    arrays = dict(np.load(workdir / 'graph.npz'))
    change(arrays)
    np.savez_compressed(workdir / 'graph.npz', **arrays)
  else:  # An arm of other labels per class, and a graph that is a pickle.
    np.savez(workdir / 'graph.npz', labels=np.array([{}], object))
    shutil.copy(workdir / 'arms' / 'lp_cos_n1.npz', workdir / 'arms' / 'lp_cos_n3.npz')

  assert _run(workdir, *SMALL_BLOCKS) == 0
  out = capsys.readouterr().out
  assert 'graph.npz: it is damaged' in out
  assert out.count('computed again') == (1 if change else 2)
  assert studies.timeless(workdir) == before


def test_a_valid_graph_without_a_digest_is_refused(workdir, capsys):
  results = (workdir / 'results.json').read_bytes()
  graph = (workdir / 'graph.npz').read_bytes()
  (workdir / 'results.json').unlink()
  planetoid.write(workdir / 'graph.npz', block_model.make_graph(
      seed=0, num_classes=4, nodes_per_class=12, num_words=48, words_per_node=6))
  try:
    assert _run(workdir, *SMALL_BLOCKS) == 2
    studies.expect_error(capsys, 'shoestring', 'graph.npz cannot be used: .*no digest.*delete it')
  finally:
    (workdir / 'graph.npz').write_bytes(graph)
    (workdir / 'results.json').write_bytes(results)


@pytest.fixture(scope='module')
def data_folder(tmp_path_factory):
  """A small graph under Cora's name, with a public split."""
  folder = tmp_path_factory.mktemp('planetoid')
  graph = block_model.make_graph(seed=0, num_classes=3, nodes_per_class=16, num_words=30,
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
  results = studies.results(workdir)
  for name in ('public', 'public/first_layer_decay'):
    assert 0 <= results[f'eval/gcn/softmax/{name}/accuracy'] <= 1
  # Thirty test nodes of the public split.
  whole = results['eval/gcn/softmax/public/accuracy'] * 30 * 2
  assert whole == pytest.approx(round(whole), abs=1e-4)
  assert 'criteria/a_public' in results
  (workdir / 'results.json').unlink()
  moved = _run(workdir, *arguments, '--config.data_dir=/nowhere', config=CORA)
  assert moved == 0  # The workdir has a copy of the data.


# A tiny study, and for every field another value.
_TINY = dict(num_splits=2, backbones='gcn', heads='softmax,cos', labels_per_class=(1,), steps=2,
             width=3, refinement_ratios=(), blocks=shoestring_config.BlockModel(
                 num_classes=2, nodes_per_class=8, num_words=16, words_per_node=4))
_CHANGES = {
    'seed': 5, 'num_splits': 3, 'data_dir': '/tmp', 'dataset': 'pubmed', 'backbones': 'gcn,mlp',
    'heads': 'softmax', 'labels_per_class': (2,), 'steps': 3, 'learning_rate': .1, 'width': 4,
    'dropout': .1, 'refinement_ratios': (.5,), 'public_split': True,
    'blocks.num_classes': 4, 'blocks.nodes_per_class': 9, 'blocks.mean_degree': 2.0,
    'blocks.homophily': .5, 'blocks.num_words': 24, 'blocks.words_per_node': 3,
    'blocks.word_signal': .9, 'algorithm.metric': 'l1', 'algorithm.metric_coefficient': 9.0,
    'algorithm.weight_decay': .5, 'algorithm.decay': 'first', 'algorithm.refinement_ratio': .5,
    'algorithm.leaky_eval': True,
}
_ELSEWHERE = {'note', 'ar_heads'}  # In the two tests below this one.


def _tiny_config(changes=()):
  config = shoestring_config.Shoestring(**copy.deepcopy(_TINY))
  for name, value in dict(changes).items():
    *parents, last = name.split('.')
    setattr(functools.reduce(getattr, parents, config), last, value)
  return config


def _study(folder, config):
  folder.mkdir(exist_ok=True)
  return shoestring_main.Study(types.SimpleNamespace(
      workdir=folder, config=config, save_clock=lambda: None, commit=''))


def test_every_field_has_another_value_here():
  assert set(studies.leaves(_tiny_config())) == set(_CHANGES) | _ELSEWHERE


def _differ(first, second):
  if set(first) != set(second):
    return True
  return any(np.shape(value) != np.shape(second[name]) or not np.array_equal(value, second[name])
             for name, value in first.items())


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A study with the config above, and the accuracies of one arm."""
  study = _study(tmp_path_factory.mktemp('fields') / 'base', _tiny_config())
  return study, study._play('gcn', 'cos', 1, studies.Bar(), '')


@pytest.mark.parametrize('name', _CHANGES)
def test_every_field_has_an_effect_or_is_rejected(name, base, tmp_path):
  study, outcome = base
  config = _tiny_config({name: _CHANGES[name]})
  try:
    config.validate()
  except ValueError as error:
    assert name.split('.')[-1] in str(error)
    return
  other = _study(tmp_path / 'run', config)
  graphs_differ = _differ(vars(other._graph), vars(study._graph))
  assert graphs_differ == (name == 'seed' or name.startswith('blocks.'))
  if name in ('backbones', 'heads', 'labels_per_class'):
    assert other.arms() != study.arms()
  elif not name.startswith('blocks.'):
    other._graph = study._graph  # What is left must come from the seed, not from its graph.
    assert _differ(other._play('gcn', 'cos', 1, studies.Bar(), ''), outcome)


def test_the_heads_of_variants_are_among_those_of_all(tmp_path):
  config = _tiny_config({'backbones': 'gcn,igcn_ar', 'ar_heads': 'softmax,l1'})
  assert [arm[:2] for arm in _study(tmp_path, config).arms()] == [
      ('gcn', 'softmax'), ('gcn', 'cos'), ('igcn_ar', 'softmax')]


def test_the_table_ends_with_the_note(workdir):
  note = importlib.import_module('experiments.configs.shoestring_blocks').get_config().note
  assert (workdir / 'table.md').read_text().endswith(note + '\n')


@pytest.mark.parametrize('backbone', ['gcn', 'lp'])
def test_honest_readings_ignore_the_labels_of_test_nodes(tmp_path, monkeypatch, backbone):
  # Runs an arm under as many labellings of its test nodes as there are classes: each node has each
  # class once, so the accuracies must add up to 1.
  config = _tiny_config({'backbones': 'gcn,lp', 'refinement_ratios': (0.0, .3), 'steps': 6})
  study = _study(tmp_path / 'run', config)
  graph, split = study._graph, shoestring_data.make_split(config, study._graph, 1)
  monkeypatch.setattr(shoestring_data, 'make_split', lambda *_: split)
  outputs_read, read = [], study._read
  monkeypatch.setattr(study, '_read', lambda head, outputs, *more: (
      outputs_read.append(outputs), read(head, outputs, *more))[1])

  shared = ~np.isin(np.arange(graph.num_nodes), split.train)  # Not trained on in any split.
  split = shoestring_data.Split(split.train, np.stack([shared] * 2).astype(np.float32))
  total = 0
  for shift in range(graph.num_classes):
    labels = np.where(shared, (graph.labels + shift) % graph.num_classes, graph.labels)
    study._graph = dataclasses.replace(graph, labels=labels.astype(np.int32))
    arm = study._play(backbone, 'softmax', 1, studies.Bar(), '')
    total = total + np.stack([arm[name] for name in sorted(set(arm) - {'loss', 'unreached'})])
    np.testing.assert_array_equal(outputs_read[-1], outputs_read[0])  # Nor did the training.

  names = sorted(set(arm) - {'loss', 'unreached'})
  for name, values in zip(names, total):
    if 'leaky' not in name:
      np.testing.assert_allclose(values, 1, atol=1e-6, err_msg=name)
  assert np.abs(total[names.index('leaky')] - 1).max() > .05


@pytest.mark.parametrize('path', ['cora', 'citeseer'])
def test_tables_have_both_filters_and_the_second_one_with_two_heads(path):
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
    ('--config.dataset=cora', "config.data_dir must be the directory .*got '' for 'cora'"),
    ('--config.data_dir=/tmp', "config.data_dir must be .*or '' for 'blocks'"),
    ('--config.backbones=gat', "config.backbones must be some of lp, .*got 'gat'"),
    ('--config.backbones=gcn,gcn', 'each once'),
    ('--config.heads=cos', "config.heads must contain 'softmax'"),
    ('--config.ar_heads=l1', "config.ar_heads must contain 'softmax'"),
    ('--config.heads=softmax,dot', 'config.heads must be some of softmax, cos, l1, l2'),
    ('--config.labels_per_class=(2,1)', 'config.labels_per_class must be positive and increasing'),
    ('--config.labels_per_class=(1,150)', 'less than the 150 nodes of class 0, got 150'),
    ('--config.learning_rate=0.0', 'config.learning_rate must be positive and finite'),
    ('--config.dropout=1.0', r'config.dropout must be in \[0, 1\)'),
    ('--config.algorithm.metric=l1', "config.algorithm.metric must be 'cos' here: config.heads"),
    ('--config.algorithm.metric_coefficient=0.0', 'metric_coefficient must be positive and finite'),
    ('--config.algorithm.leaky_eval=true', 'leaky_eval must be False here: both evaluations'),
    ('--config.algorithm.refinement_ratio=.1', 'refinement_ratio must be 0 here: config.ref'),
    ('--config.refinement_ratios=(2.0,)', r'config.refinement_ratios must be in \[0, 1\]'),
    ('--config.refinement_ratios=(.1,.1)', 'config.refinement_ratios must .* and increase'),
    ('--config.public_split=true', "config.public_split must be False for 'blocks'"),
    ('--config.blocks.homophily=2.0', r'homophily must be in \[0, 1\], got 2.0'),
])
def test_invalid_configs_are_one_line_and_status_2(tmp_path, capsys, argument, words):
  assert _run(tmp_path / 'run', argument) == 2
  studies.expect_error(capsys, 'shoestring', words)
  assert not (tmp_path / 'run').exists()


def test_a_missing_folder_and_a_hostile_pickle_are_one_line_and_status_2(tmp_path, capsys):
  folder = tmp_path / 'data'
  run = lambda: _run(tmp_path / 'run', f'--config.data_dir={folder}', config=CORA)
  assert run() == 2
  studies.expect_error(
      capsys, 'shoestring',
      'data_dir must be a directory with cora.npz or the files ind.cora.graph')

  folder.mkdir()
  for part in ('y', 'tx', 'ty', 'allx', 'ally', 'graph'):
    (folder / f'ind.cora.{part}').write_bytes(pickle.dumps(print, protocol=2))
  assert run() == 2
  studies.expect_error(
      capsys, 'shoestring', "ind.cora.y is refused: its pickle asks for '__builtin__.print'")

  for payload in (
      b'cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.',
      b'cnumpy\nndarray\n(K\x01K\x01\x86cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R'
      b'X\x08\x00\x00\x00AAAAAAAAtR.',
      b'cscipy.sparse.csr\ncsr_matrix\nN}X\x05\x00\x00\x00shapeK\x05s\x86b.'):
    (folder / 'ind.cora.y').write_bytes(payload)
    assert run() == 2
    studies.expect_error(capsys, 'shoestring', 'ind.cora.y is not a complete pickle of arrays')


def test_a_graph_that_is_damaged_too_large_or_another_one_is_rejected_at_once(tmp_path, capsys):
  folder = tmp_path / 'data'
  graph = block_model.make_graph(seed=0, num_classes=2, nodes_per_class=8, num_words=8,
                            words_per_node=3)
  run = lambda: _run(tmp_path / 'run', '--config.public_split=false',
                     f'--config.data_dir={folder}', config=CORA)
  for changes, words in (
      ({}, "must be the data set 'cora', got 'blocks'"),
      ({'name': 'cora', 'labels': graph.labels - 5}, 'labels must be between -1 and 1'),
      ({'name': 'cora', 'labels': np.arange(5_001, dtype=np.int32) % 2,
        'indices': np.zeros((5_001, 1), np.int32), 'values': np.ones((5_001, 1), np.float32)},
       'a graph must have at most 5000 nodes, got 5001')):
    planetoid.write(folder / 'cora.npz', dataclasses.replace(graph, **changes))
    assert run() == 2
    studies.expect_error(capsys, 'shoestring', words)
    assert not (tmp_path / 'run' / 'arms').exists()


def test_steps_are_written_once_each(tmp_path):
  workdir = tmp_path / 'run'
  assert _run(workdir, *SMALL_BLOCKS, '--config.steps=1', '--config.backbones=gcn') == 0
  assert [r['step'] for r in metrics.read_jsonl(workdir / 'metrics.jsonl')] == [0]


def test_label_propagation_reports_the_nodes_that_it_cannot_reach(tmp_path):
  # Nodes have hardly any neighbours: of most components no node is labelled.
  workdir = tmp_path / 'run'
  assert _run(workdir, *SMALL_BLOCKS, '--config.backbones=lp', '--config.heads=softmax',
              '--config.blocks.mean_degree=.2') == 0
  assert studies.results(workdir)['eval/lp/softmax/n1/unreached'] > .7
  assert 'no label reaches' in (workdir / 'table.md').read_text()


def test_cora_with_fewer_splits_and_epochs(tmp_path, data_dir):
  workdir = tmp_path / 'run'
  assert _run(workdir, '--config.steps=100', '--config.num_splits=2', '--config.backbones=gcn,lp',
              '--config.heads=softmax', '--config.labels_per_class=(1,20)',
              '--config.public_split=false', f'--config.data_dir={data_dir / "planetoid"}',
              config=CORA) == 0
  results = studies.results(workdir)
  assert results['eval/gcn/softmax/n20/accuracy'] > .72
  assert results['eval/lp/softmax/n20/accuracy'] > .55
  # Gain from test labels in the prototypes of a network trained without prototypes: large with one
  # label per class, small with twenty (two splits show no more than that).
  leak = lambda n: (results[f'eval/gcn/softmax/{n}/leaky_accuracy'] -
                    results[f'eval/gcn/softmax/{n}/prototype_accuracy'])
  assert leak('n1') > .08 and leak('n20') < leak('n1') / 3
