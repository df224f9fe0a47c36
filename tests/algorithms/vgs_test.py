"""VGS: its loss written out for three classes, what has a gradient, and where pairs are read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import reward_model, vgs
from jaxrl_llm.models import value
from jaxrl_llm.types import Head, ModelFns, ModelOutput
from tests.algorithms import contract_rows, groups, tiny
from tests.models import witness

NETWORK = value.make(tiny.CONFIG, num_outputs=3)
CLASSES = jnp.asarray([[0, 1], [2, 1], [1, 0], [2, 2]], jnp.float32)
DATA = dataclasses.replace(groups.batch(), rewards=CLASSES)


def _start():
  return {'value': jax.tree.map(lambda leaf: 0.7 * leaf, witness.draw_params(NETWORK))}


def test_loss_and_gradient_of_three_classes_are_the_equation_written_out():
  start = _start()
  loss, gradient, metrics = groups.runner(vgs, (NETWORK,), start)(DATA)
  tokens, positions, valid, read = groups.left_aligned(DATA.rollouts)

  def written(parameters):
    output = NETWORK.apply(parameters['value'], tokens, positions=positions, valid=valid)
    hidden = jnp.take_along_axis(output.hidden, read[..., None] + 1, axis=1)
    log_probs = jax.nn.log_softmax(hidden @ output.head.kernel.T + output.head.bias)
    losses = []
    for row, (mask, label) in enumerate(zip(
        np.asarray(DATA.rollouts.mask).reshape(8, -1), np.asarray(CLASSES, int).reshape(-1))):
      steps = np.flatnonzero(mask)
      losses.append(-sum(log_probs[row, t, label] for t in steps) / len(steps))
    return sum(losses) / len(losses)

  assert loss == pytest.approx(float(written(start)), rel=1e-5)
  tiny.assert_trees_close(gradient, groups.gradient_of(written, start), tolerance=1e-5)
  assert 0 < metrics['train/value'] < 1


def test_C21_the_roll_in_and_the_padding_have_no_gradient():
  def by_slot(params, tokens, **unused):
    return ModelOutput(params['outputs'], Head(jnp.eye(3), None), None)

  _, gradient, _ = groups.runner(
      vgs, (ModelFns(None, by_slot, None),), {'value': {'outputs': jnp.zeros((8, 7, 3))}})(DATA)
  slots = np.asarray(gradient['value']['outputs'])
  mask = np.asarray(DATA.rollouts.mask).reshape(8, -1)
  assert not slots[:, :4].any() and not slots[:, 4:][mask == 0].any()
  expected = (1 / 3 - np.eye(3)[np.asarray(CLASSES, int).reshape(-1)]) / 8
  np.testing.assert_allclose(slots.sum(axis=1), expected, atol=1e-6)


def test_a_roll_out_without_tokens_counts_as_zero():
  """A roll-out that was cut off by the length of a row, as in the released code."""
  rollouts = DATA.rollouts
  empty = groups.replace_rollouts(
      DATA, mask=rollouts.mask.at[1, 0].set(0.0), lengths=rollouts.lengths.at[1, 0].set(0))
  run = groups.runner(vgs, (NETWORK,), _start())
  loss, gradient, _ = run(empty)
  one = [run(dataclasses.replace(
      DATA.samples(jnp.asarray([k])), weight=jnp.asarray(weight, jnp.float32)))[0]
         for k, weight in ((0, [1, 0, 1, 1]), (1, [1, 1, 1, 1]))]
  assert loss == pytest.approx((3 * one[0] + 4 * one[1]) / 8, rel=1e-5)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_C23_pairs_are_read_at_the_last_valid_token():
  row, data = contract_rows.ROWS['vgs'], groups.batch()
  loss, gradient, metrics = row.exactly(data, loss='bradley_terry')
  longer = groups.replace_rollouts(data, **{
      name: jnp.pad(getattr(data.rollouts, name), ((0, 0), (0, 0), (0, 2)))
      for name in ('tokens', 'mask', 'log_probs')})
  longer = dataclasses.replace(
      longer, reference_log_probs=jnp.pad(data.reference_log_probs, ((0, 0), (0, 0), (0, 2))))
  groups.assert_exactly_same(row.exactly(longer, loss='bradley_terry'), (loss, gradient, metrics))

  # It is the loss of a reward model.
  expected = groups.exactly(
      reward_model, data, (groups.BIGRAM,), {'reward': groups.tables(('value',))['value']})
  assert loss == pytest.approx(expected[0], rel=1e-9)


def test_pairs_need_two_responses():
  with pytest.raises(ValueError, match='the batch must have samples_per_prompt = 2 samples'):
    contract_rows.ROWS['vgs'].exactly(DATA.samples(jnp.asarray([0])), loss='bradley_terry')
