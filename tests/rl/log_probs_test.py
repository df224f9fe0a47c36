"""The chunked head against a plain log-softmax: values, gradients, masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from jaxrl_llm import types
from jaxrl_llm.rl import log_probs, masking, regression_losses

B, T, D, V = 3, 7, 5, 11


def _inputs(bias=True, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  head = types.Head(draw(V, D), draw(V) if bias else None)
  return draw(B, T, D), head, jnp.asarray(rng.integers(0, V, (B, T)))


def _plain(hidden, head, targets, *, temperature):
  """The obvious formula; [B, T, V] and all."""
  logits = jnp.einsum('btd,vd->btv', hidden, head.kernel)
  logits = logits if head.bias is None else logits + head.bias
  if head.softcap:
    logits = head.softcap * jnp.tanh(logits / head.softcap)
  logits = logits / temperature
  log_p = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
  return chosen, -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def _with_gradients(function, hidden, head, targets, **options):
  """Outputs, and the gradients of a fixed mixture of both outputs."""
  weights = np.random.default_rng(9).normal(size=(2, B, T))

  def loss(hidden, head):
    outputs = function(hidden, head, targets, **options)
    return sum(jnp.sum(w * x) for w, x in zip(weights, outputs, strict=True)), outputs

  gradients, outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(hidden, head)
  return outputs, gradients


def _identity_rollouts(mask):
  """Rollouts of 1 prompt of 3 slots, 2 samples of 4, over a vocabulary of 5."""
  tokens = jnp.array([[[1, 2, 3, 4], [4, 0, 2, 2]]])
  return types.Rollouts(
      prompts=jnp.array([[0, 1, 2]]), prompt_lengths=jnp.array([2]), tokens=tokens,
      lengths=jnp.sum(mask, -1, dtype=jnp.int32), mask=mask,
      log_probs=jnp.zeros((1, 2, 4)), stop_reason=jnp.ones((1, 2), jnp.int8))


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize(
    'chunk_size, temperature', [(0, 1.0), (1, .6), (2, 1.3), (3, 1.0), (4, .6), (7, 1.3), (99, .6)])
def test_equals_plain_log_softmax(chunk_size, temperature, bias):
  inputs = _inputs(bias)
  expected = _with_gradients(_plain, *inputs, temperature=temperature)
  actual = _with_gradients(log_probs.token_log_probs_and_entropy, *inputs,
                           temperature=temperature, chunk_size=chunk_size)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5),
               actual, expected)


@pytest.mark.parametrize('chunk_size, temperature', [(0, 1.0), (3, .6)])
def test_a_soft_cap_bends_the_logits_before_the_temperature(chunk_size, temperature):
  hidden, head, targets = _inputs()
  capped = types.Head(head.kernel, head.bias, softcap=2.0)
  expected = _with_gradients(_plain, hidden, capped, targets, temperature=temperature)
  actual = _with_gradients(log_probs.token_log_probs_and_entropy, hidden, capped, targets,
                           temperature=temperature, chunk_size=chunk_size)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5),
               actual, expected)
  plain, _ = _plain(hidden, head, targets, temperature=temperature)
  assert np.abs(plain - actual[0][0]).max() > 0.1


@pytest.mark.parametrize('chunk_size', [0, 3])
def test_log_probs_alone_equal_those_with_entropy(chunk_size):
  inputs = _inputs()
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(B, T)), jnp.float32)
  options = dict(temperature=.6, chunk_size=chunk_size)

  def alone(hidden, head):
    return jnp.sum(weights * log_probs.token_log_probs(hidden, head, inputs[2], **options))

  def both(hidden, head):
    values, _ = log_probs.token_log_probs_and_entropy(hidden, head, inputs[2], **options)
    return jnp.sum(weights * values)

  results = [jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(*inputs[:2]) for f in (alone, both)]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)


def test_gradients_against_finite_differences():
  with jax.enable_x64(True):
    hidden, head, targets = _inputs(dtype=jnp.float64)
    function = lambda hidden, kernel, bias: log_probs.token_log_probs_and_entropy(
        hidden, types.Head(kernel, bias), targets, temperature=1.3, chunk_size=3)
    test_util.check_grads(function, (hidden, head.kernel, head.bias), order=1, modes=['rev'])


@pytest.mark.parametrize('chunk_size', [0, 4])
def test_bfloat16_hidden_gives_float32_log_probs(chunk_size):
  # Products of bfloat16 numbers are exact in float32: the values are those of the rounded
  # inputs, to float32. The gradients pass bfloat16 once, so 2^-8 of the largest entry.
  hidden, head, targets = _inputs()
  head = types.Head(head.kernel.astype(jnp.bfloat16).astype(jnp.float32), head.bias)
  rounded = hidden.astype(jnp.bfloat16)
  expected = _with_gradients(_plain, rounded.astype(jnp.float32), head, targets, temperature=.6)
  actual = _with_gradients(log_probs.token_log_probs_and_entropy, rounded, head, targets,
                           temperature=.6, chunk_size=chunk_size)
  assert actual[0][0].dtype == actual[0][1].dtype == jnp.float32
  assert actual[1][0].dtype == jnp.bfloat16 and actual[1][1].kernel.dtype == jnp.float32
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5),
               actual[0], expected[0])
  for got, want in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
    assert np.abs(got.astype(jnp.float32) - want).max() < 2**-7 * np.abs(want).max()


def test_huge_logits():
  # Logits of 1e5 and more: 0 or the exact difference to the largest, never NaN.
  hidden, head, targets = _inputs(bias=False)
  (values, entropy), gradients = _with_gradients(
      log_probs.token_log_probs_and_entropy, 1e5 * hidden, head, targets, chunk_size=3)
  logits = np.einsum('btd,vd->btv', np.float64(1e5 * hidden), np.float64(head.kernel))
  expected = np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
  np.testing.assert_allclose(values, expected - logits.max(-1), rtol=1e-5, atol=.5)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((entropy, gradients)))


def test_excluded_tokens_have_no_part():
  # A bias of -inf takes the last two ids out: the rest is the smaller vocabulary's.
  hidden, head, targets = _inputs()
  targets = targets % (V - 2)
  smaller = types.Head(head.kernel[:-2], head.bias[:-2])
  masked = types.Head(head.kernel, head.bias.at[-2:].set(-jnp.inf))
  function = log_probs.token_log_probs_and_entropy
  expected = _with_gradients(function, hidden, smaller, targets, chunk_size=3)
  actual = _with_gradients(function, hidden, masked, targets, chunk_size=3)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, actual[0], expected[0])
  close(actual[1][0], expected[1][0])
  close(actual[1][1].kernel[:-2], expected[1][1].kernel)
  assert not np.any(actual[1][1].kernel[-2:]) and not np.any(actual[1][1].bias[-2:])


@pytest.mark.parametrize('temperature', [.6, 1.0, 1.3])
def test_sampler_and_trainer_agree(temperature):
  hidden, head, targets = _inputs()
  trainer = log_probs.token_log_probs(hidden, head, targets, temperature=temperature, chunk_size=3)
  logits = log_probs.head_logits(hidden, head)
  sampler = log_probs.log_probs_from_logits(logits, targets, temperature=temperature)
  np.testing.assert_allclose(np.exp(trainer - sampler), 1.0, atol=2e-6)
  scaled = log_probs.head_logits(hidden, head, temperature=temperature)
  np.testing.assert_allclose(log_probs.log_probs_from_logits(scaled, targets), sampler, atol=1e-5)


def test_log_probs_from_logits_by_hand():
  # Odds 1 : 2 : 5, and -inf for what cannot be chosen.
  logits = jnp.log(jnp.array([1.0, 2.0, 5.0, 0.0]))
  values = [float(log_probs.log_probs_from_logits(logits, jnp.int32(i))) for i in range(4)]
  np.testing.assert_allclose(values, np.log([.125, .25, .625, 1e-300])[:3].tolist() + [-np.inf])
  # At temperature 1/2 the odds are squared: 1 : 4 : 25.
  half = log_probs.log_probs_from_logits(logits, jnp.int32(1), temperature=.5)
  np.testing.assert_allclose(half, np.log(4 / 30), rtol=1e-6)


@pytest.mark.parametrize('bad_id', [-1, V])
def test_an_id_outside_of_the_vocabulary_is_seen_unless_masked(bad_id):
  hidden, head, targets = _inputs()
  mask = jnp.ones((B, T)).at[0, 2].set(0)
  broken = targets.at[0, 2].set(bad_id)
  loss = lambda hidden, head, targets: log_probs.cross_entropy(
      hidden, head, targets, mask, chunk_size=3).value()
  assert np.isnan(log_probs.token_log_probs(hidden, head, broken)[0, 2])
  function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  results = [function(hidden, head, x) for x in (targets, broken)]
  jax.tree.map(np.testing.assert_array_equal, *results)


def test_nan_in_masked_hidden_states_reaches_nothing():
  hidden, head, targets = _inputs()
  mask = jnp.ones((B, T)).at[0, 2].set(0).at[1, 4:].set(0)
  poisoned = jnp.where(mask[..., None] > 0, hidden, jnp.nan)

  def loss(hidden, head):
    both = log_probs.token_log_probs_and_entropy(hidden, head, targets, chunk_size=3)
    return sum(masking.masked_mean(x, mask).value() for x in both)

  function = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
  jax.tree.map(np.testing.assert_array_equal, function(hidden, head), function(poisoned, head))


def test_R18_no_gradient_at_masked_logits_and_at_the_prompt():
  # With the identity as head the gradient of hidden is the gradient of the logits.
  mask = jnp.array([[[1.0, 1, 1, 0], [1, 0, 1, 0]]])
  rollouts = _identity_rollouts(mask)
  logits = jnp.asarray(np.random.default_rng(2).normal(size=(2, 7, 5)), jnp.float32)
  head = types.Head(jnp.eye(5), None)

  def loss(logits):
    values, entropy = log_probs.response_log_probs_and_entropy(
        logits, head, rollouts, temperature=.6, chunk_size=3)
    return jnp.sum(values.sum(-1)**2 + entropy.sum(-1))

  gradient = np.abs(jax.jit(jax.grad(loss))(logits)).max(-1)
  # Prompt slots 0 and 1, response slots where mask is 0, and the last slot, which
  # predicts nothing, get exactly 0; every other slot gets something.
  expected = np.zeros((2, 7), bool)
  expected[:, 2:6] = np.asarray(mask[0]) > 0
  np.testing.assert_array_equal(gradient != 0, expected)


def test_response_log_probs_shift():
  # Slot L - 1 + t predicts response token t: against a loop over a plain log-softmax.
  mask = jnp.array([[[1.0, 1, 1, 0], [1, 1, 1, 1]]])
  rollouts = _identity_rollouts(mask)
  logits = jnp.asarray(np.random.default_rng(3).normal(size=(2, 7, 5)), jnp.float32)
  head = types.Head(jnp.eye(5), None)
  values = log_probs.response_log_probs(logits, head, rollouts, chunk_size=3)
  log_p = jax.nn.log_softmax(logits)
  expected = np.zeros((1, 2, 4))
  for sample, step in zip(*np.nonzero(np.asarray(mask[0])), strict=True):
    token = int(rollouts.tokens[0, sample, step])
    expected[0, sample, step] = log_p[sample, 3 - 1 + step, token]
  np.testing.assert_allclose(values, expected, atol=1e-6)
  both, _ = log_probs.response_log_probs_and_entropy(logits, head, rollouts, chunk_size=3)
  np.testing.assert_array_equal(values, both)


def test_R19_twice_the_tokens_is_twice_the_log_ratio():
  # Sum, not mean: with the same ratio at each token D doubles with the length.
  hidden, head, targets = _inputs()
  old = types.Head(head.kernel, head.bias + .3 * jnp.arange(V))

  @jax.jit
  def difference(hidden, targets):
    values = [log_probs.token_log_probs(hidden, x, targets, chunk_size=4) for x in (head, old)]
    log_ratio = masking.masked_sum(values[0] - values[1], jnp.ones(targets.shape), axis=-1)
    loss = regression_losses.rebel_loss(log_ratio[None, :2], jnp.zeros((1, 2)), eta=1.0)
    return jnp.sqrt(loss[0])

  once = float(difference(hidden, targets))
  twice = float(difference(jnp.tile(hidden, (1, 2, 1)), jnp.tile(targets, (1, 2))))
  assert twice == pytest.approx(2 * once, rel=1e-5) and once > .1


def test_cross_entropy_is_normalised_over_the_whole_batch():
  # One row at a time and all rows at once: total and weight add, loss and gradient agree.
  hidden, head, targets = _inputs()
  mask = jnp.asarray(np.random.default_rng(4).integers(0, 2, (B, T)), jnp.float32)
  inputs = hidden, targets, mask

  @jax.jit
  def loss_and_gradient(head, hidden, targets, mask):
    def total(head):
      mean = log_probs.cross_entropy(hidden, head, targets, mask, chunk_size=3)
      return mean.total, mean

    gradient, mean = jax.grad(total, has_aux=True)(head)
    return mean, gradient

  whole, total = loss_and_gradient(head, *inputs)
  rows = [loss_and_gradient(head, *(x[i:i + 1] for x in inputs)) for i in range(B)]
  parts, pieces = sum((x for x, _ in rows[1:]), rows[0][0]), [x for _, x in rows]
  np.testing.assert_allclose(whole.value(), parts.value(), rtol=1e-6)
  assert whole.weight == mask.sum()
  plain, _ = _plain(hidden, head, targets, temperature=1.0)
  np.testing.assert_allclose(whole.value(), -jnp.sum(plain * mask) / mask.sum(), rtol=1e-5)
  summed = jax.tree.map(lambda *x: sum(x), *pieces)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), total, summed)


def test_padding_amount_and_content_do_not_matter():
  hidden, head, targets = _inputs()
  loss = lambda head, hidden, targets, mask: log_probs.cross_entropy(
      hidden, head, targets, mask, chunk_size=4).value()
  mask = jnp.ones((B, T))
  wider = [jnp.concatenate([x, y], axis=1) for x, y in (
      (hidden, 3 * hidden[:, :4]), (targets, targets[:, :4] * 0 + 1), (mask, 0 * mask[:, :4]))]
  results = [jax.jit(jax.value_and_grad(loss))(head, *x) for x in ((hidden, targets, mask), wider)]
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *results)


def test_vmap_over_seeds():
  members = [_inputs(seed=seed) for seed in range(2)]
  loss = lambda hidden, head, targets: log_probs.token_log_probs(
      hidden, head, targets, chunk_size=3).mean()
  function = jax.grad(loss, argnums=(0, 1))
  alone = [jax.jit(function)(*x) for x in members]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *members)
  together = jax.jit(jax.vmap(function))(*stacked)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
               together, jax.tree.map(lambda *x: jnp.stack(x), *alone))


def test_bad_options_are_one_line_errors():
  inputs = _inputs()
  with pytest.raises(ValueError, match='temperature must be positive and finite, got 0'):
    log_probs.token_log_probs(*inputs, temperature=0)
  with pytest.raises(ValueError, match='chunk_size must be 0 .* got -1'):
    log_probs.token_log_probs(*inputs, chunk_size=-1)
