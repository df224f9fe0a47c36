"""Prototypes: identities by their numbers, gradients, and what may not count."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxrl_llm.graphs import prototypes

LABELS = np.array([0, 1, 2, 0, 1, 2, 2, 0])
WEIGHT = np.array([1, 1, 1, 1, 0, 1, 0, 0], np.float32)


def _outputs(seed=0, rows=8, width=3):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, width)), jnp.float32)


def _centres(outputs, weight=WEIGHT):
  return prototypes.prototypes(outputs, LABELS, weight, num_classes=3)


def test_prototypes_are_means_of_labelled_outputs():
  outputs = _outputs()
  centres, counts = _centres(outputs)
  np.testing.assert_allclose(counts, [2, 1, 2])
  np.testing.assert_allclose(centres, np.stack([
      (outputs[0] + outputs[3]) / 2, outputs[1], (outputs[2] + outputs[5]) / 2]), atol=1e-6)


def test_nodes_are_weighted():
  outputs = jnp.array([[1.0, 0], [0, 2], [4, 4]])
  centres, counts = prototypes.prototypes(
      outputs, np.array([0, 0, 1]), jnp.array([.5, 1.5, .25]), num_classes=2)
  np.testing.assert_allclose(counts, [2, .25])
  np.testing.assert_allclose(centres, [[.25, 1.5], [4, 4]], rtol=1e-6)


def test_nodes_of_weight_0_are_ignored():
  outputs = _outputs()
  centres, _ = _centres(outputs)
  for nodes in ([4], [6, 7]):
    labels, spoilt = LABELS.copy(), outputs.at[jnp.array(nodes)].set(jnp.nan)
    labels[nodes] = -1
    again, _ = prototypes.prototypes(spoilt, labels, WEIGHT, num_classes=3)
    np.testing.assert_array_equal(again, centres)
    loss = lambda z, labels=labels: prototypes.cross_entropy(z, labels, WEIGHT).value()
    np.testing.assert_array_equal(loss(spoilt), prototypes.cross_entropy(
        outputs, LABELS, WEIGHT).value())
    gradient = jax.grad(loss)(spoilt)
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[nodes] == 0).all()


def test_a_class_without_nodes_has_a_prototype_of_0():
  centres, counts = prototypes.prototypes(_outputs(), LABELS, WEIGHT, num_classes=4)
  np.testing.assert_array_equal(centres[3], 0)
  assert counts[3] == 0


def test_similarities_by_hand():
  # z = (3, 4), p = (0, 2) and (-4, 3).
  z, centres = jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0], [-4.0, 3.0]])
  expected = {'cos': [.8, 0], 'l2': [-13, -50], 'l1': [-5, -8]}
  for metric, values in expected.items():
    np.testing.assert_allclose(
        prototypes.similarities(z, centres, metric=metric), [values], atol=1e-6)


@pytest.mark.parametrize('metric', prototypes.METRICS)
def test_SH5_one_label_a_class_is_its_own_prototype(metric):
  outputs = _outputs(rows=3)
  centres, _ = prototypes.prototypes(outputs, np.arange(3), np.ones(3), num_classes=3)
  np.testing.assert_array_equal(centres, outputs)
  own = jnp.diag(prototypes.similarities(outputs, centres, metric=metric))
  np.testing.assert_allclose(own, 1 if metric == 'cos' else 0, atol=1e-6)


@pytest.mark.parametrize('metric', prototypes.METRICS)
def test_SH5_refinement_is_a_weighted_mean_of_the_closest_outputs(metric):
  outputs = _outputs(rows=40, seed=3)
  labels, known = np.arange(40) % 3, np.arange(40) < 6
  weight, unlabelled = known.astype(np.float32), 1 - known.astype(np.float32)
  unlabelled[39] = 0  # A node that is in neither.
  centres, counts = prototypes.prototypes(outputs, labels, weight, num_classes=3)
  actual = prototypes.refine(centres, counts, outputs, unlabelled, metric=metric, ratio=.2)
  scores = np.asarray(prototypes.similarities(outputs, centres, metric=metric), np.float64)
  shares = scores if metric == 'cos' else np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
  for c in range(3):
    candidates = sorted(range(6, 39), key=lambda u, c=c: -shares[u, c])[:6]  # ⌊.2 · 33⌋.
    q = shares[candidates, c]
    z = np.asarray(outputs)[candidates]
    expected = (counts[c] * centres[c] + q @ z) / (counts[c] + q.sum())
    np.testing.assert_allclose(actual[c], expected, atol=1e-6)


def test_SH5_refinement_without_shares_is_the_identity():
  outputs = _outputs()
  centres, counts = _centres(outputs)
  np.testing.assert_array_equal(
      prototypes.blend(centres, counts, outputs, jnp.zeros((8, 3))), centres)
  for ratio, unlabelled in ((0.0, 1 - WEIGHT), (.5, np.zeros(8, np.float32)), (.2, 1 - WEIGHT)):
    refined = prototypes.refine(
        centres, counts, outputs, unlabelled, metric='l2', ratio=ratio)  # .2 · 3 nodes is none.
    np.testing.assert_array_equal(refined, centres)


@pytest.mark.parametrize('mass', [-1.5, -.5, .5])
def test_SH5_the_mean_holds_with_negative_shares_too(mass):
  # Cosines can outweigh the one labelled node: (p + q z) / (1 + q) with p = (1, 0), z = (0, 2).
  actual = prototypes.blend(
      jnp.array([[1.0, 0.0]]), jnp.ones(1), jnp.array([[0.0, 2.0]]), jnp.array([[mass]]))
  np.testing.assert_allclose(actual, [[1 / (1 + mass), 2 * mass / (1 + mass)]], rtol=1e-6)


def test_a_prototype_stays_where_the_shares_cancel_its_nodes():
  centres, outputs = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
  blend = lambda z: prototypes.blend(centres, jnp.ones(1), z, jnp.array([[-1.0]]))
  np.testing.assert_array_equal(blend(outputs), centres)
  assert np.isfinite(jax.jacobian(blend)(outputs)).all()


@pytest.mark.parametrize('ratio, count, expected', [
    (.29, 100, 29), (.07, 100, 7), (.05, 100, 5), (.1, 2_569, 256), (.3, 900_010, 270_003),
    (.7, 999_990, 699_993), (.57, 1_253_514, 714_502),
    (.29, 700_000, 203_000), (1.0, 50, 50), (0.0, 50, 0)])
def test_the_whole_part_of_a_share_is_exact_for_few_and_for_many_nodes(ratio, count, expected):
  assert prototypes._whole_part(ratio, count) == expected


def test_refinement_takes_five_hundredths_of_a_hundred_nodes():
  outputs = _outputs(rows=103)
  centres, counts = prototypes.prototypes(
      outputs, np.arange(103) % 3, (np.arange(103) < 3).astype(np.float32), num_classes=3)
  unlabelled = (np.arange(103) >= 3).astype(np.float32)
  refine = lambda ratio: np.asarray(prototypes.refine(
      centres, counts, outputs, unlabelled, metric='cos', ratio=ratio))
  for count in (1, 5, 7, 29, 57):  # In float32 many of these products fall short of the integer.
    np.testing.assert_array_equal(refine(count / 100), refine((count + .5) / 100))
    assert not np.array_equal(refine(count / 100), refine((count - .5) / 100))


def test_SH6_cosines_ignore_lengths_and_distances_ignore_a_common_shift():
  outputs = _outputs()
  # From 1e-10 to 10: only a length of 0 has no direction.
  lengths = jnp.asarray(10.0**np.random.default_rng(1).uniform(-10, 1, (8, 1)), jnp.float32)
  score = lambda z, centres, metric: np.asarray(
      prototypes.similarities(z, centres, metric=metric))
  centres, _ = _centres(outputs)
  np.testing.assert_allclose(
      score(lengths * outputs, 3 * centres, 'cos'), score(outputs, centres, 'cos'), atol=1e-6)
  assert np.abs(score(lengths * outputs, centres, 'l2') - score(outputs, centres, 'l2')).max() > 1
  shift = jnp.array([5.0, -2.0, 1.0])
  for metric in ('l1', 'l2'):
    moved, _ = _centres(outputs + shift)
    np.testing.assert_allclose(
        score(outputs + shift, moved, metric), score(outputs, centres, metric), atol=1e-4)


def test_SH6_permuting_the_nodes_permutes_the_scores():
  outputs, order = _outputs(), np.random.default_rng(2).permutation(8)
  for metric in prototypes.METRICS:
    centres, counts = _centres(outputs)
    again, _ = prototypes.prototypes(
        outputs[order], LABELS[order], WEIGHT[order], num_classes=3)
    refine = lambda c, z, w, m=metric, n=counts: prototypes.refine(
        c, n, z, 1 - w, metric=m, ratio=.7)
    here = prototypes.similarities(outputs, refine(centres, outputs, WEIGHT), metric=metric)
    there = prototypes.similarities(
        outputs[order], refine(again, outputs[order], WEIGHT[order]), metric=metric)
    np.testing.assert_allclose(there, np.asarray(here)[order], atol=1e-6)


def test_SH6_the_cosine_loss_is_within_its_bounds():
  # Best: the own cosine 1, all others -1; worst the other way round.
  low, high = (math.log(1 + 6 * math.exp(sign * 2)) for sign in (-1, 1))
  assert low == pytest.approx(.59444, abs=5e-5)
  best = 2 * np.eye(7)[:1] - 1
  for scores, bound in ((best, low), (-best, high)):
    actual = prototypes.cross_entropy(jnp.asarray(scores), np.zeros(1, int), np.ones(1))
    assert actual.value() == pytest.approx(bound, abs=1e-5)
  rng = np.random.default_rng(0)
  for scale in (1e-3, 1, 1e3):
    outputs = jnp.asarray(scale * rng.normal(size=(50, 7)), jnp.float32)
    labels = rng.integers(7, size=50)
    centres = jnp.asarray(rng.normal(size=(7, 7)), jnp.float32)
    scores = prototypes.similarities(outputs, centres, metric='cos')
    assert low - 1e-5 < prototypes.cross_entropy(scores, labels, np.ones(50)).value() < high + 1e-5


def test_SH8_the_masked_mean_is_the_mean_over_labelled_nodes():
  scores = _outputs()
  losses = -np.asarray(jax.nn.log_softmax(scores))[np.arange(8), LABELS]
  released = (losses * WEIGHT / WEIGHT.mean()).mean()
  actual = prototypes.cross_entropy(scores, LABELS, WEIGHT)
  assert actual.value() == pytest.approx(released, rel=1e-6)
  assert actual.value() == pytest.approx(losses[WEIGHT > 0].mean(), rel=1e-6)
  assert actual.weight == 5
  weighted = prototypes.cross_entropy(scores, LABELS, .5 * WEIGHT + np.eye(8)[1])
  expected = (.5 * losses[WEIGHT > 0].sum() + losses[1]) / 3.5
  assert weighted.value() == pytest.approx(expected, rel=1e-6) and weighted.weight == 3.5


@pytest.mark.parametrize('metric', prototypes.METRICS)
def test_gradients_flow_through_the_prototypes(metric):
  def loss(outputs):
    centres, _ = _centres(outputs)
    scores = prototypes.similarities(outputs, centres, metric=metric)
    return prototypes.cross_entropy(scores, LABELS, WEIGHT).value()

  check_grads(loss, (_outputs(),), order=1, modes=['rev'], atol=2e-2, rtol=2e-2, eps=1e-3)


def test_outputs_of_0_have_finite_scores_and_gradients():
  # Dropout can silence a node, which with one label a class is a prototype as well.
  outputs = jnp.zeros((3, 3)).at[1].set(1.0)

  def loss(outputs, metric):
    centres, _ = prototypes.prototypes(outputs, np.arange(3), np.ones(3), num_classes=3)
    scores = prototypes.similarities(outputs, centres, metric=metric)
    return prototypes.cross_entropy(scores, np.arange(3), np.ones(3)).value()

  for metric in prototypes.METRICS:
    value, gradient = jax.value_and_grad(loss)(outputs, metric)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_bad_arguments_are_one_line_errors():
  with pytest.raises(ValueError, match="metric must be one of cos, l1, l2, got 'l3'"):
    prototypes.similarities(_outputs(), _outputs(rows=3), metric='l3')
  centres, counts = _centres(_outputs())
  with pytest.raises(ValueError, match=r'ratio must be in \[0, 1\], got 1.5'):
    prototypes.refine(centres, counts, _outputs(), 1 - WEIGHT, metric='l2', ratio=1.5)
