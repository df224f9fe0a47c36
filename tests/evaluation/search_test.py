"""Block search: closed forms with an exact reference and value, budgets, and cached scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.data import batching
from jaxrl_llm.evaluation import search
from jaxrl_llm.models import configs, policy, value
from jaxrl_llm.rl import return_heads
from jaxrl_llm.tasks import noisy_sum
from tests.models import witness
from tests.rl import token_tree
from tests.sampling import models, noisy_reference

RATE, LIMIT = 0.15, 17
TASK = noisy_sum.Config(
    num_demonstrations=0, num_train=0, num_evaluation=400, error_rate=RATE).make(seed=0)
TOKENIZER = TASK.tokenizer
EXAMPLES = batching.encode_examples(
    TASK.evaluation, TOKENIZER, max_prompt_tokens=TASK.max_prompt_tokens)
KEY = jax.random.key(0)


def _text(tokens, length):
  return TOKENIZER.decode([int(token) for token in tokens[:length]])


def _exact_value(examples, candidates):
  """The value of each candidate; that of a whole response is whether it is right."""
  scores = []
  for problem, tokens, length in zip(candidates.problems, candidates.tokens, candidates.lengths):
    text = _text(tokens, length)
    values = noisy_sum.prefix_values(examples[problem], text, RATE)
    scores.append(values[-1] if len(text) else 1.0)
  return np.array(scores)


@functools.cache
def _search(num_blocks, width, num_trees=1, block_tokens=4, select='best', incremental=False):
  model, params = noisy_reference.make(TOKENIZER, 8, RATE)
  searcher = search.Search(
      model, search.Config(num_blocks, width, num_trees, block_tokens, select, incremental),
      max_tokens=LIMIT,
      stop_ids=TOKENIZER.stop_ids, pad_id=TOKENIZER.pad_id)

  def run(scorer=None, *, problems=range(400), key=KEY):
    prompts = batching.prompt_batch(EXAMPLES, np.asarray(problems))
    examples = [TASK.evaluation[i] for i in problems]
    scorer = scorer or search.FunctionScorer(functools.partial(_exact_value, examples))
    result = searcher(params, scorer, *prompts[:3], key)
    rewards = np.array([[
        noisy_sum.reward([''], [_text(*row)], [not stopped], [example])[0]
        for *row, stopped in zip(tokens, lengths, stops)]
        for tokens, lengths, stops, example in zip(
            result.tokens, result.lengths, result.stopped, examples)])
    return result, rewards

  return run


CONSTANT = search.FunctionScorer(lambda candidates: np.zeros(len(candidates.problems)))


def _four_errors(p, count=400):
  return 4 * np.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize('width', [2, 4])
def test_C42_a_single_beam_has_its_closed_form(width):
  result, rewards = _search(width, width)()
  expected = noisy_sum.search_accuracy(8, RATE, block=2, width=width)
  assert rewards.mean() == pytest.approx(expected, abs=_four_errors(expected))
  assert result.stopped.all() and (result.lengths == LIMIT).all()
  assert result.scores.shape == (400, 1)
  np.testing.assert_array_equal(result.scores > 0.5, rewards > 0)


def test_C35_width_one_is_independent_sampling_for_any_values():
  by_value, rewards = _search(4, 1)()
  by_nothing, _ = _search(4, 1)(CONSTANT)
  np.testing.assert_array_equal(by_value.tokens, by_nothing.tokens)
  rate = noisy_sum.success_rate(8, RATE)
  assert rewards.mean() == pytest.approx(rate, abs=_four_errors(rate, 1600))
  # Different beams are different samples, also over many blocks.
  assert len({row.tobytes() for row in by_value.tokens[0]}) > 1
  pairs = np.corrcoef(rewards[:, 0], rewards[:, 1])[0, 1]
  assert abs(pairs) < 4 / np.sqrt(400)


@pytest.mark.parametrize('count', [2, 4])
def test_C36_C37_one_long_block_is_best_of_n(count):
  result, rewards = _search(count, count, block_tokens=LIMIT)()
  expected = 1 - (1 - noisy_sum.success_rate(8, RATE)) ** count
  assert rewards.mean() == pytest.approx(expected, abs=_four_errors(expected))
  assert (result.blocks == count).all() and result.blocks.shape == (400, 1)
  assert (result.sampled_tokens == count * LIMIT).all()


def test_C38_constant_values_leave_the_reference():
  for width in (2, 4):
    _, rewards = _search(4, width)(CONSTANT)
    rate = noisy_sum.success_rate(8, RATE)
    # Beams that share a parent are correlated: the error is that of independent problems.
    assert rewards.mean() == pytest.approx(rate, abs=_four_errors(rate))


def test_C39_the_best_of_a_tree_may_share_a_parent_and_trees_are_independent():
  pooled, rewards = _search(4, 2)()
  separate, apart = _search(2, 2, num_trees=2)()
  assert pooled.tokens.shape == separate.tokens.shape == (400, 2, LIMIT)
  # One tree per beam is a single beam; a pool saves a beam whose blocks are all wrong.
  single = noisy_sum.search_accuracy(8, RATE, block=2, width=2)
  assert apart.mean() == pytest.approx(single, abs=_four_errors(single, 800))
  assert rewards.mean() > 0.85  # 0.914 in the specification.
  assert rewards.any(axis=1).mean() == pytest.approx(0.96, abs=0.04)

  # More trees do not change the ones before.
  four, _ = _search(2, 2, num_trees=4)()
  np.testing.assert_array_equal(four.tokens[:, :2], separate.tokens)
  one, _ = _search(2, 2)()
  np.testing.assert_array_equal(separate.tokens[:, :1], one.tokens)


def test_C39_both_children_of_one_parent_win():
  def favour(candidates):
    """Only what continues the first beam's first block is any good."""
    rows = np.arange(len(candidates.problems)) % 4
    return np.where(rows < 2, 1.0, 0.0)

  result, _ = _search(4, 2)(search.FunctionScorer(favour), problems=range(3))
  np.testing.assert_array_equal(
      result.tokens[:, 0, : LIMIT - 5], result.tokens[:, 1, : LIMIT - 5])


def test_C40_budgets_are_exact():
  for num_blocks, width, trees in ((4, 2, 1), (4, 1, 2), (2, 2, 3)):
    result, _ = _search(num_blocks, width, trees)(problems=range(20))
    total = num_blocks * trees
    assert (result.blocks[:, 0] == total).all() and (result.blocks <= total).all()
    assert result.tokens.shape[1] == total // width
    # Four blocks of four tokens, and one for the stop token.
    assert (result.sampled_tokens == total * LIMIT).all()


def test_C40_finished_beams_stop_consuming_and_keep_their_slot():
  """Responses may stop at any token; finished ones stay as they are."""
  size, stop = 3, 2
  model, params = models.bigram(np.zeros((size, size)))  # Each token has probability 1/3.
  searcher = search.Search(
      model, search.Config(4, 2, 1, 2), max_tokens=8, stop_ids=(stop,), pad_id=0)
  prompts, lengths, ids = np.ones((6, 2), np.int32), np.full(6, 2), np.arange(6)
  result = searcher(params, CONSTANT, prompts, lengths, ids, KEY)
  assert result.stopped.any() and (result.blocks[:, 1:] <= result.blocks[:, :-1]).all()
  assert (result.blocks % 2 == 0).all() and result.blocks[:, -1].min() < 4
  for tokens, length, stopped in zip(
      result.tokens.reshape(-1, 8), result.lengths.ravel(), result.stopped.ravel()):
    stops = np.flatnonzero(tokens[:length] == stop)
    assert stops.tolist() == ([length - 1] if stopped else [])
    assert stopped or length == 8
    assert not tokens[length:].any()


def test_a_problem_does_not_depend_on_its_batch():
  whole, _ = _search(4, 2)(problems=range(12))
  part, _ = _search(4, 2)(problems=[7, 3])
  np.testing.assert_array_equal(part.tokens, whole.tokens[[7, 3]])
  first, other = (
      _search(4, 1)(CONSTANT, problems=[7, 3], key=jax.random.key(seed))[0] for seed in range(2))
  assert (other.tokens != first.tokens).any()


def test_problems_with_one_id_are_refused():
  with pytest.raises(ValueError, match='example_ids must all be different'):
    _search(4, 2)(problems=[7, 7])


def test_V5_random_values_choose_like_the_reference():
  random = np.random.default_rng(0)
  scorer = search.FunctionScorer(lambda candidates: random.random(len(candidates.problems)))
  _, rewards = _search(4, 2)(scorer)
  rate = noisy_sum.success_rate(8, RATE)
  assert rewards.mean() == pytest.approx(rate, abs=_four_errors(rate))


# --- Particles.


def test_C43_constant_weights_leave_the_reference():
  constant = search.FunctionScorer(lambda candidates: np.full(len(candidates.problems), -3.0))
  result, rewards = _search(8, 1, select='resample')(constant)
  rate = noisy_sum.success_rate(8, RATE)
  # Only problems are independent: resampled particles share ancestors.
  assert rewards.mean() == pytest.approx(rate, abs=_four_errors(rate, count=400))
  assert len({row.tobytes() for row in result.tokens[0]}) < 8
  np.testing.assert_allclose(result.log_weights, -3.0 * 5)  # Four blocks and the stop token.


def test_C43_with_soft_values_the_mean_weight_estimates_the_normaliser():
  inv_eta, rate = 1.5, noisy_sum.success_rate(8, RATE)
  soft = lambda p: np.log1p(p * np.expm1(inv_eta))

  def scorer(problems):
    examples = [TASK.evaluation[i] for i in problems]
    return search.FunctionScorer(lambda candidates: soft(_exact_value(examples, candidates)))

  result, rewards = _search(8, 1, 2, select='resample', incremental=True)(scorer(range(400)))
  weights = np.exp(result.log_weights)
  error = weights.std() / np.sqrt(weights.size)
  assert weights.mean() == pytest.approx(np.exp(soft(rate)), abs=4 * error)
  # The particles follow the tilted reference: σ(logit p + 1/η) of them are right.
  tilted = rate * np.exp(inv_eta) / np.exp(soft(rate))
  assert rewards.mean() == pytest.approx(tilted, abs=0.06)


def test_C43_weights_are_one_if_the_proposal_is_optimal():
  tree, inv_eta = token_tree.draw(2), 4.0
  values = tree.soft_values(inv_eta)
  for h, (base, optimal) in enumerate(zip(tree.policy, tree.optimal(inv_eta))):
    gains = tree.per_action(values)[h] - values[h][:, None]
    np.testing.assert_allclose(base / optimal * np.exp(inv_eta * gains), 1.0, atol=1e-10)


def test_C43_offspring_are_multinomial():
  model, params = noisy_reference.make(TOKENIZER, 8, RATE)
  del params
  filter_ = search.Search(
      model, search.Config(4, 1, select='resample'), max_tokens=LIMIT,
      stop_ids=TOKENIZER.stop_ids, pad_id=TOKENIZER.pad_id)
  weights = np.array([0.1, 0.2, 0.3, 0.4])
  drawn, means = filter_._resample(
      np.tile(np.log(weights), 3_000), KEY, np.arange(3_000), depth=0)
  counts = np.bincount(drawn % 4, minlength=4) / 3_000
  np.testing.assert_allclose(counts, 4 * weights, atol=4 * np.sqrt(4 * 0.25 / 3_000))
  assert (drawn // 4 == np.repeat(np.arange(3_000), 4)).all()
  np.testing.assert_allclose(means, np.log(0.25))


# --- Networks.

SHAPE = configs.TransformerConfig(
    vocab_size=9, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24,
    max_length=32)


@pytest.mark.parametrize('head', [return_heads.Bernoulli(), return_heads.Outcome()],
                         ids=['bernoulli', 'outcome'])
def test_scores_of_a_network_are_those_of_the_whole_responses(head):
  """Caches follow the beams: scores equal those of full forward passes."""
  reference, model = policy.make(SHAPE), value.make(SHAPE, num_outputs=head.num_outputs)
  params = jax.tree.map(lambda leaf: 0.5 * leaf, witness.draw_params(reference))
  guide = jax.tree.map(lambda leaf: 0.7 * leaf, witness.draw_params(model, 3))
  prompts = np.array([[3, 1, 4, 1], [0, 0, 2, 5], [0, 0, 0, 7]], np.int32)
  lengths = np.array([4, 2, 1])
  scorer = search.ValueScorer(model, head, guide)
  result = search.Search(
      reference, search.Config(4, 2, 2, 3), max_tokens=8, stop_ids=(8,), pad_id=0)(
          params, scorer, prompts, lengths, np.array([5, 6, 7]), KEY)

  rows = [[*prompts[p, 4 - lengths[p]:], *result.tokens[p, b, : result.lengths[p, b]]]
          for p in range(3) for b in range(4)]
  tokens = np.zeros((12, 12), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)] = row
  ends = np.array([len(row) for row in rows])
  slots = np.arange(12)
  output = jax.jit(model.apply)(
      guide, tokens, positions=np.broadcast_to(slots, tokens.shape), valid=slots < ends[:, None])
  hidden = jnp.take_along_axis(output.hidden, ends[:, None, None] - 1, axis=1)[:, 0]
  expected = head.expectation(hidden @ output.head.kernel.T + output.head.bias)
  np.testing.assert_allclose(result.scores.ravel(), expected, atol=1e-5)

  assert scorer.cached_tokens == lengths.sum() + result.sampled_tokens.sum()
  assert scorer.computed_tokens >= scorer.cached_tokens
  assert len(set(result.scores.ravel().round(6))) > 6


@pytest.mark.parametrize('changes, message', [
    (dict(num_blocks=3), r'num_blocks must be divisible by width \(2\), got 3'),
    (dict(width=0), 'width must be at least 1, got 0'),
    (dict(block_tokens=0), 'block_tokens must be at least 1, got 0'),
    (dict(num_trees=0), 'num_trees must be at least 1, got 0')])
def test_bad_budgets_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message):
    search.Search(
        policy.make(SHAPE), search.Config(**{'num_blocks': 4, 'width': 2, **changes}),
        max_tokens=8, stop_ids=(8,), pad_id=0)
