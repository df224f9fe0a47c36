"""Figures: number and layout of panels, files written."""

import numpy as np
import pytest

from jaxrl_llm.runs import figures

PNG = b'\x89PNG'


@pytest.mark.parametrize('panels, inches', [
    (1, (5.2, 4.4)), (3, (15.6, 4.4)), (4, (10.4, 8.8)), (5, (15.6, 8.8))])
def test_panels_fill_rows_of_three_or_two(tmp_path, panels, inches):
  path = tmp_path / 'figures' / 'a.png'
  with figures.figure(path, panels, title='title') as axes:
    assert len(axes) == panels
    np.testing.assert_allclose(axes[0].figure.get_size_inches(), inches)
    assert len(axes[0].figure.axes) == panels  # Unused cells of the grid are removed.
  assert path.read_bytes().startswith(PNG)


def test_a_figure_that_fails_writes_no_file(tmp_path):
  with pytest.raises(KeyError), figures.figure(tmp_path / 'a.png'):
    raise KeyError
  assert not list(tmp_path.iterdir())


def test_curves_are_saved_with_their_data(tmp_path):
  numbers = np.arange(3.0)
  figures.many_curves(
      tmp_path / 'curves.png', {'a': (numbers, numbers, numbers), 'b': (numbers[:1],) * 3},
      title='title', x='x', y='y')
  figures.learning_curve(
      tmp_path / 'learning.png', numbers, {'score': numbers / 2}, title='title', stage1_tokens=1)
  figures.value_figure(
      tmp_path / 'value.png', numbers / 2, numbers, (numbers, numbers), title='title',
      samples=(8, 64))

  for name, lines in (('curves', 5), ('learning', 4), ('value', 4)):
    assert (tmp_path / f'{name}.png').read_bytes().startswith(PNG)
    assert len((tmp_path / f'{name}.csv').read_text().splitlines()) == lines
