"""Cuts, classes and batches of responses, and what may be learned from spliced ones."""

import numpy as np
import pytest

from jaxrl_llm.data import batching
from jaxrl_llm.rl import return_heads
from jaxrl_llm.runs import value_data
from tests.rl import token_tree


def _data(rows, lengths, first, targets, truncated=None):
  count = len(rows)
  prompts = batching.EncodedExamples(
      [{'id': i} for i in range(10)], np.arange(10), np.arange(40).reshape(10, 4),
      np.full(10, 4), 0)
  return value_data.ValueData(
      prompts, np.array(rows), np.arange(count * 5).reshape(count, 5), np.array(lengths),
      np.array(first), np.zeros(count, bool) if truncated is None else np.array(truncated),
      np.array(targets, np.float32), 0)


@pytest.mark.parametrize('power', [0.0, 0.5, -1.0])
def test_C32_cuts_have_their_distribution_over_the_tokens_of_a_response(power):
  lengths = np.repeat([1, 2, 7], 20_000)
  cuts = value_data.cut_at_random(lengths, np.random.default_rng(0), power=power)
  for length in (1, 2, 7):
    counts = np.bincount(cuts[lengths == length], minlength=7) / 20_000
    expected = np.arange(1, length + 1) ** power
    np.testing.assert_allclose(counts[:length], expected / expected.sum(), atol=0.015)
    assert not counts[length:].any()


def test_C30_C31_labels_are_unbiased_from_the_switch_on_and_not_before():
  """Exactly: E[label | x_t, y_t] of spliced responses, for every switch and every token."""
  tree = token_tree.draw(0)
  guided = tree.optimal(10.0)
  success = tree.per_action(tree.expectations(tree.returns))
  worst = 0.0
  for policy, biased in ((guided, True), (tree.policy, False)):
    for switch in range(tree.depth):
      # Tokens up to the switch are those of the roll-in policy, later ones the reference's.
      tables = policy[: switch + 1] + tree.policy[switch + 1 :]
      labels = tree.per_action(tree.expectations(tree.returns, tables))
      for t in range(tree.depth):
        difference = np.abs(labels[t] - success[t]).max()
        if t >= switch or not biased:
          assert difference < 1e-12
        else:
          worst = max(worst, difference)

      # The switch is reached as often as the roll-in policy reaches it.
      visits = np.ones(1)
      for table in tables[: switch + 1]:
        visits = (visits[:, None] * table).reshape(-1)
      np.testing.assert_allclose(
          visits, token_tree.Tree(policy[: switch + 1], None).response_probs(), atol=1e-12)
  assert worst > 0.1


def test_C34_only_prompts_of_one_label_are_dropped_after_merging_rounds():
  first = _data([0, 0, 1, 1, 2], [3] * 5, [0] * 5, [1, 1, 0, 1, 0])
  second = _data([0, 2, 3], [3] * 3, [0] * 3, [0, 0, 1])
  alone = first.without_constant_prompts()
  assert alone.rows.tolist() == [1, 1]
  both = value_data.join([first, second]).without_constant_prompts()
  assert both.rows.tolist() == [0, 0, 1, 1, 0] and both.targets.tolist() == [1, 1, 0, 1, 0]
  assert value_data.join([first, second]).of_solved_prompts().rows.tolist() == [0, 0, 1, 1, 0, 3]


def test_a_truncated_response_is_unfinished_for_any_reward():
  data = _data([0] * 4, [5] * 4, [0] * 4, [0, 1, 0, 1], [False, False, True, True]).classes()
  assert data.targets.tolist() == [
      return_heads.WRONG, return_heads.CORRECT, return_heads.UNFINISHED, return_heads.UNFINISHED]


def test_validation_problems_are_the_last_ones():
  data = _data(list(range(10)) * 2, [2] * 20, [0] * 20, [0] * 20)
  training, held_out = data.split(0.2)
  assert set(held_out.rows) == {8, 9} and set(training.rows) == set(range(8))
  assert len(data.split(0.0)[1]) == 0


def test_the_mask_of_a_batch_is_the_loss():
  batch = _data([7, 3], [4, 5], [1, 4], [1, 0]).batch(np.array([1, 0]))
  assert batch.rollouts.mask[:, 0].tolist() == [[0, 0, 0, 0, 1], [0, 1, 1, 1, 0]]
  assert batch.rollouts.prompts.tolist() == [[12, 13, 14, 15], [28, 29, 30, 31]]
  assert batch.rewards.tolist() == [[0], [1]] and batch.rollouts.lengths.tolist() == [[5], [4]]


def test_pairs_are_of_one_problem_and_use_each_response_once():
  data = _data([0, 0, 0, 1, 1, 2, 9, 9], [3] * 8, [1] * 8, [1, 0, 1, 0, 0, 1, 1, 0])
  pairs = value_data.pair(data, seed=0)
  assert len(pairs) == 2 and data.rows[pairs.right].tolist() == [0, 9]
  assert pairs.right[0] in (0, 2) and pairs.wrong.tolist() == [1, 7]
  batch = pairs.batch(np.array([1, 0]))
  assert batch.rewards.tolist() == [[1, 0], [1, 0]] and batch.rollouts.tokens.shape == (2, 2, 5)
  assert batch.rollouts.tokens[0].tolist() == data.tokens[[6, 7]].tolist()
  training, held_out = pairs.split(0.1)
  assert len(training) == len(held_out) == 1 and held_out.wrong.tolist() == [7]
  assert pairs.fingerprint != training.fingerprint


def test_responses_of_another_process_are_recognised():
  one, other = _data([0, 1], [2, 2], [0, 0], [0, 1]), _data([0, 1], [2, 2], [0, 0], [0, 0])
  one.check(one.fingerprint)
  assert one.fingerprint != other.fingerprint
  with pytest.raises(ValueError, match='was trained on the responses .*; give another --workdir'):
    one.check(other.fingerprint)
