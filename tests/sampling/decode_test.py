"""Decoding: stop tokens, noise per sample, recorded log-probs, one prefill."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import types
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import step
from tests.models import witness
from tests.sampling import models

CONFIG = configs.TransformerConfig(
    vocab_size=17, num_layers=1, width=16, num_heads=4, num_kv_heads=2, head_dim=4,
    mlp_width=24, max_length=16,
)
# Prompts of 5, 2 and 3 tokens, left-padded with arbitrary ids.
PROMPTS = np.array([[3, 1, 4, 1, 5], [9, 9, 9, 2, 6], [7, 7, 5, 3, 5]], np.int32)
LENGTHS = np.array([5, 2, 3], np.int32)
IDS = np.array([40, 7, 1000], np.int32)
STOP = 16


@functools.lru_cache
def _network():
  model = policy.make(CONFIG)
  # Small weights, so that samples differ.
  return model, jax.tree.map(lambda leaf: 0.6 * leaf, witness.draw_params(model))


@functools.lru_cache
def _bigram():
  return models.bigram(np.random.default_rng(0).standard_normal((17, 17)))


def _sampler(
    *, num_samples=4, max_tokens=6, network=_network, temperature=1.0, top_k=0, top_p=1.0):
  return _compiled(network, num_samples, max_tokens, temperature, top_k, top_p)


@functools.lru_cache
def _compiled(network, num_samples, max_tokens, temperature, top_k, top_p):
  model, params = network()
  sampler = step.CountedJit(decode.make_sampler(
      model, num_samples=num_samples, max_tokens=max_tokens, stop_ids=(STOP,), pad_id=0,
      temperature=temperature, top_k=top_k, top_p=top_p))

  def sample(prompts=PROMPTS, lengths=LENGTHS, ids=IDS, seed=0):
    return jax.tree.map(np.asarray, sampler(params, prompts, lengths, ids, jax.random.key(seed)))

  sample.counted = sampler
  return sample


# --- Ends of responses. Chains: token v is followed by successors[v].

# 0 → 1 → 2 → 3 → 4 → 5 → 5 ...
CHAIN = (1, 2, 3, 4, 5, 5)


def _run_chain(stop_ids, *, pad_id=0, max_tokens=3, starts=(0, 1, 2), **options):
  model, params = models.chain(CHAIN)
  sampler = decode.make_sampler(
      model, num_samples=1, max_tokens=max_tokens, stop_ids=stop_ids, pad_id=pad_id, **options)
  starts = np.array(starts, np.int32)
  rollouts = jax.jit(sampler)(
      params, starts[:, None], np.ones_like(starts), starts, jax.random.key(0))
  return jax.tree.map(lambda x: np.asarray(x)[:, 0] if x.ndim > 1 else x, rollouts)


def test_stops_at_the_first_slot_the_last_slot_and_nowhere():
  # 2 is followed by the stop token 3; 0 by 1, 2, 3, with the stop in the last of three slots; the
  # row that starts at 3 does not reach another 3 and is truncated.
  rollouts = _run_chain((3,), starts=(2, 0, 3))
  np.testing.assert_array_equal(rollouts.tokens, [[3, 0, 0], [1, 2, 3], [4, 5, 5]])
  np.testing.assert_array_equal(rollouts.lengths, [1, 3, 3])
  np.testing.assert_array_equal(rollouts.mask, [[1, 0, 0], [1, 1, 1], [1, 1, 1]])
  np.testing.assert_array_equal(
      rollouts.stop_reason, [types.STOPPED, types.STOPPED, types.TRUNCATED])
  np.testing.assert_array_equal(rollouts.log_probs[rollouts.mask == 0], 0)
  assert rollouts.tokens.dtype == np.int32 and rollouts.stop_reason.dtype == np.int8


def test_the_first_of_several_stop_ids_ends_a_response():
  rollouts = _run_chain((5, 3), starts=(0, 3, 5), max_tokens=4)
  np.testing.assert_array_equal(rollouts.tokens, [[1, 2, 3, 0], [4, 5, 0, 0], [5, 0, 0, 0]])
  np.testing.assert_array_equal(rollouts.lengths, [3, 2, 1])


def test_sequences_of_ids_end_a_response_at_their_last_id():
  # The chain from 0 is 1, 2, 3, 4, 5, 5; from 2 it is 3, 4, 5, 5, 5, 5.
  for sequences, lengths in (
      (((3, 4),), [4, 2]), (((1, 2, 3), (5, 5)), [3, 4]), (((4, 3), (3, 4, 4)), [6, 6]),
      (((3,),), [3, 1]), (((0, 1),), [6, 6])):  # A prompt's last id is not part of a sequence.
    rollouts = _run_chain((99,), max_tokens=6, starts=(0, 2), stop_sequences=sequences)
    np.testing.assert_array_equal(rollouts.lengths, lengths)
    np.testing.assert_array_equal(rollouts.mask.sum(axis=-1), lengths)
    np.testing.assert_array_equal(rollouts.stop_reason == types.STOPPED, np.array(lengths) < 6)
    for row, (start, length) in zip(rollouts.tokens, zip((0, 2), lengths)):
      chain = [min(start + i, 5) for i in range(1, 7)]
      assert row.tolist() == chain[:length] + [0] * (6 - length)

  # A sequence that is too long for a response never occurs; a stop id still ends one.
  rollouts = _run_chain((4,), max_tokens=3, starts=(2,), stop_sequences=((3, 4, 5, 5),))
  assert rollouts.lengths == [2]
  with pytest.raises(ValueError, match='stop_sequences must have at least one id each'):
    _run_chain((4,), stop_sequences=((),))


def test_padding_may_share_its_id_with_the_stop_token():
  rollouts = _run_chain((3,), pad_id=3, starts=(1, 4))
  np.testing.assert_array_equal(rollouts.tokens, [[2, 3, 3], [5, 5, 5]])
  np.testing.assert_array_equal(rollouts.mask, [[1, 1, 0], [1, 1, 1]])
  np.testing.assert_array_equal(rollouts.stop_reason, [types.STOPPED, types.TRUNCATED])


def test_a_sampled_pad_id_is_an_ordinary_token():
  rollouts = _run_chain((5,), pad_id=2, starts=(0,))
  np.testing.assert_array_equal(rollouts.tokens, [[1, 2, 3]])
  np.testing.assert_array_equal(rollouts.mask, [[1, 1, 1]])


@pytest.mark.parametrize('starts, steps', [((2, 2), 0), ((2, 1), 1), ((0, 2), 2), ((4, 2), 8)])
def test_decoding_ends_when_every_row_has_stopped(starts, steps):
  model, params = models.chain(CHAIN)
  calls = []

  def apply(params, tokens, **arguments):
    jax.debug.callback(lambda: calls.append(1))
    return model.apply(params, tokens, **arguments)

  sampler = decode.make_sampler(
      model._replace(apply=apply), num_samples=1, max_tokens=9, stop_ids=(3,), pad_id=0)
  starts = np.array(starts, np.int32)
  jax.block_until_ready(jax.jit(sampler)(
      params, starts[:, None], np.ones_like(starts), starts, jax.random.key(0)))
  jax.effects_barrier()
  assert len(calls) == 1 + steps  # The prefill, and a step for each token except the first.


# --- One prefill, one compilation.


def test_k_samples_share_one_prefill():
  seen = []
  model, params = models.chain(CHAIN, seen=seen)
  sampler = decode.make_sampler(model, num_samples=5, max_tokens=3, stop_ids=(3,), pad_id=0)
  jax.eval_shape(sampler, params, np.zeros((2, 7), np.int32), np.full(2, 7, np.int32),
                 np.arange(2), jax.random.key(0))
  assert seen[0] == (2, 7)  # Each prompt once, not once per sample.
  assert set(seen[1:]) == {(10, 1)}  # Then one token of each of the P * K rows.


def test_the_same_program_serves_every_batch():
  sample = _sampler()
  rng = np.random.default_rng(0)
  sample()
  with step.count_compilations() as compilations:
    for seed in range(5):
      lengths = rng.integers(1, 6, 3).astype(np.int32)
      sample(rng.integers(0, 17, (3, 5)).astype(np.int32), lengths, rng.integers(0, 99, 3), seed)
  assert sample.counted.num_traces == 1
  assert not compilations['jit_sample'] and not compilations['sample']


# --- The noise belongs to (key, example, sample, position).


def test_keys_examples_and_samples_have_different_noise():
  first = _sampler()()
  np.testing.assert_array_equal(_sampler()().tokens, first.tokens)
  other = _sampler()(seed=1)
  assert (other.tokens != first.tokens).any(axis=(1, 2)).all()
  # The same prompt with three ids gives three different groups of samples.
  same = _sampler()(PROMPTS[[0, 0, 0]], LENGTHS[[0, 0, 0]])
  assert len({group.tobytes() for group in same.tokens}) == 3
  assert len({row.tobytes() for row in same.tokens[0]}) > 1


def test_a_sample_does_not_depend_on_its_batch():
  first = _sampler()()
  order = np.array([2, 0, 1])
  moved = _sampler()(PROMPTS[order], LENGTHS[order], IDS[order])
  np.testing.assert_array_equal(moved.tokens, first.tokens[order])
  # With other prompts, whose responses are longer or shorter.
  others = np.array([[8, 8, 8, 8, 8], [9, 9, 9, 2, 6], [1, 2, 3, 4, 5]], np.int32)
  mixed = _sampler()(others, np.array([1, 2, 5], np.int32), np.array([3, 7, 4]))
  np.testing.assert_array_equal(mixed.tokens[1], first.tokens[1])
  np.testing.assert_allclose(mixed.log_probs[1], first.log_probs[1], atol=1e-5)


def test_a_repeated_prompt_in_a_batch_gets_the_next_samples():
  more = _sampler(num_samples=8)().tokens
  order = np.array([1, 0, 1])
  twice = _sampler()(PROMPTS[order], LENGTHS[order], IDS[order]).tokens
  np.testing.assert_array_equal(twice[[0, 2]].reshape(8, -1), more[1])
  np.testing.assert_array_equal(twice[1], more[0, :4])


def test_more_samples_begin_with_the_same_ones():
  more = _sampler(num_samples=8, network=_bigram)()
  np.testing.assert_array_equal(more.tokens[:, :4], _sampler(network=_bigram)().tokens)


def test_a_shorter_limit_gives_the_beginning_of_the_same_samples():
  first, short = _sampler(network=_bigram)(), _sampler(max_tokens=3, network=_bigram)()
  np.testing.assert_array_equal(short.tokens, first.tokens[..., :3])
  cut = first.lengths > 3
  np.testing.assert_array_equal(short.stop_reason[cut], types.TRUNCATED)
  assert cut.any()


def test_padding_of_a_prompt_has_no_effect():
  first = _sampler()()
  changed = PROMPTS.copy()
  changed[1, :3], changed[2, :2] = 0, 16
  other = _sampler()(changed)
  np.testing.assert_array_equal(other.tokens, first.tokens)
  np.testing.assert_allclose(other.log_probs, first.log_probs, atol=1e-5)


# --- Responses that are continued.


@functools.lru_cache
def _continuation():
  model, params = _network()
  sampler = decode.make_sampler(model, num_samples=4, max_tokens=6, stop_ids=(STOP,), pad_id=0)
  sample = jax.jit(sampler)

  def continued(tokens, lengths, seed=0):
    given = decode.Given(jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32))
    return jax.tree.map(np.asarray, sample(
        params, PROMPTS, LENGTHS, IDS, jax.random.key(seed), given))

  return continued


def test_a_response_that_is_given_its_own_beginning_goes_on_as_before():
  first = _sampler()()
  given = np.random.default_rng(0).integers(0, 7, size=(3, 4))
  again = _continuation()(first.tokens, given)
  for name in ('tokens', 'lengths', 'stop_reason'):
    np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
  sampled = np.arange(6) >= given[..., None]
  np.testing.assert_array_equal(again.mask, first.mask * sampled)
  np.testing.assert_array_equal(again.log_probs, first.log_probs * sampled)


def test_given_tokens_are_read_and_the_rest_is_sampled():
  tokens = np.random.default_rng(1).integers(0, STOP, size=(3, 4, 6))
  given = np.full((3, 4), 3)
  one, other = (_continuation()(tokens, given, seed=seed) for seed in range(2))
  for rollouts in (one, other):
    np.testing.assert_array_equal(rollouts.tokens[..., :3], tokens[..., :3])
    assert not rollouts.mask[..., :3].any() and rollouts.mask[..., 3].all()
    # Log-probs of the trainer, which reads the given tokens too.
    np.testing.assert_allclose(rollouts.log_probs, _score(1.0, 0)(rollouts), atol=1e-4)
  assert (one.tokens[..., 3:] != other.tokens[..., 3:]).any(axis=(1, 2)).all()


def test_a_given_stop_token_ends_the_response():
  tokens = np.full((3, 4, 6), 2)
  tokens[:, :2, 1] = STOP
  rollouts = _continuation()(tokens, np.array([[1, 6, 6, 6]] * 3))
  assert (rollouts.lengths[:, 1] == 2).all() and not rollouts.tokens[:, 1, 2:].any()
  assert (rollouts.stop_reason[:, 1] == types.STOPPED).all()
  assert (rollouts.stop_reason[:, 2] == types.TRUNCATED).all()
  assert not rollouts.mask[:, 1:].any() and rollouts.mask[:, 0, 1].all()


# --- Log-probs.


@functools.lru_cache
def _score(temperature, chunk_size):
  model, params = _network()
  score = jax.jit(functools.partial(
      scoring.score, model, temperature=temperature, chunk_size=chunk_size))
  return lambda rollouts: score(params, rollouts)[0]


@pytest.mark.parametrize('temperature', [0.6, 1.0, 1.3])
def test_recorded_log_probs_are_those_of_the_trainer(temperature):
  rollouts = _sampler(temperature=temperature)()
  assert (np.asarray(rollouts.mask) == 0).any()  # Some rows stop early.
  scored = _score(temperature, 0)(rollouts)
  np.testing.assert_allclose(rollouts.log_probs, scored, atol=1e-4)
  assert np.abs(scored).max() > 1
  # The ratio of the policy to itself, with another chunk size.
  ratio = np.exp((_score(temperature, 4)(rollouts) - scored).sum(-1))
  np.testing.assert_allclose(ratio, 1.0, atol=1e-5)


def test_log_probs_are_over_the_whole_vocabulary_despite_truncation():
  rollouts = _sampler(top_k=2, top_p=0.8, temperature=1.3)()
  np.testing.assert_allclose(rollouts.log_probs, _score(1.3, 0)(rollouts), atol=1e-4)


# --- Greedy.


def test_greedy_equals_an_argmax_loop_without_a_cache():
  model, params = _network()
  greedy = _sampler(num_samples=1, temperature=0.0)(seed=5)

  @jax.jit
  def next_logits(tokens, length, filled):
    """Logits after `filled` slots; later slots are masked."""
    slots = jnp.arange(tokens.shape[1])
    valid = (slots >= 5 - length) & (slots < filled)
    output = model.apply(params, tokens, positions=jnp.maximum(slots - (5 - length), 0)[None],
                         valid=valid[None])
    return output.hidden[0, filled - 1] @ output.head.kernel.T

  for row in range(3):
    tokens = np.concatenate([PROMPTS[row], np.zeros(6, np.int32)])[None]
    for t in range(greedy.lengths[row, 0]):
      logits = np.asarray(next_logits(tokens, LENGTHS[row], 5 + t))
      tokens[0, 5 + t] = logits.argmax()
      np.testing.assert_allclose(
          greedy.log_probs[row, 0, t], logits.max() - np.log(np.exp(logits).sum()), atol=1e-4)
    np.testing.assert_array_equal(greedy.tokens[row, 0], tokens[0, 5:])

  # The key has no effect.
  np.testing.assert_array_equal(_sampler(num_samples=1, temperature=0.0)().tokens, greedy.tokens)


def test_top_k_of_one_is_greedy():
  greedy = _sampler(num_samples=1, temperature=0.0, network=_bigram)()
  one = _sampler(top_k=1, network=_bigram)()
  np.testing.assert_array_equal(one.tokens, np.repeat(greedy.tokens, 4, axis=1))
  assert (_sampler(network=_bigram)().tokens != one.tokens).any()
  tiny_nucleus = _sampler(top_p=1e-6, network=_bigram)()
  np.testing.assert_array_equal(tiny_nucleus.tokens, one.tokens)


# --- Other caches, other devices, invalid arguments.


def test_a_stacked_cache_and_learned_positions_give_consistent_samples():
  config = configs.TransformerConfig(
      vocab_size=17, num_layers=2, width=16, num_heads=2, num_kv_heads=2, head_dim=8,
      mlp_width=24, max_length=16, positions='learned', norm='layer', scan_unroll=1)
  model = policy.make(config)
  params = jax.tree.map(lambda leaf: 0.6 * leaf, witness.draw_params(model))
  sampler = decode.make_sampler(
      model, num_samples=2, max_tokens=5, stop_ids=(STOP,), pad_id=0)
  rollouts = jax.jit(sampler)(params, PROMPTS, LENGTHS, IDS, jax.random.key(0))
  scored, _ = jax.jit(functools.partial(scoring.score, model))(params, rollouts)
  np.testing.assert_allclose(rollouts.log_probs, scored, atol=1e-4)


def test_a_mesh_samples_the_same_tokens():
  model, params = _network()
  mesh = jax.make_mesh(
      (2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 3)
  expected = _sampler()()
  # Three prompts cannot be spread over four devices, their twelve rows can.
  sampler = decode.make_sampler(
      model, num_samples=4, max_tokens=6, stop_ids=(STOP,), pad_id=0)
  with jax.set_mesh(mesh):
    rollouts = jax.jit(sampler)(params, PROMPTS, LENGTHS, IDS, jax.random.key(0))
  np.testing.assert_array_equal(rollouts.tokens, expected.tokens)
  np.testing.assert_allclose(rollouts.log_probs, expected.log_probs, atol=1e-4)


@pytest.mark.parametrize('changes, message', [
    (dict(num_samples=0), 'num_samples must be at least 1, got 0'),
    (dict(max_tokens=0), 'max_tokens must be at least 1, got 0'),
    (dict(stop_ids=()), 'stop_ids must have at least one id'),
    (dict(temperature=-0.5), 'temperature must be non-negative and finite, got -0.5'),
    (dict(temperature=float('nan')), 'temperature must be .* got nan'),
    (dict(top_k=-1), 'top_k must be at least 0, got -1'),
    (dict(top_p=0.0), r'top_p must be in \(0, 1\], got 0.0'),
    (dict(temperature=0.0, top_p=2.0), r'top_p must be in \(0, 1\], got 2.0'),
])
def test_invalid_arguments_are_named_when_the_sampler_is_made(changes, message):
  arguments = dict(num_samples=1, max_tokens=1, stop_ids=(1,), pad_id=0) | changes
  with pytest.raises(ValueError, match=message):
    decode.make_sampler(models.chain(CHAIN)[0], **arguments)


def test_a_cache_beyond_the_models_length_is_an_error():
  model, params = _network()
  sampler = decode.make_sampler(model, num_samples=1, max_tokens=13, stop_ids=(1,), pad_id=0)
  with pytest.raises(ValueError, match='max_length must be at least the number of slots'):
    jax.eval_shape(sampler, params, PROMPTS, LENGTHS, IDS, jax.random.key(0))
