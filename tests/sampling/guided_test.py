"""Guided decoding against full forward passes of single rows, and against an exact tree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.models import configs, policy, q_function, value
from jaxrl_llm.rl import return_heads
from jaxrl_llm.sampling import decode, guided
from jaxrl_llm.types import Head, ModelFns, ModelOutput
from tests.models import witness
from tests.rl import token_tree
from tests.sampling import models

VOCABULARY, STOP, MOST = 7, 6, 4
CONFIG = configs.TransformerConfig(
    vocab_size=VOCABULARY, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8,
    mlp_width=24, max_length=16)
# The guide is a smaller model.
SMALL = configs.TransformerConfig(
    vocab_size=VOCABULARY, num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8,
    mlp_width=8, max_length=16, positions='learned')
PROMPTS = np.array([[3, 1, 4, 1, 5], [0, 0, 0, 2, 5], [0, 0, 5, 3, 5]], np.int32)
LENGTHS, IDS = np.array([5, 2, 3], np.int32), np.array([40, 7, 1000], np.int32)
BERNOULLI = return_heads.Bernoulli()
HISTOGRAM = return_heads.Histogram(num_atoms=4, low=-1.0)


@functools.cache
def _reference():
  model = policy.make(CONFIG)
  return model, jax.tree.map(lambda leaf: 0.6 * leaf, witness.draw_params(model))


@functools.cache
def _guide(function='value', head=BERNOULLI):
  make = {'value': value.make, 'q_function': q_function.make}[function]
  model = make(SMALL, num_outputs=head.num_outputs)
  return model, jax.tree.map(lambda leaf: 0.8 * leaf, witness.draw_params(model))


def _sample(inv_eta, *, seed=0, function='value', head=BERNOULLI, **options):
  return _compiled(function, head, tuple(sorted(options.items())))(inv_eta, seed)


@functools.cache
def _compiled(function, head, options):
  (reference, params), (model, guide_params) = _reference(), _guide(function, head)
  options = dict(options)
  guide = guided.Guide(model, head, function, options.pop('rule', 'q_sharp'))
  sampler = jax.jit(guided.make_sampler(
      reference, guide, num_samples=3, max_tokens=MOST, stop_ids=(STOP,), pad_id=0,
      **{'num_candidates': VOCABULARY, **options}))
  both = {'policy': params, function: guide_params}
  return lambda inv_eta, seed: jax.tree.map(
      np.asarray, sampler(both, PROMPTS, LENGTHS, IDS, jax.random.key(seed), inv_eta))


# --- Written out: every prefix is read from scratch, one candidate at a time.


@functools.partial(jax.jit, static_argnames='model')
def _read(model, params, tokens, lengths):
  slots = jnp.arange(tokens.shape[1])
  output = model.apply(
      params, tokens, positions=jnp.broadcast_to(slots, tokens.shape),
      valid=slots < lengths[:, None])
  hidden = jnp.take_along_axis(output.hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
  outputs = hidden @ output.head.kernel.T
  return outputs if output.head.bias is None else outputs + output.head.bias


def _outputs(network, rows):
  """Outputs of the head after the last token of each row, float64."""
  tokens = np.zeros((VOCABULARY, 12), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  lengths = np.array([len(row) for row in rows] + [1] * (VOCABULARY - len(rows)))
  return np.asarray(_read(*network, tokens, lengths), np.float64)[: len(rows)]


def _steps(rollouts, function='value', head=BERNOULLI):
  """Yields (row, step, token, reference logits [V], guide's outputs [V, M]) of each token."""
  for p, k in np.ndindex(rollouts.lengths.shape):
    row = list(PROMPTS[p, 5 - LENGTHS[p]:])
    for t in range(rollouts.lengths[p, k]):
      token, logits = int(rollouts.tokens[p, k, t]), _outputs(_reference(), [row])[0]
      network = _guide(function, head)
      if function == 'value':
        outputs = _outputs(network, [[*row, v] for v in range(VOCABULARY)])
      else:
        outputs = _outputs(network, [row])[0].reshape(VOCABULARY, -1)
      yield (p, k), t, token, logits, outputs
      row.append(token)


def _log_softmax(logits):
  return logits - np.logaddexp.reduce(logits)


def _kl(p, q):
  p, q = _log_softmax(p), _log_softmax(q)
  return float(np.sum(np.exp(p) * (p - q)))


def _soft_offset(outputs, inv_eta):
  return np.logaddexp(0, outputs[:, 0] + inv_eta) - np.logaddexp(0, outputs[:, 0])


@pytest.mark.parametrize('function', guided.FUNCTIONS)
@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_log_probs_and_kl_are_those_of_the_equation(function, temperature):
  inv_eta = 3.0
  result = _sample(inv_eta, function=function, temperature=temperature)
  kls = np.zeros(result.kl.shape)
  for row, t, token, logits, outputs in _steps(result.rollouts, function):
    guided_logits = logits / temperature + _soft_offset(outputs, inv_eta)
    assert result.rollouts.log_probs[*row, t] == pytest.approx(
        _log_softmax(guided_logits)[token], abs=1e-4)
    kls[row] += _kl(guided_logits, logits / temperature)
  np.testing.assert_allclose(result.kl, kls, atol=1e-4)
  np.testing.assert_allclose(result.kl_of_paper, kls, atol=1e-4)
  lengths = result.rollouts.lengths
  assert lengths.min() < MOST == lengths.max() and kls.min() > 0.01


@pytest.mark.parametrize('tail', guided.TAILS)
def test_C25_tokens_that_are_not_candidates_keep_their_logit_or_are_excluded(tail):
  inv_eta, count = 1.0, 2
  result = _sample(inv_eta, num_candidates=count, tail=tail)
  outside = 0
  for row, t, token, logits, outputs in _steps(result.rollouts):
    candidates = np.argsort(-logits)[:count]
    shifted = logits.copy() if tail == 'add' else np.full(VOCABULARY, -1e30)
    shifted[candidates] = logits[candidates] + _soft_offset(outputs, inv_eta)[candidates]
    assert result.rollouts.log_probs[*row, t] == pytest.approx(
        _log_softmax(shifted)[token], abs=1e-4)
    outside += token not in candidates
  assert (outside > 0) == (tail == 'add')


def test_C25_with_all_candidates_the_tails_agree_and_one_candidate_is_greedy():
  add, truncate = (_sample(4.0, tail=tail) for tail in guided.TAILS)
  np.testing.assert_array_equal(add.rollouts.tokens, truncate.rollouts.tokens)
  np.testing.assert_allclose(add.kl, truncate.kl, atol=1e-5)
  one = _sample(4.0, num_candidates=1, tail='truncate')
  for _, _, token, logits, _ in _steps(one.rollouts):
    assert token == np.argmax(logits)
  np.testing.assert_allclose(one.rollouts.log_probs, 0, atol=1e-6)


@pytest.mark.parametrize('options', [
    {}, {'num_candidates': 2}, {'head': HISTOGRAM}, {'rule': 'cd'}, {'rule': 'fudge'},
    {'function': 'q_function'}, {'temperature': 0.0}, {'top_p': 0.8},
    {'order': 'after', 'temperature': 0.6}])
def test_C29_without_guidance_the_tokens_are_the_references(options):
  plain_options = {name: options[name] for name in ('temperature', 'top_p') if name in options}
  reference, params = _reference()
  plain = jax.jit(decode.make_sampler(
      reference, num_samples=3, max_tokens=MOST, stop_ids=(STOP,), pad_id=0, **plain_options))
  expected = plain(params, PROMPTS, LENGTHS, IDS, jax.random.key(5))
  result = _sample(0.0, seed=5, **options)
  np.testing.assert_array_equal(result.rollouts.tokens, expected.tokens)
  np.testing.assert_array_equal(result.rollouts.mask, expected.mask)
  np.testing.assert_allclose(result.kl, 0, atol=1e-6)
  # C28: the paper's measure compares with the reference before truncation.
  assert (result.kl_of_paper > 1e-3).any() == ('top_p' in options)
  assert (_sample(6.0, seed=5, **options).rollouts.tokens != expected.tokens).any()


def test_C11_C26_a_constant_guide_moves_only_what_it_does_not_cover():
  """A head at zero (p = ½ everywhere) changes nothing if all tokens are candidates."""
  model, params = _guide()
  zero = {**params, 'value_head': jax.tree.map(jnp.zeros_like, params['value_head'])}
  reference, reference_params = _reference()

  def kl(count, tail):
    sampler = jax.jit(guided.make_sampler(
        reference, guided.Guide(model, BERNOULLI), num_samples=3, max_tokens=MOST,
        num_candidates=count, stop_ids=(STOP,), pad_id=0, tail=tail))
    return np.asarray(sampler(
        {'policy': reference_params, 'value': zero}, PROMPTS, LENGTHS, IDS, jax.random.key(0),
        10.0).kl)

  np.testing.assert_allclose(kl(VOCABULARY, 'add'), 0, atol=1e-5)
  assert kl(3, 'add').min() > 0.01


def test_C27_the_order_of_temperature_and_guidance():
  inv_eta, temperature = 2.0, 0.5
  result = _sample(inv_eta, temperature=temperature, order='after', top_p=0.9)
  kl, of_paper = np.zeros(result.kl.shape), np.zeros(result.kl.shape)
  for row, t, token, logits, outputs in _steps(result.rollouts):
    whole = (logits + _soft_offset(outputs, inv_eta)) / temperature
    order = np.argsort(-whole)
    probs = np.exp(_log_softmax(whole))[order]
    nucleus = np.full(VOCABULARY, -1e30)
    inside = order[np.cumsum(probs) - probs < 0.9]
    nucleus[inside] = whole[inside]

    assert result.rollouts.log_probs[*row, t] == pytest.approx(
        _log_softmax(nucleus)[token], abs=1e-4)
    kl[row] += _kl(whole, logits / temperature)
    of_paper[row] += _kl(nucleus, logits / temperature)
  np.testing.assert_allclose(result.kl, kl, atol=2e-4)
  np.testing.assert_allclose(result.kl_of_paper, of_paper, atol=2e-4)
  first = _sample(inv_eta, temperature=temperature)
  assert (first.rollouts.tokens != result.rollouts.tokens).any()


@pytest.mark.parametrize('rule, offset', [
    ('cd', lambda p, inv_eta: inv_eta * p), ('fudge', lambda p, inv_eta: np.log(p))])
def test_other_rules_shift_by_the_mean(rule, offset):
  result = _sample(3.0, rule=rule)
  for row, t, token, logits, outputs in _steps(result.rollouts):
    success = 1 / (1 + np.exp(-outputs[:, 0]))
    assert result.rollouts.log_probs[*row, t] == pytest.approx(
        _log_softmax(logits + offset(success, 3.0))[token], abs=1e-4)


def test_a_histogram_shifts_by_the_mean_exponential():
  result = _sample(2.0, head=HISTOGRAM, function='q_function')
  for row, t, token, logits, outputs in _steps(result.rollouts, 'q_function', HISTOGRAM):
    probs = np.exp(outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True))
    shift = np.log((probs * np.exp(2.0 * np.linspace(-1, 1, 4))).sum(axis=1))
    assert result.rollouts.log_probs[*row, t] == pytest.approx(
        _log_softmax(logits + shift)[token], abs=1e-4)


# --- Against the tree of all responses.


def _tree():
  """A bigram reference over three tokens and the return of its last token, and its tables."""
  table = np.random.default_rng(3).normal(size=(4, 4))
  table[:, 3] = -1e30  # The stop token, which is never drawn.
  rows = np.exp(table[:3, :3] - np.logaddexp.reduce(table[:3, :3], axis=1, keepdims=True))
  last = [np.array([1]), *(np.arange(3**h) % 3 for h in range(1, 4))]  # The prompt ends in 1.
  tree = token_tree.Tree(
      tuple(rows[tokens] for tokens in last[:3]), np.array([0.0, 1.0, 0.0])[last[3]])
  return table, rows, tree


@pytest.mark.parametrize('rule', ['q_sharp', 'cd'])
def test_C1_C3_the_decoder_draws_from_the_optimal_policy_of_the_tree(rule):
  table, rows, tree = _tree()
  inv_eta, reference = 3.0, models.bigram(table)
  success = [np.array([1e-30, 1.0, 1e-30])]  # After the last token; then backwards.
  for _ in range(2):
    success.append(rows @ success[-1])
  logits = np.log(np.array(success[::-1])) - np.log1p(-np.minimum(success[::-1], 1 - 1e-12))

  def by_position(params, tokens, *, positions, **unused):
    del unused
    values = params[jnp.clip(positions - 1, 0, 2), jnp.minimum(tokens, 2)]
    return ModelOutput(values[..., None], Head(jnp.ones((1, 1)), None), {
        'unused': jnp.zeros((len(tokens), 1, 1, 1))})

  guide_model = ModelFns(None, by_position, lambda batch, slots: {
      'unused': jnp.zeros((batch, 1, 1, 1))})
  sampler = jax.jit(guided.make_sampler(
      reference[0], guided.Guide(guide_model, BERNOULLI, rule=rule),
      num_samples=400, max_tokens=3, num_candidates=4, stop_ids=(3,), pad_id=0))
  result = sampler(
      {'policy': reference[1], 'value': np.float32(logits)}, np.array([[1]]), np.array([1]),
      np.array([0]), jax.random.key(0), inv_eta)

  if rule == 'q_sharp':
    expected = tree.optimal(inv_eta)
  else:
    means = tree.per_action(tree.expectations(tree.returns))
    expected = tree.tilted([inv_eta * mean for mean in means])
  probs = tree.response_probs(expected)
  tokens = np.asarray(result.rollouts.tokens[0])
  drawn = np.exp(np.asarray(result.rollouts.log_probs[0]).sum(axis=1))
  index = tokens @ [9, 3, 1]
  np.testing.assert_allclose(drawn, probs[index], rtol=1e-4)
  assert len(set(index)) > 10
  # C28: the sum over tokens estimates the KL of responses.
  kl = np.asarray(result.kl[0])
  assert abs(kl.mean() - tree.kl(expected)) < 4 * kl.std() / np.sqrt(400)
  counts = np.bincount(index, minlength=27)
  chi_square = np.sum((counts - 400 * probs) ** 2 / np.maximum(400 * probs, 1e-9)
                      * (400 * probs > 3))
  assert chi_square < 60


@pytest.mark.parametrize('change, message', [
    (dict(tail='drop'), "tail must be one of add, truncate, got 'drop'"),
    (dict(order='before'), "order must be one of reference_first, after, got 'before'"),
    (dict(num_candidates=0), 'num_candidates must be at least 1, got 0'),
    (dict(num_samples=0), 'num_samples must be at least 1, got 0'),
    (dict(stop_ids=()), 'stop_ids must have at least one id, got none'),
    (dict(temperature=-1.0), 'temperature must be non-negative and finite, got -1.0'),
    (dict(top_p=0.0), r'top_p must be in \(0, 1\], got 0.0'),
    (dict(rule='dpo'), "guide.rule must be one of q_sharp, cd, fudge, got 'dpo'"),
    (dict(function='critic'), "guide.function must be one of value, q_function, got 'critic'"),
])
def test_bad_arguments_are_one_line(change, message):
  change = dict(change)
  guide = guided.Guide(
      _guide()[0], BERNOULLI, change.pop('function', 'value'),
      change.pop('rule', 'q_sharp'))
  with pytest.raises(ValueError, match=message):
    guided.make_sampler(_reference()[0], guide, **{**dict(
        num_samples=1, max_tokens=2, num_candidates=2, stop_ids=(STOP,), pad_id=0), **change})
