"""Few-shot episodes: identities of methods, files, resumed runs and invalid configs."""

import copy
import csv
import functools
import shutil
import types

import jax
import numpy as np
import pytest

from experiments.shoestring_few_shot import __main__ as few_shot_main
from experiments.shoestring_few_shot import config as few_shot_config
from experiments.shoestring_few_shot import methods
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.graphs import episodes
from jaxrl_llm.training import metrics
from tests.experiments import studies, tiny

CONFIG = 'experiments/configs/shoestring_few_shot.py'
SMALL = ('--config.batch_size=3', '--config.queries=4', '--config.way=3', '--config.steps=10',
         '--config.neighbours=4')
SMALL_RUN = (*SMALL, '--config.episodes=6', '--config.shots=(1,2)')


def _run(workdir, *arguments):
  return tiny.run(few_shot_main.main, f'--workdir={workdir}', *arguments,
                  experiment='shoestring_few_shot', default_config=CONFIG)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('few_shot') / 'run'
  assert _run(workdir, *SMALL_RUN) == 0
  return workdir


def test_a_run_writes_results_a_table_and_a_figure_with_its_data(workdir):
  results = studies.results(workdir)
  assert results['features'] == 'generated' and results['episodes'] == 6
  for name in methods.METHODS:
    for shots in (1, 2):
      prefix = f'eval/{name}/3way_{shots}shot'
      whole = results[f'{prefix}/accuracy'] * 6 * 12  # Six episodes of twelve queries.
      assert whole == pytest.approx(round(whole), abs=1e-4)
      assert (f'{prefix}/difference' in results) == (name != 'prototypes')
  with open(workdir / 'figures' / 'accuracy.csv', newline='') as file:
    assert len(list(csv.DictReader(file))) == 2 * len(methods.METHODS)
  assert (workdir / 'figures' / 'accuracy.png').read_bytes().startswith(b'\x89PNG')
  text = (workdir / 'table.md').read_text()
  assert 'label propagation' in text
  assert text.strip().endswith('They say nothing about images (config.features_file).')
  assert [r['step'] for r in metrics.read_jsonl(workdir / 'metrics.jsonl')] == [0, 3]


def test_only_missing_and_damaged_batches_are_computed_again(workdir, monkeypatch, capsys):
  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()
  arms = workdir / 'arms'
  (arms / '2shot_3.npz').write_bytes((arms / '2shot_3.npz').read_bytes()[:-30])
  shutil.copy(arms / '1shot_0.npz', arms / '1shot_3.npz')

  drawn, draw = [], episodes.draw_episode
  monkeypatch.setattr(episodes, 'draw_episode', lambda *arguments, **options: (
      drawn.append((options['shots'], options['index'])), draw(*arguments, **options))[1])
  assert _run(workdir, *SMALL_RUN) == 0
  # The first two only test that episodes can be drawn.
  assert drawn == [(1, 0), (2, 0), (1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)]

  out = capsys.readouterr().out
  assert '1shot_3.npz: it was made for something else: begin is 0 there, 3 here' in out
  assert '2shot_3.npz: it is damaged' in out
  assert studies.timeless(workdir) == before


@functools.cache
def _classifier():
  config = few_shot_config.FewShot(
      way=3, shots=(1,), queries=9, neighbours=5, batch_size=24, episodes=24, steps=40)
  return config, methods.Classifier(config, 1, 8)


def _accuracies(data, seed=0):
  config, classifier = _classifier()
  drawn = [episodes.draw_episode(data, way=3, shots=1, queries=9, seed=seed, index=index)
           for index in range(config.batch_size)]
  actual = classifier.classify(
      np.arange(config.batch_size), np.stack([e.features for e in drawn]),
      np.stack([e.labels for e in drawn]))
  return {name: np.asarray(values) for name, values in actual.items()}


def test_classes_far_apart_are_told_apart_by_every_method():
  centres = np.eye(8)[:5]
  noise = .01 * np.random.default_rng(0).normal(size=(5, 12, 8))
  data = episodes.Features(
      (centres[:, None] + noise).reshape(-1, 8).astype(np.float32),
      np.repeat(np.arange(5), 12).astype(np.int32))
  for name, values in _accuracies(data).items():
    assert (values == 1).all(), name


def test_features_that_say_nothing_give_chance():
  # Query labels must not reach any method: what is left is a third.
  features = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
  data = episodes.Features(features, np.repeat(np.arange(8), 50).astype(np.int32))
  for name, values in _accuracies(data).items():
    assert abs(values.mean() - 1 / 3) < 5 * np.sqrt(2 / 9 / (24 * 27)) + .02, name


def test_predictions_do_not_depend_on_the_labels_of_queries():
  config, classifier = _classifier()
  data = episodes.make_features(
      seed=0, num_classes=6, per_class=20, width=8, spread=.2, curvature=.3)
  drawn = [episodes.draw_episode(data, way=3, shots=1, queries=9, seed=0, index=index)
           for index in range(config.batch_size)]
  features, labels = (np.stack([getattr(e, name) for e in drawn])
                      for name in ('features', 'labels'))
  # The queries right under three labellings that cover all classes must add up to all of them.
  total = 0
  for shift in range(3):
    shifted = labels.copy()
    shifted[:, 3:] = (labels[:, 3:] + shift) % 3
    actual = classifier.classify(np.arange(config.batch_size), features, shifted)
    total = total + np.stack([np.asarray(values) for values in actual.values()])
  np.testing.assert_allclose(total, 1, atol=1e-6)


@functools.cache
def _without_graph():
  """Settings under which graph and refinement do nothing: none of them may be given to a run."""
  config = few_shot_config.FewShot(
      way=3, shots=(1,), queries=4, neighbours=3, batch_size=8, steps=1, refinement_ratio=0.0,
      feature_alpha=0.0, label_alpha=0.0)
  data = episodes.make_features(
      seed=0, num_classes=6, per_class=20, width=8, spread=.3, curvature=.3)
  drawn = [episodes.draw_episode(data, way=3, shots=1, queries=4, seed=0, index=index)
           for index in range(8)]
  features, labels = (np.stack([getattr(e, name) for e in drawn])
                      for name in ('features', 'labels'))
  classifier = methods.Classifier(config, 1, 8)
  return features, labels, jax.jit(jax.vmap(classifier.scores))(np.arange(8), features, labels)


def test_without_refinement_and_without_a_filter_prototypes_are_left():
  _, _, scores = _without_graph()
  np.testing.assert_array_equal(scores['refined'], scores['prototypes'])
  np.testing.assert_allclose(scores['filtered'], scores['prototypes'], atol=1e-5)


def test_without_smoothing_label_propagation_knows_the_support_alone():
  _, labels, scores = _without_graph()
  np.testing.assert_array_equal(scores['lp'][:, :3], np.eye(3)[labels[:, :3]])
  np.testing.assert_array_equal(scores['lp'][:, 3:], 0)


def test_prototypes_of_one_shot_are_the_closest_example():
  features, labels, scores = _without_graph()
  unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
  np.testing.assert_array_equal(labels[:, :3], np.tile(np.arange(3), (8, 1)))
  np.testing.assert_allclose(
      scores['prototypes'], unit @ unit[:, :3].transpose(0, 2, 1), atol=1e-5)


_TINY = dict(way=2, shots=(1,), queries=2, neighbours=2, batch_size=2, episodes=4, steps=2, width=3,
             generated=few_shot_config.GeneratedFeatures(
                 num_classes=4, per_class=6, width=5),
             algorithm=shoestring.Config(weight_decay=.2))
_CHANGES = {
    'seed': 5, 'data_dir': '/tmp', 'features_file': 'novel.npz', 'way': 3, 'shots': (2,),
    'queries': 3, 'episodes': 6, 'batch_size': 3, 'neighbours': 3, 'label_alpha': 1.0,
    'feature_alpha': 1.0, 'refinement_ratio': .6, 'steps': 3, 'learning_rate': .1, 'width': 4,
    'dropout': .1, 'generated.num_classes': 5, 'generated.per_class': 7, 'generated.width': 6,
    'generated.spread': .5, 'generated.curvature': .1, 'algorithm.metric': 'l1',
    'algorithm.metric_coefficient': 9.0, 'algorithm.weight_decay': .9, 'algorithm.decay': 'first',
    'algorithm.refinement_ratio': .5, 'algorithm.leaky_eval': True,
}


def _changed(name=None):
  config = few_shot_config.FewShot(**copy.deepcopy(_TINY))
  if name:
    *parents, last = name.split('.')
    setattr(functools.reduce(getattr, parents, config), last, _CHANGES[name])
  return config


def test_every_field_has_another_value_here():
  # The note closes the table, below.
  assert set(studies.leaves(_changed())) == set(_CHANGES) | {'note'}


class _Sums:
  """Replaces a classifier: sums that identify the episodes, without training."""

  def __init__(self, *_):
    pass

  def classify(self, indices, features, labels):
    sums = features.sum(axis=(1, 2)) + labels.sum(axis=1)
    return dict.fromkeys(methods.METHODS, sums + 100 * indices)


def _played(folder, config, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(methods, 'Classifier', _Sums)
    run = types.SimpleNamespace(
        workdir=folder, config=config, save_clock=lambda: None, commit='')
    return few_shot_main.play(run, config.features(), '', config.shots[0], studies.Bar())['lp']


@functools.cache
def _episode():
  data = _changed().features()
  return episodes.draw_episode(data, way=2, shots=1, queries=2, seed=0, index=1)


def _scores(config):
  drawn = _episode()
  return jax.jit(methods.Classifier(config, 1, 5).scores)(
      1, drawn.features, drawn.labels)


_base_scores = functools.cache(lambda: _scores(_changed()))


@pytest.mark.parametrize('name', _CHANGES)
def test_every_field_has_an_effect_or_is_rejected(name, tmp_path, monkeypatch):
  config = _changed(name)
  try:
    config.validate()
  except ValueError as error:
    assert name.split('.')[-1] in str(error)
    return
  if name in ('way', 'shots', 'queries', 'episodes') or name.startswith('generated.'):
    assert not np.array_equal(_played(tmp_path / 'one', config, monkeypatch),
                              _played(tmp_path / 'two', _changed(), monkeypatch))
    return

  scores, base = _scores(config), _base_scores()
  changed = {method for method in base if np.abs(base[method] - scores[method]).max() > 1e-6}
  networks = {'gcn_softmax', 'gcn_prototypes'}
  assert changed == {
      'neighbours': {'lp', 'filtered'} | networks, 'label_alpha': {'lp'},
      'feature_alpha': {'filtered'}, 'refinement_ratio': {'refined'},
      'algorithm.metric': set(base) - {'lp'},
  }.get(name, networks)


@pytest.mark.parametrize('argument, words', [
    ('--config.seed=5000000000', r'config.seed must be less than 2\*\*32, got 5000000000'),
    ('--config.way=1', 'config.way must be at least 2, got 1'),
    ('--config.way=30', 'way must be at most 20, the classes with 1 . 15 examples, got 30'),
    ('--config.shots=(5,1)', 'config.shots must be positive and increasing'),
    ('--config.batch_size=7',
    'config.episodes must be divisible by config.batch_size .7., got 600'),
    ('--config.neighbours=80', 'config.neighbours must be less than the 80 nodes'),
    ('--config.label_alpha=0.0', 'config.label_alpha must be positive and finite'),
    ('--config.dropout=1.0', 'config.dropout must be in'),
    ('--config.refinement_ratio=2.0', 'config.refinement_ratio must be in'),
    ('--config.data_dir=/tmp', 'config.data_dir and config.features_file must be given both'),
    ('--config.algorithm.leaky_eval=true', 'config.algorithm.leaky_eval must be False here'),
    ('--config.algorithm.refinement_ratio=.1', 'config.algorithm.refinement_ratio must be 0 here'),
])
def test_invalid_configs_are_one_line_and_status_2(tmp_path, capsys, argument, words):
  assert _run(tmp_path / 'run', argument) == 2
  studies.expect_error(capsys, 'shoestring_few_shot', words)


def test_a_file_that_is_missing_or_damaged_is_one_line_and_status_2(tmp_path, capsys):
  files = (f'--config.data_dir={tmp_path}', '--config.features_file=novel.npz')
  assert _run(tmp_path / 'run', *files) == 2
  studies.expect_error(capsys, 'shoestring_few_shot', 'features_file: not a file: .*novel.npz')
  (tmp_path / 'novel.npz').write_bytes(b'PK\x03\x04')
  assert _run(tmp_path / 'run', *files) == 2
  studies.expect_error(
      capsys, 'shoestring_few_shot',
      "novel.npz must be an npz file with 'features' and 'labels'")


def test_features_of_a_file_are_used(tmp_path):
  rng = np.random.default_rng(0)
  labels = np.repeat([3, 8, 9, 11], 6)
  np.savez(tmp_path / 'novel.npz', features=10 * np.eye(12)[labels] + rng.normal(size=(24, 12)),
           labels=labels)
  workdir = tmp_path / 'run'
  assert _run(workdir, *SMALL, '--config.shots=(1,)', '--config.episodes=3',
              f'--config.data_dir={tmp_path}', '--config.features_file=novel.npz') == 0
  results = studies.results(workdir)
  assert results['features'] == 'novel.npz'
  assert results['eval/prototypes/3way_1shot/accuracy'] > .9
  assert (workdir / 'table.md').read_text().endswith('\nExamples: features of novel.npz.\n')


def test_a_run_resumes_only_with_its_own_features(tmp_path, capsys):
  rng = np.random.default_rng(0)
  labels = np.repeat([3, 8, 9, 11], 6)
  features = 10 * np.eye(12)[labels] + rng.normal(size=(24, 12))
  workdir, folders = tmp_path / 'run', [tmp_path / name for name in ('here', 'there', 'other')]
  for folder, shift in zip(folders, (0, 0, 1e-3)):
    folder.mkdir()
    np.savez(folder / 'novel.npz', features=features + shift, labels=labels)

  run = lambda folder: _run(
      workdir, *SMALL, '--config.shots=(1,)', '--config.episodes=3',
      f'--config.data_dir={folder}', '--config.features_file=novel.npz')
  assert run(folders[0]) == 0

  before = studies.timeless(workdir)
  (workdir / 'results.json').unlink()
  capsys.readouterr()
  assert run(folders[2]) == 2
  studies.expect_error(
      capsys, 'shoestring_few_shot',
      'the features must be those that .*run began with .SHA-256 .*give another')
  assert not (workdir / 'results.json').exists()

  path = workdir / 'features.json'
  text = path.read_text()
  path.write_text(text.replace(before['features_sha256'], '0' * 64))
  assert run(folders[0]) == 2
  studies.expect_error(capsys, 'shoestring_few_shot', 'features.json cannot be used: it is damaged')
  path.write_text(text)
  assert run(folders[1]) == 0  # The same ones, moved.
  assert studies.results(workdir)['features_sha256'] == before['features_sha256']
  assert len(before['features_sha256']) == 64


def test_another_seed_generates_other_features():
  config = few_shot_config.FewShot(seed=3)
  assert not np.array_equal(
      config.features().features, few_shot_config.FewShot().features().features)
