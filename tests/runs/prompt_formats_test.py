"""The chat template of a run: the ids of `generate`, the line about it, and the end of replies."""

import json
import types

import pytest
from absl import flags

from experiments.evaluate import config as evaluate_config
from experiments.generate import __main__ as generate
from jaxrl_llm.data import batching, sft_batches, tokenizers
from jaxrl_llm.runs import checkpoint_sources, reward_config
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.tasks import arithmetic, chat, jsonl, preferences, word_problems
from tests.experiments import tiny

_ROWS = [{'prompt': f'What is {i} + 4?', 'answer': str(i + 4)} for i in range(6)]
# Without its stop tokens: a base model's tokenizer with a template whose replies end with another.
_BASE = tiny.TEMPLATE.replace('{{ eos_token }}', '<|turn|>')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Problems, and checkpoints with and without a template."""
  folder = tmp_path_factory.mktemp('formats')
  (folder / 'sums.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in _ROWS))
  tiny.write_checkpoint(folder / 'instruct', template=tiny.TEMPLATE)
  tiny.write_checkpoint(folder / 'plain')
  tiny.write_checkpoint(folder / 'base', template=_BASE, more=('<|turn|>',))
  return folder


def _make(folder, name, kind=config_lib.PolicyConfig, task=None, **fields):
  """Returns the task of a run from a checkpoint; '' is a run from scratch."""
  directory = str(folder / name) if name else ''
  task = task or jsonl.Config(
      files=str(folder / 'sums.jsonl'), evaluation_fraction=0.3, max_prompt_tokens=80,
      max_response_tokens=40, tokenizer_dir='' if name else str(folder / 'instruct'))
  config = kind(policy_init_from=directory, task=task, **fields)
  source = checkpoint_sources.read(directory, field='') if name else None
  return setup_lib.make_task(config, source)


def _generated(folder, name, prompt, *more):
  """Returns the ids of a prompt in `generate`."""
  values = flags.FlagValues()
  generate.define_flags(values)
  values(['generate', f'--policy={folder / name}', f'--prompt={prompt}', *more])
  tokenizer = tokenizers.load_tokenizer(folder / name)
  return generate.read_prompts(values, tokenizer, str(folder / name))[0].ids


@pytest.mark.parametrize(('name', 'system'), [
    ('instruct', ''), ('instruct', 'Be brief.'), ('plain', ''), ('base', '')])
def test_prompts_are_those_of_generate(folder, name, system):
  expected = {
      row['prompt']: _generated(folder, name, row['prompt'], f'--system={system}')
      for row in _ROWS}
  for kind in (config_lib.PolicyConfig, config_lib.ReinforcementConfig,
               evaluate_config.EvaluatePolicy):
    task = _make(folder, name, kind, system=system)
    for example in task.evaluation + task.train:
      question = example.get('question', example['prompt'])
      assert batching.prompt_ids(example, task.tokenizer) == expected[question]

  task = _make(folder, name, system=system)
  sequences = sft_batches.encode_demonstrations(task)
  assert len(sequences) == len(task.demonstrations) == 4
  for example, start in zip(task.demonstrations, sequences.starts):
    prompt = expected[example['prompt']]
    assert list(sequences.tokens[start : start + len(prompt)]) == prompt


def test_one_line_says_which_format_it_is(folder, capsys):
  def printed(name, **fields):
    _make(folder, name, **fields)
    return capsys.readouterr().out

  instruct = folder / 'instruct'
  assert printed('instruct') == f'prompts are in the chat template of {instruct}\n'
  assert printed('instruct', chat_template='none') == (
      "prompts are plain text: config.chat_template is 'none'\n")
  assert printed('plain') == (
      f'prompts are plain text: no chat template in {folder / "plain"}\n')
  assert printed('base') == (
      f'prompts are in the chat template of {folder / "base"}, and <|turn|> ends a reply\n')
  # From scratch, a template would be foreign to the policy.
  assert printed('') == ''
  _generated(folder, 'plain', 'x')
  assert capsys.readouterr().err == '[no chat template: prompts are plain text]\n'


def test_the_token_that_ends_a_reply_stops_a_response(folder):
  task = _make(folder, 'base')
  assert [task.tokenizer.token(token) for token in task.tokenizer.stop_ids] == [
      tiny.STOP, '<|turn|>']
  for example in task.demonstrations:
    assert task.tokenizer.token(int(example['ids'][-1])) == '<|turn|>'
  assert len(_make(folder, 'instruct').tokenizer.stop_ids) == 1
  assert len(_make(folder, 'base', chat_template='none').tokenizer.stop_ids) == 1


def test_a_template_without_an_end_of_replies(folder):
  tokenizer = tokenizers.load_tokenizer(folder / 'instruct')
  of = lambda source: chat.end_of_reply(
      types.SimpleNamespace(source=source, variables={}, today=''), tokenizer)
  assert tokenizer.token(of(tiny.TEMPLATE.replace('eos_token', f"'{tiny.STOP}'"))) == tiny.STOP
  assert of('{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}'
            '{% if add_generation_prompt %}[assistant]{% endif %}') is None
  # Nothing would be learned: it opens replies as it never renders them.
  assert of('{% for m in messages %}{{ m.content }}{% endfor %}'
            '{% if add_generation_prompt %}<think>{% endif %}') is None


def test_a_loaded_policy_needs_no_demonstrations_and_an_evaluation_no_training_problems(folder):
  task = _make(folder, 'instruct', config_lib.ReinforcementConfig)
  assert task.train and not task.demonstrations
  task = _make(folder, 'instruct', evaluate_config.EvaluatePolicy)
  assert task.evaluation and not (task.train or task.demonstrations)
  everything = jsonl.Config(files=str(folder / 'sums.jsonl'))
  with pytest.raises(ValueError, match=r'sums has no training problems \(config.task\)'):
    _make(folder, 'instruct', config_lib.ReinforcementConfig, everything)


def test_prompts_that_a_template_makes_too_long_are_counted(folder):
  task = jsonl.Config(
      files=str(folder / 'sums.jsonl'), num_evaluation=2, max_prompt_tokens=20)
  with pytest.raises(ValueError, match='no prompt of 4 has at most 20 tokens in the chat template'):
    _make(folder, 'instruct', task=task)
  assert len(_make(folder, 'plain', task=task).train) == 4


@pytest.mark.parametrize(('name', 'fields', 'message'), [
    ('plain', {'chat_template': 'chatmI'}, r"path of one, got 'chatmI' \(config.chat_template;"),
    ('plain', {'system': 'S'}, "config.system must be '' without a chat template .*, got 'S'"),
    ('', {'chat_template': 'chatml', 'task': arithmetic.Config()},
     "chat template 'chatml' needs the directory of a tokenizer"),
])
def test_bad_input_is_one_line(folder, name, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    _make(folder, name, **fields)
  assert '\n' not in str(error.value)


def test_tasks_with_a_template_of_their_own(folder):
  for kind, task in ((config_lib.PolicyConfig, chat.Config()),
                     (reward_config.LearnedReward, preferences.Config())):
    for field, value in (('chat_template', 'none'), ('system', 'S')):
      config = kind(policy_init_from=str(folder), task=task, **{field: value})
      with pytest.raises(ValueError, match=f'config.{field} must be .* with config.task.template'):
        config.validate()
  with pytest.raises(ValueError, match="config.system must be '' with chat_template 'none'"):
    config_lib.PolicyConfig(
        policy_init_from=str(folder), chat_template='none', system='S').validate()


@pytest.mark.parametrize(('name', 'fine_tunes', 'is_read'), [
    ('instruct', False, False), ('instruct', True, True), ('', False, True)])
def test_a_loaded_policy_is_only_fine_tuned_by_programs_that_do_nothing_else(
    folder, name, fine_tunes, is_read):
  directory = str(folder / name) if name else ''
  config = config_lib.ReinforcementConfig(
      policy_init_from=directory, task=word_problems.Config(
          num_demonstrations=4, num_train=4, num_evaluation=4, max_prompt_tokens=200,
          tokenizer_dir='' if name else str(folder / 'instruct')))
  source = checkpoint_sources.read(directory, field='') if name else None
  task = setup_lib.make_task(config, source, fine_tunes=fine_tunes)
  assert len(task.demonstrations) == (4 if is_read else 0)
