"""Q#: its loss written out, what it reads, and what it learns from enumerated trees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.algorithms import q_sharp
from jaxrl_llm.models import value
from jaxrl_llm.rl import return_heads, sequence_scores
from jaxrl_llm.types import Batch, Head, ModelFns, ModelOutput, Rollouts, TrainState
from tests.algorithms import contract_rows, groups, tiny
from tests.models import witness
from tests.rl import token_tree

ROW = contract_rows.ROWS['q_sharp']
DATA = ROW.data()


def _written_out(parameters, data, logits_of, *, first=False):
  """The loss, response by response, from logits at [P, K, T]."""
  mask = np.asarray(data.rollouts.mask)
  logits, rewards = logits_of(parameters, data.rollouts), data.rewards
  losses = []
  for p in range(mask.shape[0]):
    for k in range(mask.shape[1]):
      steps = [t for t in range(mask.shape[2]) if mask[p, k, t] and not (first and t)]
      each = [jnp.logaddexp(0, logits[p, k, t]) - rewards[p, k] * logits[p, k, t] for t in steps]
      losses.append(sum(each) / len(each))
  return sum(losses) / len(losses)


def _own_position(parameters, rollouts):
  """Logits after each token, from rows without padding in front of the prompt."""
  tokens, positions, valid, read = groups.left_aligned(rollouts)
  model = groups.NETWORKS['value']
  output = model.apply(parameters['value'], tokens, positions=positions, valid=valid)
  hidden = jnp.take_along_axis(output.hidden, read[..., None] + 1, axis=1)
  logits = hidden @ output.head.kernel[0] + output.head.bias[0]
  return logits.reshape(rollouts.mask.shape)


@pytest.mark.parametrize('positions', q_sharp.POSITIONS)
def test_loss_and_gradient_are_the_equation_written_out(positions):
  loss, gradient, _ = ROW.run(positions=positions)
  start = groups.parameters(('value',))
  written = lambda parameters: _written_out(
      parameters, DATA, _own_position, first=positions == 'first')
  assert loss == pytest.approx(float(written(start)), rel=1e-5)
  tiny.assert_trees_close(gradient, groups.gradient_of(written, start), tolerance=1e-5)


def test_C5_the_two_parameterisations_read_the_same_table():
  """A value of the last two tokens is a Q-function of the last one and the next."""
  table = jnp.asarray(np.random.default_rng(0).normal(size=(7, 7)), jnp.float32)

  def pairs(params, tokens, **unused):
    before = jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    values = params['table'][before, tokens]
    return ModelOutput(values[..., None], Head(jnp.ones((1, 1)), None), None)

  after = groups.runner(
      q_sharp, (ModelFns(None, pairs, None),), {'value': {'table': table}})(DATA)
  of_choice = groups.runner(
      q_sharp, (groups.BIGRAM,), {'q_function': {'table': table}}, function='q_function')(DATA)
  assert of_choice[0] == pytest.approx(after[0], rel=1e-6)
  tiny.assert_trees_close(
      of_choice[1]['q_function'], after[1]['value'], tolerance=1e-5)


def test_C21_no_gradient_of_other_positions_and_labels():
  """Outputs outside the response have no gradient; every response has the same weight."""
  table = jnp.zeros((len(DATA.weight) * 2, 7, 1))

  def by_slot(params, tokens, **unused):
    return ModelOutput(params['outputs'], Head(jnp.ones((1, 1)), None), None)

  run = groups.runner(q_sharp, (ModelFns(None, by_slot, None),), {'value': {'outputs': table}})
  _, gradient, _ = run(DATA)
  slots = np.asarray(gradient['value']['outputs'])[..., 0]
  mask = np.asarray(DATA.rollouts.mask).reshape(8, -1)
  assert not slots[:, :4].any() and not slots[:, 4:][mask == 0].any()
  # (σ(0) − R) / (8 · length): the sum over a response does not depend on its length.
  np.testing.assert_allclose(
      slots.sum(axis=1), (0.5 - np.asarray(DATA.rewards).reshape(-1)) / 8, rtol=1e-6)

  _, gradient, _ = run(DATA, positions='first')
  slots = np.asarray(gradient['value']['outputs'])[..., 0]
  assert slots[:, 4].all() and not np.delete(slots, 4, axis=1).any()


def test_C22_left_and_right_padding_give_the_same_values():
  rollouts = DATA.rollouts
  start = groups.parameters(('value',))
  after = sequence_scores.outputs_after(groups.NETWORKS['value'], start['value'], rollouts)[..., 0]
  expected = _own_position(start, rollouts) * rollouts.mask
  np.testing.assert_allclose(after, expected, atol=2e-5)


def test_a_histogram_is_trained_on_its_range():
  network = value.make(tiny.CONFIG, num_outputs=5)
  start = {'value': jax.tree.map(lambda leaf: 0.7 * leaf, witness.draw_params(network, 0))}
  run = groups.runner(q_sharp, (network,), start, head='histogram', num_atoms=5)
  unit = run(DATA)
  other = run(dataclasses.replace(DATA, rewards=8 * DATA.rewards - 3), low=-3.0, high=5.0)
  groups.assert_same(other, unit)
  assert other[2]['train/value'] == pytest.approx(8 * unit[2]['train/value'] - 3, abs=1e-4)
  wider = value.make(tiny.CONFIG, num_outputs=7)
  more = {'value': jax.tree.map(lambda leaf: 0.7 * leaf, witness.draw_params(wider, 0))}
  assert np.isfinite(groups.runner(q_sharp, (wider,), more, head='histogram', num_atoms=7)(DATA)[0])


def test_C33_a_table_learns_the_success_probabilities_of_the_reference():
  """From responses of the reference alone, a table of prefixes learns p(x, y)."""
  tree = token_tree.draw(5, actions=2, depth=3)
  random = np.random.default_rng(0)
  responses = np.array([list(np.ndindex(2, 2, 2))[i] for i in random.choice(
      8, size=4_000, p=tree.response_probs())])
  returns = tree.returns[responses @ [4, 2, 1]]

  def prefixes(params, tokens, **unused):
    codes = [1 + tokens[:, 1], 3 + 2 * tokens[:, 1] + tokens[:, 2],
             7 + 4 * tokens[:, 1] + 2 * tokens[:, 2] + tokens[:, 3]]
    rows = jnp.stack([jnp.zeros_like(codes[0]), *codes], axis=1)
    return ModelOutput(params['table'][rows][..., None], Head(jnp.ones((1, 1)), None), None)

  shape = (len(responses), 1)
  rollouts = Rollouts(
      jnp.ones(shape, jnp.int32), jnp.ones(len(responses), jnp.int32),
      jnp.asarray(responses[:, None], jnp.int32), jnp.full(shape, 3), jnp.ones((*shape, 3)),
      jnp.zeros((*shape, 3)), jnp.ones(shape, jnp.int8))
  data = Batch(rollouts, jnp.asarray(returns[:, None], jnp.float32), None, {},
               jnp.ones(len(responses)))
  algorithm = q_sharp.make(
      q_sharp.Config(), ModelFns(None, prefixes, None), tiny.recorder(learning_rate=30.0))
  state = TrainState.create(
      {'value': {'table': jnp.zeros(15)}}, tiny.recorder(30.0), jax.random.key(0))
  steps = jax.jit(lambda state: jax.lax.fori_loop(
      0, 400, lambda _, s: algorithm.train_step(s, data)[0], state))
  learned = np.asarray(jax.nn.sigmoid(steps(state).params['value']['table']))

  # What the same responses say, counted.
  level = 1
  for h in range(1, 4):
    codes = responses[:, :h] @ (2 ** np.arange(h)[::-1])
    for code in range(2**h):
      seen = codes == code
      if seen.sum() > 50:
        assert learned[level + code] == pytest.approx(returns[seen].mean(), abs=0.02)
    level += 2**h
  exact = tree.per_action(tree.expectations(tree.returns))[0][0]
  np.testing.assert_allclose(learned[1:3], exact, atol=0.05)


def test_the_head_of_a_config():
  assert q_sharp.Config().make_head() == return_heads.Bernoulli()
  assert q_sharp.Config(head='histogram', low=-1.0).make_head() == return_heads.Histogram(low=-1.0)
