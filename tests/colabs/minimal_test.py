"""colabs/a_star_po_minimal.py is short and runs."""

import pathlib
import re
import runpy

PATH = pathlib.Path(__file__).resolve().parents[2] / 'colabs' / 'a_star_po_minimal.py'


def test_it_runs_in_its_fast_form(monkeypatch, capsys):
  monkeypatch.setenv('JAXRL_LLM_FAST', '1')
  names = runpy.run_path(str(PATH))
  assert re.search(r'reference 0\.\d+, trained 0\.\d+', capsys.readouterr().out)
  assert float(names['loss']) > 0  # The last regression step had a residual to fit.


def test_it_is_one_short_file():
  assert len(PATH.read_text().splitlines()) <= 120
