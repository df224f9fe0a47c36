"""The exact-match reward, by hand."""

import numpy as np
import pytest

from jaxrl_llm.rewards import exact_match


def _score(responses, truncated, answers):
  examples = [{'answer': answer} for answer in answers]
  return exact_match.exact_match(
      [''] * len(responses), responses, np.array(truncated), examples
  )


def test_right_wrong_truncated_and_spaced():
  scores = _score(
      ['12', '13', '12', ' 12', 'x', '012'],
      [False, False, True, False, False, False],
      ['12', '12', '12', '12', 'x', '12'],
  )
  np.testing.assert_array_equal(scores, [1, 0, 0, 0, 1, 0])
  assert scores.dtype == np.float32


def test_nothing_gives_an_empty_array():
  assert _score([], [], []).shape == (0,)


def test_lengths_that_differ_are_an_error():
  with pytest.raises(ValueError, match='got 1, 1 and 2'):
    _score(['1'], [False], ['1', '2'])


class _EqualToAll:
  """Compares equal to every response."""

  def __eq__(self, other):
    return True

  __hash__ = None


@pytest.mark.parametrize(('response', 'answer'), [
    ('', ''), (' ', ' '), ('\n', '\n'), ('', None), ('nan', float('nan')), ('12', 12),
    ('12', _EqualToAll()), ('12', np.array(['12'])),
])
def test_nothing_matches_an_empty_answer_or_one_that_is_not_a_text(response, answer):
  np.testing.assert_array_equal(_score([response], [False], [answer]), [0])
