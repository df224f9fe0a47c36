"""The command lines of the campaign's programs are valid."""

import pytest

from experiments.faults import inputs, targets
from jaxrl_llm.runs import command_line


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('inputs')
  inputs.write(folder)
  return folder


@pytest.mark.parametrize('target', targets.TARGETS, ids=lambda target: target.name)
def test_the_program_takes_the_config_of_its_target(target, folder):
  config = f'experiments/configs/{target.config}'
  command_line.parse([target.program, *target.arguments(folder)], config)
