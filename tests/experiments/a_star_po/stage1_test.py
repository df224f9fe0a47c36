"""V* is looked up by example id, and prompts without any success can be left out."""

import numpy as np
import pytest

from experiments.a_star_po import stage1 as stage1_lib
from jaxrl_llm.algorithms import a_star_po
from jaxrl_llm.runs import references

VALUES = stage1_lib.ReferenceValues(
    ids=np.array([30, 10, 20]),
    rewards=np.array([[0, 0], [1, 0], [1, 1]], np.float32),
    values=np.array([0.0, 0.6, 1.0], np.float32),
    tokens=12,
)
# Two prompts with one text: each keeps its own answer and V*.
EXAMPLES = [
    {'id': 10, 'prompt': 'x', 'answer': '1'}, {'id': 20, 'prompt': 'x', 'answer': '2'},
    {'id': 30, 'prompt': 'y', 'answer': '3'}, {'id': 40, 'prompt': 'never sampled', 'answer': '4'},
]


def test_A12_values_are_looked_up_by_id_in_any_order():
  np.testing.assert_array_equal(
      VALUES.of(np.array([20, 30, 10, 20])), np.float32([1.0, 0.0, 0.6, 1.0]))


@pytest.mark.parametrize('missing', [5, 25, 99])
def test_a_prompt_without_a_value_is_an_error_not_zero(missing):
  with pytest.raises(ValueError, match=f'no V\\* was estimated for example {missing}'):
    VALUES.of(np.array([10, missing]))


def test_A13_the_filter_selects_the_prompts_with_a_success():
  keep = lambda **options: [
      e['id'] for e in VALUES.trainable(EXAMPLES, a_star_po.Config(**options))]
  assert keep() == [10, 20, 30]
  assert keep(filter_all_wrong=True) == [10, 20]


def test_a_filter_that_leaves_no_prompt_is_an_error():
  hopeless = VALUES._replace(rewards=np.zeros((3, 2), np.float32))
  with pytest.raises(ValueError, match='filter_all_wrong left no prompt'):
    hopeless.trainable(EXAMPLES, a_star_po.Config(filter_all_wrong=True))


def test_a_checkpoint_of_another_reference_is_refused():
  reference = references.Reference(lambda policy: {}, {}, 'aaaa', 0, 0, 0.0)
  reference.check('aaaa')
  with pytest.raises(ValueError, match='bbbb'):
    reference.check('bbbb')
