"""Separate last blocks: the same network, and `join` inverts `split` bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, partial, policy, q_function, value
from jaxrl_llm.rl import scoring
from jaxrl_llm.training import optim
from tests.models import rollouts as rollouts_lib
from tests.models import witness

SHAPE = configs.TransformerConfig(
    vocab_size=13, num_layers=4, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
    max_length=32, tie_embeddings=False,
)
MODEL = policy.make(SHAPE)
TIED = policy.make(dataclasses.replace(SHAPE, tie_embeddings=True))


def _params(model=MODEL):
  return witness.draw_params(model)


def _assert_identical(tree, expected):
  assert jax.tree.structure(tree) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected)):
    np.testing.assert_array_equal(a, b)


def _scorer(model=MODEL):
  rollouts = rollouts_lib.draw(13)
  return jax.jit(lambda p: scoring.score(model, p, rollouts)[0])


@pytest.mark.parametrize('num_last', [1, 2, 3])
def test_split_and_join_are_inverses_bit_for_bit(num_last):
  params = _params()
  split = partial.split(params, num_last)
  kernel = params['layers']['mlp']['up']['kernel']
  np.testing.assert_array_equal(split['layers']['mlp']['up']['kernel'], kernel[: 4 - num_last])
  np.testing.assert_array_equal(split['last_layers']['mlp']['up']['kernel'], kernel[-num_last:])
  _assert_identical(partial.join(split), params)


def test_the_network_is_the_same():
  params, score = _params(), _scorer()
  np.testing.assert_allclose(score(partial.split(params, 2)), score(params), rtol=0, atol=1e-5)


def test_make_splits_the_drawn_parameters():
  params = _params()
  made = partial.make(MODEL._replace(init=lambda key: params), 3)
  _assert_identical(made.init(jax.random.key(0)), partial.split(params, 3))
  assert made.apply is MODEL.apply


def test_core_7_7_a_frozen_branch_is_a_reference_like_a_copy():
  params, score = _params(), _scorer()
  split = partial.split(params, 2)
  frozen = partial.branch(split)
  assert frozen.keys() == {'last_layers', 'final_norm', 'head'}
  # The branch shares no buffer with the trained parameters, which a step donates.
  assert not {id(leaf) for leaf in jax.tree.leaves(frozen)} & {
      id(leaf) for leaf in jax.tree.leaves(split)}
  trained = {**split, **jax.tree.map(lambda leaf: 1.1 * leaf, frozen)}
  expected = score(jax.tree.map(jnp.copy, params))
  np.testing.assert_allclose(score({**trained, **frozen}), expected, rtol=0, atol=1e-5)
  assert np.abs(score(trained) - expected).max() > 1e-2


def test_exactly_the_separate_parameters_are_trained():
  models = {'policy': MODEL, 'value': value.make(SHAPE), 'q': q_function.make(SHAPE)}
  abstract = {role: jax.eval_shape(partial.make(model, 1).init, jax.random.key(0))
              for role, model in models.items()}
  optimizer = optim.make_optimizer(optim.OptimizerConfig(), trainable=partial.TRAINABLE)
  trained = {tuple(entry.key for entry in path[:2]) for path, _ in
             jax.tree_util.tree_leaves_with_path(optimizer.select(abstract))}
  heads = {'policy': 'head', 'value': 'value_head', 'q': 'q_head'}
  assert trained == {
      (role, name) for role in models for name in ('last_layers', 'final_norm', heads[role])}


@pytest.mark.parametrize('num_last', [0, -1, 4, 5])
def test_num_last_out_of_range_is_an_error(num_last):
  with pytest.raises(ValueError, match=rf'must be in \[1, 3\] for a model of 4, got {num_last}'):
    partial.split(_params(), num_last)


def test_layers_cannot_be_split_twice():
  with pytest.raises(ValueError, match='are already split off'):
    partial.split(partial.split(_params(), 1), 1)


def test_a_tied_head_is_rejected_and_can_be_untied():
  params = _params(TIED)
  with pytest.raises(ValueError, match='tied to the embedding.*tie_embeddings=False') as error:
    partial.split(params, 1)
  assert '\n' not in str(error.value)
  untied = partial.untie(params)
  np.testing.assert_array_equal(untied['head']['kernel'], params['embedder']['embedding'])
  assert untied['head']['kernel'] is not params['embedder']['embedding']
  np.testing.assert_allclose(
      _scorer()(partial.split(untied, 2)), _scorer(TIED)(params), rtol=0, atol=1e-5)
  with pytest.raises(ValueError, match='not tied'):
    partial.untie(untied)
