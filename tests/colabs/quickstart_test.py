"""The quickstart notebook: its committed outputs, and the same code run again in fast mode."""

import base64
import os
import pathlib
import re
import tempfile

import nbclient
import nbformat
import pytest
from jupyter_client import manager

from tests import compiler_flags

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PATH = REPOSITORY / 'colabs' / '00_quickstart.ipynb'


def _code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def _text(cell):
  """All text in a cell's outputs."""
  texts = []
  for output in cell.outputs:
    texts.append(output.get('text', ''))
    texts += [value for kind, value in output.get('data', {}).items() if kind.startswith('text/')]
  return '\n'.join(texts)


def _figures(notebook):
  return [
      base64.b64decode(output['data']['image/png'])
      for cell in _code_cells(notebook) for output in cell.outputs
      if 'image/png' in output.get('data', {})
  ]


def _kinds(notebook):
  """Types, streams and formats of the outputs of each code cell."""
  return {
      cell.id: [(output.output_type, output.get('name'), sorted(output.get('data', {})))
                for output in cell.outputs]
      for cell in _code_cells(notebook)
  }


@pytest.fixture(scope='module')
def committed():
  return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope='module')
def executed():
  """The committed cells, run with few steps on tiny data in a kernel of this environment."""
  notebook = nbformat.read(PATH, as_version=4)
  for cell in _code_cells(notebook):
    cell.outputs, cell.execution_count = [], None

  # The kernel uses sockets in a directory instead of the network; their paths must be short.
  with tempfile.TemporaryDirectory() as folder:
    environment = {
        **os.environ, 'JAXRL_LLM_FAST': '1', 'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': str(REPOSITORY), 'TMPDIR': folder, 'IPYTHONDIR': f'{folder}/ipython',
        # Compile quickly, and let pip fail rather than download.
        'XLA_FLAGS': compiler_flags.FAST_COMPILE, 'PIP_NO_INDEX': '1',
    }
    kernel = manager.AsyncKernelManager(
        kernel_name='python3', transport='ipc', connection_file=f'{folder}/kernel.json')
    client = nbclient.NotebookClient(
        notebook, km=kernel, timeout=300, resources={'metadata': {'path': str(PATH.parent)}})
    client.execute(env=environment)

  return notebook


def test_committed_is_valid_and_was_run_from_top_to_bottom(committed):
  nbformat.validate(committed)
  assert (committed.nbformat, committed.nbformat_minor) == (4, 5)
  ids = [cell.id for cell in committed.cells]
  assert len(set(ids)) == len(ids)
  counts = [cell.execution_count for cell in _code_cells(committed)]
  assert counts == list(range(1, len(counts) + 1))
  assert all(cell.source.count('\n') < 60 for cell in committed.cells)


def test_committed_outputs_are_clean(committed):
  for cell in _code_cells(committed):
    for output in cell.outputs:
      assert output.output_type != 'error' and output.get('name') != 'stderr', cell.id
    text = _text(cell)
    assert not re.search(r'(?<![\w.])/(\w+/)+\w+', text), f'{cell.id} shows a path'
    assert 'arning' not in text, cell.id
    assert cell.outputs or cell.id == 'install'


def test_committed_figures_are_small_pngs(committed):
  figures = _figures(committed)
  assert len(figures) == 2
  for figure in figures:
    assert figure.startswith(b'\x89PNG\r\n') and len(figure) < 100_000


def test_the_committed_run_has_learned(committed):
  table = next(_text(cell) for cell in _code_cells(committed) if cell.id == 'results')
  scores = {
      name: float(greedy)
      for name, greedy in re.findall(r'\| (\w+) +\|[^|]+\| ([\d.]+) +\|', table)
  }
  assert scores['reference'] < 60 and scores['trained'] > 95


def test_A10_the_loss_cell_shows_the_hand_computed_loss(committed, executed):
  # Residuals 0.001 * (-2) - (1 - 0.477229) and 0.001 * 0.5 - (0 - 0.293513): mean square 0.180914.
  for notebook in (committed, executed):
    text = next(_text(cell) for cell in _code_cells(notebook) if cell.id == 'loss')
    assert text.strip() == 'V* = 0.477229, 0.293513   loss = 0.180914'


def test_runs_again_and_shows_the_same_kinds_of_output(committed, executed):
  # Outputs that are missing from the committed notebook, or no longer produced, are detected.
  assert _kinds(executed) == _kinds(committed)
  assert len(_figures(executed)) == 2
