"""The worked example of docs/adding_a_task.md, as written, with a tiny checkpoint."""

import json
import re
import shlex

import pytest

from experiments.a_star_po import __main__ as a_star_po
from jaxrl_llm.runs import checkpoint_sources, command_line
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import metrics
from tests.experiments import tiny

PAGE = (tiny.REPOSITORY / 'docs' / 'adding_a_task.md').read_text()
# Samples of one size: few programs are compiled.
TINY = [
    '--config.task.max_response_tokens=6', '--config.algorithm.samples_per_prompt=2',
    '--config.evaluation.num_samples=1', '--config.evaluation.batch_size=8',
    '--config.evaluation.control_temperature=1',
    '--config.batch_size=8', '--config.algorithm.num_micro_batches=1',
    '--config.stage1_batch_size=8', '--config.steps=1',
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """The working directory of the page's reader, with its files and a checkpoint in DIR."""
  (rows,) = re.findall('```json\n(.*?)```', PAGE, re.DOTALL)
  (tmp_path / 'sums.jsonl').write_text(rows)
  (code,) = re.findall('```python\n(.*?)```', PAGE, re.DOTALL)
  (tmp_path / 'my_rewards.py').write_text(code)
  tiny.write_checkpoint(
      tmp_path / 'DIR', template=tiny.TEMPLATE, num_layers=1, max_length=256)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def _arguments(program):
  """Returns the arguments of the page's command."""
  (line,) = re.findall(f'^python -m experiments.{program} (.*)$', PAGE, re.MULTILINE)
  return [argument.replace('=experiments/', f'={tiny.REPOSITORY}/experiments/')
          for argument in shlex.split(line)]


@pytest.mark.parametrize(('program', 'sizes'), [
    ('evaluate', (0, 0, 10)), ('a_star_po', (0, 8, 2)), ('online_rl', (0, 8, 2)),
    ('sft', (8, 8, 2))])
def test_the_commands_make_the_task(folder, program, sizes):
  arguments = _arguments(program)
  spec, _ = command_line.split_config(arguments)
  config, _, _ = command_line.parse([program, *arguments], spec)
  source = checkpoint_sources.read(config.policy_init_from, field='config.policy_init_from')
  task = setup_lib.make_task(config, source)
  assert (len(task.demonstrations), len(task.train), len(task.evaluation)) == sizes
  assert all(example['prompt'].startswith(f'{tiny.START}[user]') for example in task.evaluation)
  right = ['The answer is {}.', '{}', '\\boxed{{{}}}']
  for text in right:
    assert all(task.reward_fn(
        [e['prompt'] for e in task.evaluation],
        [text.format(e['answer']) for e in task.evaluation],
        [False] * len(task.evaluation), task.evaluation) == 1)


@pytest.mark.programs
def test_a_star_po_trains_with_the_function_of_the_page(folder, capsys):
  (flag,) = re.findall('add `(--config.task.reward=.*?)`', PAGE)
  assert tiny.run(a_star_po.main, *_arguments('a_star_po'), flag, *TINY, '--workdir=run',
                  experiment='a_star_po') == 0
  assert 'prompts are in the chat template of DIR' in capsys.readouterr().out
  results = json.loads((folder / 'run' / 'results.json').read_text())
  assert results['stage1/prompts'] == 8 and (folder / 'run' / 'adapters').is_dir()
  shown = metrics.read_jsonl(folder / 'run' / 'samples.jsonl')
  assert all('[assistant]' in line['prompt'] for line in shown)

  # The data may not change in the middle of a run.
  (folder / 'run' / 'results.json').unlink()
  rows = (folder / 'sums.jsonl').read_text()
  (folder / 'sums.jsonl').write_text(rows.replace('7', '8', 1))
  assert tiny.run(a_star_po.main, *_arguments('a_star_po'), flag, *TINY, '--workdir=run',
                  experiment='a_star_po') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'error: the problems of config.task, or its own reward function, changed since' in line

  import my_rewards
  score = my_rewards.short_and_right
  example = {'answer': '7'}
  assert score('', 'He has 7.', example) == 1 and score('', 'x' * 300 + ' 7', example) == 0.5
  junk = ['', ' ', 'Tom has 3 apples and gets 4 more.', ' '.join(map(str, range(100))), '17', '7 8']
  assert not any(score('', text, example) for text in junk)
