"""Few-shot episodes: the identities of the whole path, what it writes, what it refuses."""

import ast
import csv
import dataclasses
import functools
import inspect
import json
import re

import numpy as np
import pytest

from experiments import settings_shoestring, shoestring_few_shot
from jaxrl_llm.tasks import episodes
from jaxrl_llm.training import metrics
from tests.experiments import tiny

CONFIG = 'experiments/configs/shoestring_few_shot.py'
SMALL = ('--config.batch_size=3', '--config.queries=4', '--config.way=3', '--config.steps=10',
         '--config.neighbours=4')
SMALL_RUN = (*SMALL, '--config.episodes=6', '--config.shots=(1,2)')


def _run(workdir, *arguments):
  return tiny.run(shoestring_few_shot.main, f'--workdir={workdir}', *arguments,
                  experiment='shoestring_few_shot', default_config=CONFIG)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('few_shot') / 'run'
  assert _run(workdir, *SMALL_RUN) == 0
  return workdir


def _results(workdir):
  return json.loads((workdir / 'results.json').read_text())


def test_a_run_leaves_its_numbers_a_table_and_a_figure_with_its_data(workdir):
  results = _results(workdir)
  assert results['features'] == 'generated' and results['episodes'] == 6
  for name in shoestring_few_shot.METHODS:
    for shots in (1, 2):
      prefix = f'eval/{name}/3way_{shots}shot'
      whole = results[f'{prefix}/accuracy'] * 6 * 12  # Six episodes of twelve queries.
      assert whole == pytest.approx(round(whole), abs=1e-4)
      assert (f'{prefix}/difference' in results) == (name != 'prototypes')
  with open(workdir / 'figures' / 'accuracy.csv', newline='') as file:
    assert len(list(csv.DictReader(file))) == 2 * len(shoestring_few_shot.METHODS)
  assert (workdir / 'figures' / 'accuracy.png').read_bytes().startswith(b'\x89PNG')
  assert 'label propagation' in (workdir / 'table.md').read_text()
  assert [r['step'] for r in metrics.read_jsonl(workdir / 'metrics.jsonl')] == [0, 3]


def test_batches_that_are_kept_are_not_played_again(workdir, monkeypatch):
  before = _results(workdir)
  (workdir / 'results.json').unlink()
  (workdir / 'arms' / '2shot_3.npz').unlink()
  drawn, draw = [], episodes.draw_episode
  monkeypatch.setattr(episodes, 'draw_episode', lambda *arguments, **options: (
      drawn.append((options['shots'], options['index'])), draw(*arguments, **options))[1])
  assert _run(workdir, *SMALL_RUN) == 0
  assert drawn == [(1, 0), (2, 0), (2, 3), (2, 4), (2, 5)]  # The first two look whether they can.
  timeless = lambda results: {k: v for k, v in results.items() if k not in ('wall_seconds',
                                                                           'commit')}
  assert timeless(_results(workdir)) == timeless(before)


@functools.cache
def _classifier():
  config = settings_shoestring.FewShot(
      way=3, shots=(1,), queries=9, neighbours=5, batch_size=24, episodes=24, steps=40)
  return config, shoestring_few_shot.Classifier(config, 1, 8)


def _accuracies(data, seed=0):
  config, classifier = _classifier()
  drawn = [episodes.draw_episode(data, way=3, shots=1, queries=9, seed=seed, index=index)
           for index in range(config.batch_size)]
  found = classifier.classify(
      np.arange(config.batch_size), np.stack([e.features for e in drawn]),
      np.stack([e.labels for e in drawn]))
  return {name: np.asarray(values) for name, values in found.items()}


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
    found = classifier.classify(np.arange(config.batch_size), features, shifted)
    total = total + np.stack([np.asarray(values) for values in found.values()])
  np.testing.assert_allclose(total, 1, atol=1e-6)


def test_every_field_is_read():
  source = ''.join(map(inspect.getsource, (shoestring_few_shot, settings_shoestring.FewShot)))
  read = {node.attr for node in ast.walk(ast.parse(source))
          if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
  assert {field.name for field in dataclasses.fields(settings_shoestring.FewShot)} <= read


@pytest.mark.parametrize('argument, words', [
    ('--config.way=1', 'config.way must be at least 2, got 1'),
    ('--config.way=30', 'way must be at most 20, the classes with 1 . 15 examples, got 30'),
    ('--config.shots=(5,1)', 'config.shots must be positive and increasing'),
    ('--config.batch_size=7', 'config.episodes must be divided by config.batch_size .7., got 600'),
    ('--config.neighbours=80', 'config.neighbours must be less than the 80 nodes'),
    ('--config.label_alpha=0.0', 'config.label_alpha must be positive and finite'),
    ('--config.dropout=1.0', 'config.dropout must lie in'),
    ('--config.refinement_ratio=2.0', 'config.refinement_ratio must lie in'),
    ('--config.data_dir=/tmp', 'config.data_dir and config.features_file must be given both'),
    ('--config.algorithm.leaky_eval=true', 'config.algorithm.leaky_eval must be False here'),
    ('--config.algorithm.refinement_ratio=.1', 'config.algorithm.refinement_ratio must be 0 here'),
])
def test_bad_settings_are_one_line_and_status_2(tmp_path, capsys, argument, words):
  assert _run(tmp_path / 'run', argument) == 2
  _expect_line(capsys, words)


def test_a_file_that_is_missing_or_damaged_is_one_line_and_status_2(tmp_path, capsys):
  files = (f'--config.data_dir={tmp_path}', '--config.features_file=novel.npz')
  assert _run(tmp_path / 'run', *files) == 2
  _expect_line(capsys, 'features_file must be an npz file, and there is none at .*novel.npz')
  (tmp_path / 'novel.npz').write_bytes(b'PK\x03\x04')
  assert _run(tmp_path / 'run', *files) == 2
  _expect_line(capsys, "novel.npz must be an npz file with 'features' and 'labels'")


def _expect_line(capsys, words):
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1
  assert lines[0].startswith('shoestring_few_shot: error: ')
  assert re.search(words, lines[0]), lines[0]


def test_features_of_a_file_are_used(tmp_path):
  rng = np.random.default_rng(0)
  labels = np.repeat([3, 8, 9, 11], 6)
  np.savez(tmp_path / 'novel.npz', features=10 * np.eye(12)[labels] + rng.normal(size=(24, 12)),
           labels=labels)
  workdir = tmp_path / 'run'
  assert _run(workdir, *SMALL, '--config.shots=(1,)', '--config.episodes=3',
              f'--config.data_dir={tmp_path}', '--config.features_file=novel.npz') == 0
  results = _results(workdir)
  assert results['features'] == 'novel.npz'
  assert results['eval/prototypes/3way_1shot/accuracy'] > .9


def test_another_seed_generates_other_features():
  config = settings_shoestring.FewShot(seed=3)
  assert not np.array_equal(
      config.features().features, settings_shoestring.FewShot().features().features)
