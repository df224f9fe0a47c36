"""Identities of soft values on trees of all responses, with the offsets of the heads."""

import jax
import numpy as np
import pytest

from jaxrl_llm.rl import return_heads, soft_values
from tests.rl import token_tree

ETAS = (0.05, 0.1, 0.5, 2.0, 10.0)
TREES = {name: token_tree.draw(seed, binary=name == 'binary')
         for seed, name in enumerate(('binary', 'general'))}


def _exact(function, *arguments):
  """The function in float64."""
  with jax.enable_x64(True):
    return np.asarray(function(*(np.asarray(argument, np.float64) for argument in arguments)))


def _success_offsets(tree, inv_eta):
  """Offsets of a Bernoulli head whose logits are exact."""
  head = return_heads.Bernoulli()

  def offset(success):
    with np.errstate(divide='ignore'):
      logits = np.clip(np.log(success) - np.log1p(-success), -700, 700)
    return _exact(lambda x: head.soft_offset(x[..., None], inv_eta), logits)

  return [offset(success) for success in tree.per_action(tree.expectations(tree.returns))]


def _histogram_offsets(tree, inv_eta, num_atoms=11):
  """Offsets of a histogram head with exact probabilities, of a tree with returns on its atoms."""
  head = return_heads.Histogram(num_atoms=num_atoms)
  indices = np.round(tree.returns * (num_atoms - 1)).astype(int)
  every = [np.stack(parts, axis=-1) for parts in zip(*(
      tree.per_action(tree.expectations(indices == atom)) for atom in range(num_atoms)))]
  with np.errstate(divide='ignore'):
    return [_exact(lambda x: head.soft_offset(x, inv_eta), np.maximum(np.log(probs), -1e4))
            for probs in every]


@pytest.mark.parametrize('eta', ETAS)
def test_C1_the_product_over_tokens_is_the_tilted_distribution(eta):
  tree = TREES['binary']
  expected = tree.response_probs() * np.exp(tree.returns / eta)
  guided = tree.tilted(_success_offsets(tree, 1 / eta))
  np.testing.assert_allclose(tree.response_probs(guided), expected / expected.sum(), atol=1e-10)


@pytest.mark.parametrize('eta', (0.1, 2.0))
def test_C1_with_a_histogram_of_more_than_two_returns(eta):
  tree = TREES['general']
  tree = token_tree.Tree(tree.policy, np.round(10 * tree.returns) / 10)
  expected = tree.response_probs() * np.exp(tree.returns / eta)
  guided = tree.tilted(_histogram_offsets(tree, 1 / eta))
  # The atoms are float32.
  np.testing.assert_allclose(tree.response_probs(guided), expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize('eta', ETAS)
@pytest.mark.parametrize('name', TREES)
def test_C2_the_objective_of_the_optimal_policy_is_the_soft_value(name, eta):
  tree = TREES[name]
  value = tree.soft_values(1 / eta)[0][0]
  assert tree.objective(tree.optimal(1 / eta), 1 / eta) == pytest.approx(value, abs=1e-10)
  # log_mean_exp is that value if the samples are all equally likely responses.
  uniform = token_tree.Tree(tuple(np.full(t.shape, 1 / 3) for t in tree.policy), tree.returns)
  assert _exact(lambda r: soft_values.log_mean_exp(r, beta=eta), tree.returns) == pytest.approx(
      uniform.soft_values(1 / eta)[0][0], abs=1e-10)


@pytest.mark.parametrize('name', TREES)
def test_C3_regret_is_the_kl_from_the_optimal_policy(name):
  tree, inv_eta = TREES[name], 10.0
  value, optimal = tree.soft_values(inv_eta)[0][0], tree.optimal(inv_eta)
  means = tree.per_action(tree.expectations(tree.returns))
  for policy in (
      tree.policy, tree.tilted([inv_eta * mean for mean in means]),  # The reference and CD.
      tree.tilted([200 * mean for mean in means]), token_tree.draw(7).policy):
    assert tree.objective(policy, inv_eta) == pytest.approx(
        value - tree.kl(policy, optimal) / inv_eta, abs=1e-9)


@pytest.mark.parametrize('name', TREES)
def test_C4_exponentials_of_values_are_a_martingale_and_means_a_tower(name):
  tree, inv_eta = TREES[name], 4.0
  values = tree.soft_values(inv_eta)
  for table, value, q in zip(tree.policy, values, tree.per_action(values)):
    np.testing.assert_allclose(
        (table * np.exp(inv_eta * q)).sum(axis=1), np.exp(inv_eta * value), rtol=1e-12)
  means = tree.expectations(tree.returns)
  block = token_tree.Tree(tree.policy[:2], means[2])  # A block of two tokens.
  np.testing.assert_allclose(block.expectations(block.returns)[0], means[0], rtol=1e-12)


def test_C7_C8_derivatives_of_value_reward_and_kl():
  for tree in TREES.values():
    for eta in (0.2, 1.0):
      step = 1e-5 * eta

      def at(eta, tree=tree):
        optimal = tree.optimal(1 / eta)
        return (tree.soft_values(1 / eta)[0][0], tree.response_probs(optimal) @ tree.returns,
                tree.kl(optimal))

      value, reward, kl = at(eta)
      rise = (np.array(at(eta + step)) - at(eta - step)) / (2 * step)
      probs = tree.response_probs(tree.optimal(1 / eta))
      variance = probs @ tree.returns**2 - reward**2
      assert rise[0] == pytest.approx(-kl, rel=1e-5)
      # d(1/η) = −dη / η².
      assert -rise[1] * eta**2 == pytest.approx(variance, rel=1e-5)
      assert -rise[2] * eta**2 == pytest.approx(variance / eta, rel=1e-5)
      assert kl == pytest.approx((reward - value) / eta, rel=1e-9)


def test_C9_the_limits_are_the_reference_and_success():
  tree = TREES['binary']
  for guided, policy in zip(tree.tilted(_success_offsets(tree, 0.0)), tree.policy):
    np.testing.assert_allclose(guided, policy, rtol=1e-14)
  for eta in (1.0, 10.0, 100.0):
    distance = np.abs(tree.response_probs(tree.optimal(1 / eta)) - tree.response_probs()).sum() / 2
    assert 0 < distance <= np.expm1(1 / eta) / 2

  probs = tree.response_probs(tree.tilted(_success_offsets(tree, 500.0)))
  success = tree.response_probs() * tree.returns
  np.testing.assert_allclose(probs, success / success.sum(), atol=1e-10)
  assert tree.kl(tree.tilted(_success_offsets(tree, 500.0))) == pytest.approx(
      -np.log(success.sum()), abs=1e-9)


def test_C10_soft_values_fall_with_eta_to_the_mean():
  tree = TREES['general']
  etas = np.array([0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
  values = np.array([tree.soft_values(1 / eta)[0][0] for eta in etas])
  mean = tree.expectations(tree.returns)[0][0]
  assert (np.diff(values) < 0).all() and mean < values[-1] and values[0] <= tree.returns.max()

  variance = tree.expectations(tree.returns**2)[0][0] - mean**2
  first, second = (abs(tree.soft_values(1 / eta)[0][0] - mean - variance / (2 * eta))
                   for eta in (20.0, 40.0))
  assert first / second == pytest.approx(4, rel=0.05)


def test_C11_constants_do_not_matter_and_units_cancel():
  tree, inv_eta = TREES['general'], 5.0
  expected = tree.response_probs(tree.optimal(inv_eta))
  shifted = token_tree.Tree(tree.policy, tree.returns + 3)
  scaled = token_tree.Tree(tree.policy, 7 * tree.returns)
  for other, factor in ((shifted, 1), (scaled, 7)):
    np.testing.assert_allclose(
        other.response_probs(other.optimal(inv_eta / factor)), expected, rtol=1e-9)


def test_C12_with_one_token_it_is_the_closed_form_of_dpo():
  tree = token_tree.draw(3, depth=1, binary=False)
  tilted = tree.policy[0][0] * np.exp(tree.returns / 0.3)
  np.testing.assert_allclose(tree.optimal(1 / 0.3)[0][0], tilted / tilted.sum(), rtol=1e-12)


def test_C13_controlled_decoding_prefers_the_sure_branch():
  # Left pays 0.1 for sure, right pays 1 once in twenty times.
  tree = token_tree.Tree(
      (np.array([[0.5, 0.5]]), np.array([[0.5, 0.5], [0.05, 0.95]])),
      np.array([0.1, 0.1, 1.0, 0.0]))
  means = tree.per_action(tree.expectations(tree.returns))
  for eta, right, left in ((0.1, 0.99754, 0.62246), (0.01, 1.0, 0.99331)):
    assert tree.optimal(1 / eta)[0][0, 1] == pytest.approx(right, abs=5e-6)
    assert tree.tilted([mean / eta for mean in means])[0][0, 0] == pytest.approx(left, abs=5e-6)
  # The KL of the first token has the limit ln 2; that of the response is larger.
  optimal = tree.optimal(1 / 0.002)
  first = token_tree.Tree(tree.policy[:1], np.zeros(2))
  assert first.kl(optimal[:1]) == pytest.approx(np.log(2), abs=1e-6)
  assert tree.kl(optimal) == pytest.approx(np.log(1 / (0.05 * 0.5)), abs=1e-6)


def test_C14_controlled_decoding_is_optimal_only_without_noise():
  inv_eta = 10.0
  for tree in TREES.values():
    means = tree.per_action(tree.expectations(tree.returns))
    decoded = tree.tilted([inv_eta * mean for mean in means])
    assert tree.objective(decoded, inv_eta) < tree.soft_values(inv_eta)[0][0] - 1e-4
    # The return of the last token is known.
    np.testing.assert_allclose(decoded[-1], tree.optimal(inv_eta)[-1], rtol=1e-9)


def test_C16_guidance_shifts_the_logit_of_success():
  tree, inv_eta = TREES['binary'], 2.5
  guided = tree.tilted(_success_offsets(tree, inv_eta))
  for before, after in zip(
      tree.expectations(tree.returns), tree.expectations(tree.returns, guided)):
    mixed = (before > 0) & (before < 1)
    before, after = before[mixed], after[mixed]
    np.testing.assert_allclose(
        np.log(after / (1 - after)), np.log(before / (1 - before)) + inv_eta, atol=1e-8)
  for branches, success in ((2, 0.99995), (5, 0.99982)):
    shifted = 1 / (1 + (branches - 1) * np.exp(-10.0))
    assert shifted == pytest.approx(success, abs=5e-6)


def test_C18_the_exponential_head_with_its_constant_is_the_bernoulli_head():
  inv_eta, success = 10.0, np.array([0.02, 0.3, 0.9])
  target = success + (1 - success) * np.exp(-inv_eta)  # E[exp((Z − 1) / η)].
  head = return_heads.Exponential(inv_eta)
  offset = _exact(
      lambda x: head.soft_offset(x[..., None], inv_eta), np.log(target / (1 - target)))
  expected = _exact(
      lambda x: return_heads.Bernoulli().soft_offset(x[..., None], inv_eta),
      np.log(success / (1 - success)))
  np.testing.assert_allclose(offset, expected, rtol=1e-9)
  with pytest.raises(ValueError, match='inv_eta must be 0 or that of the training, 10.0, got 5'):
    head.soft_offset(np.zeros((1, 1), np.float32), 5)
  with pytest.raises(ValueError, match='no expectation'):
    head.expectation(np.zeros((1, 1), np.float32))


def test_C18_without_its_constant_tokens_that_are_not_candidates_gain():
  """Two of five tokens are candidates; the offset of the others stays 0."""
  inv_eta = 10.0
  reference, success = np.array([0.4, 0.3, 0.15, 0.1, 0.05]), np.array([0.5, 0.2])
  logits = np.log(success + (1 - success) * np.exp(-inv_eta))
  logits = logits - np.log1p(-np.exp(logits))
  offsets = _exact(
      lambda x: return_heads.Exponential(inv_eta).soft_offset(x[..., None], inv_eta), logits)

  def guided(offsets):
    probs = reference * np.exp(np.pad(offsets, (0, 3)))
    return probs / probs.sum()

  bernoulli = _exact(
      lambda x: return_heads.Bernoulli().soft_offset(x[..., None], inv_eta),
      np.log(success / (1 - success)))
  np.testing.assert_allclose(guided(offsets), guided(bernoulli), atol=1e-9)
  released = guided(offsets - inv_eta)  # log σ(logit), without the constant.
  assert released[2:].sum() > 0.4 > 1e-3 > guided(bernoulli)[2:].sum()


def test_C6_with_a_reward_at_each_step_values_are_those_of_the_rewards_to_come():
  """The recursion Q = r + V', V = η ln E exp(Q / η), and the tilted whole responses."""
  tree, inv_eta = token_tree.draw(11, binary=False), 2.5
  random = np.random.default_rng(0)
  rewards = [random.random(table.shape) for table in tree.policy]
  totals = np.zeros(1)
  for reward in rewards:
    totals = (totals[:, None] + reward).reshape(-1)

  values, optimal = np.zeros(len(totals)), []
  for table, reward in zip(tree.policy[::-1], rewards[::-1]):
    q = reward + values.reshape(table.shape)  # The reward of the token itself is in its Q.
    values = np.log((table * np.exp(inv_eta * q)).sum(axis=1)) / inv_eta
    optimal.insert(0, table * np.exp(inv_eta * (q - values[:, None])))

  tilted = tree.response_probs() * np.exp(inv_eta * totals)
  np.testing.assert_allclose(tree.response_probs(optimal), tilted / tilted.sum(), atol=1e-12)
  whole = token_tree.Tree(tree.policy, totals)
  assert whole.objective(optimal, inv_eta) == pytest.approx(values[0], abs=1e-10)
  # Rewards so far are a constant for each prefix: the tilt by all rewards is the same policy.
  for step, same in zip(optimal, whole.optimal(inv_eta)):
    np.testing.assert_allclose(step, same, atol=1e-12)


def test_C28_divergences_of_the_tokens_add_up_to_that_of_the_response():
  tree = TREES['binary']
  policy = tree.optimal(5.0)
  visits, total = np.ones(1), 0.0
  for ours, theirs in zip(policy, tree.policy):
    positive = np.where(ours > 0, ours, 1.0)
    total += visits @ (ours * np.log(positive / theirs)).sum(axis=1)
    visits = (visits[:, None] * ours).reshape(-1)
  assert total == pytest.approx(tree.kl(policy), abs=1e-10) and total > 0.1
