"""Episodes of few-shot learning: how they are drawn, and from what."""

import numpy as np
import pytest

from jaxrl_llm.graphs import episodes


def _features():
  labels = np.repeat(np.arange(6), [4, 5, 9, 5, 5, 7]).astype(np.int32)
  return episodes.Features(np.arange(len(labels), dtype=np.float32)[:, None], labels)


def test_an_episode_has_k_labelled_and_q_other_examples_of_n_classes():
  data = _features()
  for index in range(50):
    episode = episodes.draw_episode(data, way=3, shots=2, queries=3, seed=0, index=index)
    assert episode.features.shape == (15, 1) and len(set(episode.rows)) == 15
    np.testing.assert_array_equal(episode.features[:, 0], episode.rows)
    np.testing.assert_array_equal(
        episode.labels, [0, 0, 1, 1, 2, 2, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    # Each label is one class of the file, and no two labels are the same one.
    behind = [set(data.labels[episode.rows[episode.labels == c]]) for c in range(3)]
    assert [len(classes) for classes in behind] == [1, 1, 1] and len(set.union(*behind)) == 3
    assert 0 not in set.union(*behind)  # It has four examples only.


def test_classes_examples_and_their_roles_are_drawn_uniformly():
  data = _features()
  drawn = [episodes.draw_episode(data, way=2, shots=1, queries=4, seed=0, index=i)
           for i in range(600)]
  classes = np.bincount(np.concatenate([data.labels[e.rows[:2]] for e in drawn]), minlength=6)
  assert np.square(classes[1:] - 240).sum() / 240 < 18.5  # Chi-square, 4 degrees, p = .001.
  support = np.concatenate([e.rows[:2] for e in drawn])
  of_one_class = np.bincount(support, minlength=35)[4:9]
  expected = of_one_class.sum() / 5
  assert np.square(of_one_class - expected).sum() / expected < 18.5


def test_it_is_a_function_of_seed_and_index():
  draw = lambda seed, index: episodes.draw_episode(
      _features(), way=3, shots=1, queries=2, seed=seed, index=index).rows
  np.testing.assert_array_equal(draw(0, 1), draw(0, 1))
  assert not np.array_equal(draw(0, 1), draw(0, 2))
  assert not np.array_equal(draw(0, 1), draw(1, 1))


def test_too_few_classes_are_one_line_errors():
  with pytest.raises(ValueError, match='way must be at most 5, the classes with 2 . 3 examples'):
    episodes.draw_episode(_features(), way=6, shots=2, queries=3, seed=0, index=0)


def test_a_file_of_features_is_read_with_labels_from_0(tmp_path):
  path = tmp_path / 'features.npz'
  np.savez(path, features=np.eye(3), labels=np.array([70, 64, 70]))
  data = episodes.read_features(path)
  np.testing.assert_array_equal(data.labels, [1, 0, 1])
  assert data.features.dtype == np.float32 and data.features.shape == (3, 3)


@pytest.mark.parametrize('arrays, words', [
    ({'features': np.eye(3)}, "with 'features' and 'labels'"),
    ({'features': np.ones(3), 'labels': np.arange(3)}, 'features must be real numbers'),
    ({'features': np.eye(3), 'labels': np.arange(2)}, 'labels must be 3 integers'),
    ({'features': np.eye(3), 'labels': np.ones(3)}, 'labels must be 3 integers'),
    ({'features': np.full((3, 2), np.nan), 'labels': np.arange(3)}, 'features must be finite'),
    # Judged in float32: out of its range, beyond what squares allow, and no real numbers.
    ({'features': np.full((3, 2), 1e300), 'labels': np.arange(3)}, 'features must be finite'),
    ({'features': np.full((3, 2), -1e25), 'labels': np.arange(3)}, 'at most 1e.15 in magnitude'),
    ({'features': np.full((3, 2), 1j), 'labels': np.arange(3)}, 'real numbers .*complex128'),
    ({'features': np.full((3, 2), 'a'), 'labels': np.arange(3)}, 'real numbers .*<U1'),
    ({'features': np.ones((3, 0)), 'labels': np.arange(3)}, 'D at least 1, got float64 .3, 0.'),
    ({'features': np.array([[None]]), 'labels': np.arange(1)}, "with 'features' and 'labels'"),
])
def test_other_files_are_one_line_errors(tmp_path, arrays, words):
  path = tmp_path / 'features.npz'
  np.savez(path, **arrays)
  with pytest.raises(ValueError, match=words) as error:
    episodes.read_features(path)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', [bool, np.uint8, np.int64, np.float16, np.float64])
def test_features_of_any_real_type_are_read(tmp_path, kind):
  path = tmp_path / 'features.npz'
  np.savez(path, features=np.eye(3).astype(kind), labels=np.arange(3))
  data = episodes.read_features(path)
  assert data.features.dtype == np.float32
  np.testing.assert_array_equal(data.features, np.eye(3))


def test_a_missing_file_is_one_line(tmp_path):
  with pytest.raises(ValueError, match='features_file: not a file: '):
    episodes.read_features(tmp_path / 'features.npz')


def test_generated_classes_are_arcs():
  options = dict(seed=0, num_classes=3, per_class=400, width=32)
  data = episodes.make_features(**options, spread=0.0, curvature=.5)
  for label in range(3):
    rows = data.features[data.labels == label]
    centred = rows - rows.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)
    assert singular[1] > 1e-2 and singular[2] < 1e-3  # A curve in a plane.
    assert singular[0]**2 / 400 == pytest.approx(1 / 3, abs=.06)  # Mean of (2 · .5 t)².
  points = episodes.make_features(**options, spread=0.0, curvature=0.0)
  assert np.ptp(points.features[:400], axis=0).max() < 1e-6
  with pytest.raises(ValueError, match='num_classes must be at least 2, got 1'):
    episodes.make_features(**(options | {'num_classes': 1}), spread=0.0, curvature=0.0)
