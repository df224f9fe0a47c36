"""Which task `--config.task=FILE` makes, in each program."""

import json

import pytest

from experiments.arena import config as arena_config
from experiments.reward_model import config as reward_model_config
from jaxrl_llm.runs import command_line
from jaxrl_llm.tasks import chat, config, jsonl, preferences
from tests.experiments import tiny

SUM = {'prompt': 'What is 3 + 4?', 'answer': '7'}
PAIR = {'prompt': 'Hi', 'chosen': 'Hello', 'rejected': 'No'}
CHAT = {'messages': [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]}


@pytest.fixture
def parse(tmp_path):
  """Maps (name of a config, row of the file, arguments) to the parsed config."""

  def parse(name, row, *arguments):
    path = tmp_path / 'own.jsonl'
    path.write_text(json.dumps(row) + '\n')
    default = str(tiny.REPOSITORY / 'experiments' / 'configs' / f'{name}.py')
    return command_line.parse(
        ['program', *(argument.format(file=path, dir=tmp_path) for argument in arguments)],
        default)[0]

  return parse


@pytest.mark.parametrize(('name', 'row', 'kind', 'more'), [
    ('sft_arithmetic', SUM, jsonl.Config, []),
    ('sft_arithmetic', CHAT, chat.Config, []),
    ('sft_arithmetic', PAIR, preferences.Config, []),
    ('sft_arithmetic', {'instruction': 'Hi', 'output': 'Hello'}, chat.Config, []),
    ('sft_arithmetic', {'prompt': 'Hi', 'response': 'Hello'}, chat.Config, []),
    ('sft_arithmetic', SUM | {'response': 'It is 7.'}, jsonl.Config, []),
    ('a_star_po_arithmetic', SUM, jsonl.Config, []),
    ('a_star_po_own', SUM, jsonl.Config, ['--config.policy_init_from={dir}']),
    ('evaluate_gsm8k', SUM, jsonl.Config, ['--config.policy_init_from={dir}']),
    ('reward_model_demo', PAIR, preferences.Config, []),
    ('rebel_chat', PAIR, preferences.Config, ['--config.reward_init_from={dir}']),
])
def test_the_kind_of_task(parse, name, row, kind, more):
  # Fields of the new task may be given before it.
  made = parse(name, row, '--config.task.max_prompt_tokens=77', *more, '--config.task={file}')
  assert type(made.task) is kind and made.task.files.endswith('own.jsonl')
  assert made.task.max_prompt_tokens == 77
  assert parse(name, row, *more, '--config.task', '{file}').task.files == made.task.files


def test_limits_of_a_config_of_that_kind_stay_and_its_files_do_not(parse):
  made = parse('sft_own', SUM, '--config.task={file}', '--config.policy_init_from={dir}').task
  assert (made.max_response_tokens, made.evaluation_fraction) == (128, 0.1)
  made = parse('sft_chat', CHAT, '--config.task={file}').task
  assert (made.max_response_tokens, made.template, made.vocabulary) == (384, 'auto', 'auto')
  tldr = parse('reward_model_tldr', PAIR, '--config.task={file}').task
  assert (tldr.schema, tldr.evaluation_files, tldr.max_response_tokens) == (
      'conversations', '', 53)
  evaluated = parse(
      'evaluate_math', SUM, '--config.task={file}', '--config.policy_init_from={dir}').task
  assert evaluated == jsonl.math_config(files=evaluated.files, max_response_tokens=2048)


def test_what_is_held_out(parse):
  here = '--config.policy_init_from={dir}'
  fraction = lambda name: parse(name, SUM, '--config.task={file}', here).task.evaluation_fraction
  assert fraction('a_star_po_arithmetic') == fraction('sft_own') == 0.1
  assert fraction('evaluate_jsonl') == 0  # All are evaluated.


@pytest.mark.parametrize(('arguments', 'line'), [
    (['--config.task'], 'Missing value for flag --config.task'),
    (['--config.task=nothing.jsonl'], 'cannot read nothing.jsonl: No such file'),
    (['--config.task={file}', '--config.task.digits=3'], 'unknown field config.task.digits: '),
    (['--config.task.reward=math'], 'unknown field config.task.reward: '),
    (['--config.model={file}'], 'config.model has fields; set one of them'),
])
def test_bad_input_is_one_line(parse, arguments, line):
  with pytest.raises(ValueError) as error:
    parse('sft_arithmetic', SUM, *arguments)
  assert line in str(error.value) and '\n' not in str(error.value)


def test_the_arena_has_only_its_own_tasks(parse):
  with pytest.raises(ValueError, match='config.task must be one of arithmetic, summarisation'):
    parse('arena', SUM, '--config.task={file}')
  assert parse('arena', SUM, '--config.task=dialogue').task in arena_config.TASKS


def test_files_in_the_working_directory_need_no_data_dir(tmp_path, monkeypatch, data_dir):
  rows = [{'prompt': f'Say {i}', 'chosen': f'It is {i}.', 'rejected': 'No'} for i in range(4)]
  (tmp_path / 'pairs.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  monkeypatch.chdir(tmp_path)
  tokenizer = str(data_dir / 'tokenizers' / 'qwen2')
  options = dict(files='pairs.jsonl', num_evaluation=1, template='chatml', tokenizer_dir=tokenizer)
  task = preferences.Config(**options).make(0)
  assert len(task.train) == 3 and len(task.evaluation) == 1
  assert len(chat.Config(**options).make(0).demonstrations) == 3
  assert reward_model_config.RewardModel(task=preferences.Config(**options)).task.files

  for kind in (chat, preferences):
    with pytest.raises(ValueError, match='needs the directory of nothing.jsonl: --config.data_dir'):
      kind.Config(files='nothing.jsonl').make(0)
    with pytest.raises(ValueError, match=r'no tokenizer: give .*--config.policy_init_from=DIR'):
      kind.Config(files='pairs.jsonl', num_evaluation=1).make(0)
  with pytest.raises(ValueError, match='problems needs a tokenizer: give the directory of a pol'):
    jsonl.Config(files='pairs.jsonl').make(0, '', config.FROM_SCRATCH)
