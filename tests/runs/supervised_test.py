"""Fine-tuned parameters that later stages of a run depend on."""

import re
import types

import pytest

from jaxrl_llm.runs import supervised


def test_missing_parameters_that_later_checkpoints_were_trained_from_are_named(tmp_path):
  """Making them again would cut off the metrics that the later checkpoints continue."""
  setup = types.SimpleNamespace(run=types.SimpleNamespace(workdir=tmp_path))
  (tmp_path / 'checkpoints' / 'a_star_po' / '3').mkdir(parents=True)
  with pytest.raises(ValueError, match=re.escape(f'{tmp_path / "params"} is missing')) as error:
    supervised.finetune(setup, None)
  assert 'a_star_po was trained from it: restore it' in str(error.value)
  assert '\n' not in str(error.value)
