"""The evaluator on a small policy: exact divergences, padded batches, fixed noise."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.data import batching
from jaxrl_llm.evaluation import evaluator
from jaxrl_llm.models import configs, policy
from jaxrl_llm.sampling import decode
from jaxrl_llm.tasks import arithmetic

TASK = arithmetic.Config(
    digits=1, num_demonstrations=4, num_train=4, num_evaluation=10, carry_free_fraction=0.5,
    padding='none').make(0)
MODEL = policy.make(configs.TransformerConfig(
    vocab_size=TASK.tokenizer.vocab_size, num_layers=1, width=16, num_heads=2, num_kv_heads=1,
    head_dim=8, mlp_width=32, max_length=16))


_INIT = jax.jit(MODEL.init)


def _params(seed):
  params = _INIT(jax.random.key(seed))
  params['embedder']['embedding'] = params['embedder']['embedding'] * 4
  return params


def _sampler(num_samples, temperature=1.0):
  return jax.jit(decode.make_sampler(
      MODEL, num_samples=num_samples, max_tokens=TASK.max_response_tokens, temperature=temperature,
      stop_ids=TASK.tokenizer.stop_ids, pad_id=TASK.tokenizer.pad_id))


def _batches(size, *, max_prompt_tokens=TASK.max_prompt_tokens, multiple=None):
  encoded = batching.encode_examples(
      TASK.evaluation, TASK.tokenizer, max_prompt_tokens=max_prompt_tokens)
  for chunk in batching.sequential_chunks(len(encoded), size, multiple=multiple):
    batch = batching.prompt_batch(encoded, chunk.indices)
    yield batch._replace(examples=batch.examples[: int(chunk.weight.sum())])


@pytest.fixture(scope='module')
def evaluators():
  samplers = _sampler(3), _sampler(1, 0.0)
  return [
      evaluator.Evaluator(
          MODEL, TASK, list(_batches(size)), jax.random.key(7), sample=samplers[0],
          greedy=samplers[1])
      for size in (4, 10)
  ]


def test_batching_changes_nothing(evaluators):
  """Ten problems in batches of 4, 4 and 2 (padded to 4) score as in one batch."""
  small, whole = (evaluate(_params(0), _params(1)) for evaluate in evaluators)
  assert small.sampled.responses == whole.sampled.responses
  assert len(small.sampled.responses) == 10
  for name, value in whole.numbers.items():
    assert small.numbers[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_samples_do_not_depend_on_the_shape_of_their_batch():
  """Padded rows and columns give the same samples as batches and prompts that just fit."""
  params, sample, results = MODEL.init(jax.random.key(0)), _sampler(3), []
  for options, shapes in (
      ({'size': 16, 'max_prompt_tokens': 11}, [(16, 11)]),
      ({'size': 16, 'multiple': 1}, [(10, TASK.max_prompt_tokens)]),
      ({'size': 8, 'multiple': 1}, [(8, TASK.max_prompt_tokens), (2, TASK.max_prompt_tokens)]),
  ):
    batches = list(_batches(**options))
    assert [batch.prompts.shape for batch in batches] == shapes
    rollouts = [
        evaluator.real_rows(sample(params, *batch[:3], jax.random.key(7)), batch)
        for batch in batches]
    results.append([np.concatenate([getattr(part, name) for part in rollouts])
                    for name in ('tokens', 'lengths', 'stop_reason', 'log_probs')])

  (padded, *others) = results
  assert len(np.unique(padded[0].reshape(30, -1), axis=0)) > 5
  for other in others:
    for mine, theirs in zip(padded[:3], other):
      np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_allclose(padded[3], other[3], atol=1e-5)


def test_the_divergence_to_itself_is_zero_and_to_another_is_not(evaluators):
  assert evaluators[1](_params(0), _params(0)).numbers['kl_to_reference'] == 0.0
  assert evaluators[1](_params(0), _params(1)).numbers['kl_to_reference'] > 0.1


def test_the_divergence_from_itself_is_not_computed(evaluators, monkeypatch):
  params = _params(0)
  computed = evaluators[1](params, _params(0)).numbers
  monkeypatch.delattr(evaluators[1], '_kl')
  assert evaluators[1](params, params).numbers == computed


def test_scores_are_those_of_the_responses(evaluators):
  evaluation = evaluators[0](_params(0), _params(1))
  right = [
      [text == example['answer'] and not cut for text, cut in zip(texts, truncated)]
      for texts, truncated, example in zip(
          evaluation.sampled.responses, evaluation.sampled.truncated, TASK.evaluation)
  ]
  np.testing.assert_array_equal(evaluation.sampled.rewards, np.array(right, np.float32))
  assert evaluation.numbers['pass@1'] == pytest.approx(np.mean(right))
  assert evaluation.numbers['pass@3'] == pytest.approx(np.any(right, axis=1).mean())


def test_response_kl_is_the_sum_over_the_vocabulary_and_its_mean_the_sequence_divergence():
  """Against every response of two tokens: Σ_y π(y) log π(y)/π_ref(y) for an untruncated T = 2.

  Σ_t KL_t(prefix) averaged over prefixes with their probabilities is that very number.
  """
  vocab, length = 5, 2
  model = policy.make(configs.TransformerConfig(
      vocab_size=vocab, num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8,
      mlp_width=8, max_length=8))
  init = jax.jit(model.init)
  ours, theirs = (init(jax.random.key(seed)) for seed in (0, 1))
  prompt = jnp.array([[2, 3, 4]])
  sequences = jnp.array(list(itertools.product(range(vocab), repeat=length)))

  @jax.jit
  def token_log_probs(params):
    tokens = jnp.concatenate([jnp.repeat(prompt, len(sequences), 0), sequences], axis=1)
    output = model.apply(
        params, tokens, positions=jnp.broadcast_to(jnp.arange(5), tokens.shape),
        valid=jnp.ones(tokens.shape, bool))
    logits = output.hidden @ output.head.kernel.T
    return jax.nn.log_softmax(logits)[:, 2:4]  # [25, 2, V]

  mine, other = np.asarray(token_log_probs(ours)), np.asarray(token_log_probs(theirs))
  pick = lambda table: np.take_along_axis(table, np.asarray(sequences)[..., None], -1)[..., 0]
  mine_sum, other_sum = pick(mine).sum(1), pick(other).sum(1)
  exact = np.sum(np.exp(mine_sum) * (mine_sum - other_sum))
  per_token = (np.exp(mine) * (mine - other)).sum(-1)  # [25, 2]

  # A stop id outside the vocabulary: every response has both of its tokens.
  sample = decode.make_sampler(model, num_samples=1, max_tokens=2, stop_ids=(99,), pad_id=0)
  rollouts = jax.tree.map(
      lambda x: jnp.repeat(x, len(sequences), 0),
      jax.jit(sample)(ours, prompt, jnp.array([3]), jnp.array([0]), jax.random.key(0)))
  rollouts = rollouts.__class__(**{**rollouts.__dict__, 'tokens': sequences[:, None]})
  response_kl = jax.jit(functools.partial(evaluator.response_kl, model))
  kl = np.asarray(response_kl(ours, theirs, rollouts))[:, 0]
  np.testing.assert_allclose(kl, per_token.sum(1), rtol=1e-4)
  assert np.sum(np.exp(mine_sum) * kl) == pytest.approx(exact, rel=1e-4)
