"""Evaluation: its numbers recomputed, resumption to the bit, one-line errors."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
from absl import flags

from experiments.convert import __main__ as convert
from experiments.evaluate import __main__ as evaluate_main
from experiments.evaluate import config as evaluate_config
from jaxrl_llm import types
from jaxrl_llm.data import chat_templates, tokenizers
from jaxrl_llm.evaluation import majority
from jaxrl_llm.runs import command_line, voting_rules
from jaxrl_llm.tasks import arithmetic, chat, countdown, gsm8k, jsonl
from jaxrl_llm.training import metrics
from tests.experiments import tiny
from tests.runs import records_test
from tests.system import running

CONFIGS = tiny.REPOSITORY / 'experiments' / 'configs'
TEMPLATE = '{% for m in messages %}{{ m.content }}=={% endfor %}'


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
  return running.Runner(tmp_path_factory.mktemp('compiled'))


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
  """Shares samplers between runs of equal configs, as compiling dominates the time."""
  monkeypatch.setattr(evaluate_main, '_samplers', _shared_samplers)


_SAMPLERS, _MADE = evaluate_main._samplers, {}


def _shared_samplers(setup):
  config = setup.config
  key = repr((config.num_samples, config.temperature, config.greedy, config.mesh, config.stops()))
  if key not in _MADE:
    _MADE[key] = _SAMPLERS(setup)
  return _MADE[key]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Problems, and a checkpoint with few tokens whose samples are sometimes right and stop."""
  folder = tmp_path_factory.mktemp('evaluate')
  tiny.write_checkpoint(folder / 'policy', characters='012=', template=TEMPLATE)
  rows = [{'prompt': f'{i % 3}={i % 2}', 'answer': i % 3} for i in range(11)]
  rows[4]['prompt'] = '012' * 4  # Too long.
  (folder / 'problems.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return folder


def arguments(folder, *more):
  return [
      f'--config={CONFIGS / "evaluate_jsonl.py"}', f'--config.data_dir={folder}',
      '--config.task.files=problems.jsonl', f'--config.policy_init_from={folder / "policy"}',
      '--config.task.reward=exact', '--config.chat_template=none',
      '--config.task.max_prompt_tokens=8',
      '--config.task.max_response_tokens=4', '--config.num_samples=5', '--config.batch_size=4',
      *more,
  ]


ON_EIGHT = ('--config.mesh.data=2', '--config.mesh.fsdp=2', '--config.mesh.tensor=2')


def run(folder, workdir, *more):
  """Runs in this process, on all eight devices."""
  return tiny.run(evaluate_main.main, *arguments(folder, *ON_EIGHT, f'--workdir={workdir}', *more),
                  experiment='evaluate')


def numbers(workdir):
  """Entries of results.json that are equal in two runs of one config."""
  return {name: value for name, value in json.loads((workdir / 'results.json').read_text()).items()
          if name.startswith(('eval/', 'sampled_tokens')) or name in ('policy', 'data')}


@pytest.fixture(scope='module')
def whole(folder, tmp_path_factory):
  """An uninterrupted run. Copy it before you change it."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(evaluate_main, '_samplers', _shared_samplers)
    assert run(folder, workdir) == 0
  return workdir


def test_the_numbers_are_those_of_the_responses(whole, folder):
  results, (first, *records) = numbers(whole), metrics.read_jsonl(whole / 'responses.jsonl')
  assert first['policy'] == results['policy'] and len(records) == 10
  assert [record['id'] for record in records] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
  assert (results['eval/problems'], results['eval/left_out'], results['eval/samples']) == (10, 1, 5)

  right = np.array([
      [answer == response and not cut for response, cut in zip(
          record['samples']['responses'], record['samples']['truncated'])]
      for record in records for answer in [record['answer']]])
  assert 0 < right.mean() < 1  # Otherwise this test would see little.
  assert results['eval/pass@1'] == pytest.approx(right.mean())
  assert results['eval/pass@1_se'] == pytest.approx(
      right.mean(axis=1).std(ddof=1) / np.sqrt(len(records)))

  any_of_two = [np.mean([row[i] | row[j] for i in range(5) for j in range(i)]) for row in right]
  assert results['eval/pass@2'] == pytest.approx(np.mean(any_of_two))
  texts = [[None if cut else text for text, cut in zip(
      record['samples']['responses'], record['samples']['truncated'])] for record in records]
  votes = np.array([majority.group_answers(row) for row in texts])
  assert results['eval/maj@4'] == pytest.approx(majority.majority_at_k(votes, right, k=4).mean())
  assert {name for name in results if '@' in name and not name.endswith('_se')} == {
      'eval/pass@1', 'eval/pass@2', 'eval/pass@4', 'eval/pass@5', 'eval/maj@2', 'eval/maj@4',
      'eval/maj@5'}

  # Of all samples: whether any is right, and the plain vote.
  assert results['eval/pass@5'] == right.any(axis=1).mean()
  assert results['eval/maj@5'] == pytest.approx(majority.majority_at_k(votes, right, k=5).mean())

  greedy = [record['greedy'] for record in records]
  assert results['eval/greedy_accuracy'] == np.mean(
      [g['responses'][0] == r['answer'] and not g['truncated'][0]
       for g, r in zip(greedy, records)])

  lengths = [record['samples']['lengths'] for record in records]
  assert results['eval/length'] == np.mean(lengths)
  assert results['eval/truncated'] == np.mean([r['samples']['truncated'] for r in records]) > 0
  assert results['sampled_tokens'] == np.sum(lengths) + sum(g['lengths'][0] for g in greedy)

  table = (whole / 'table.md').read_text()
  assert 'pass@4 (%)' in table and 'maj@4 (%)' in table and '±' in table


@pytest.mark.parametrize('part', [0.0, 0.3, 0.62, 0.999])
def test_a_killed_evaluation_resumes_to_the_same_results(folder, whole, tmp_path, part):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  (workdir / 'results.json').unlink()
  content = (workdir / 'responses.jsonl').read_bytes()
  (workdir / 'responses.jsonl').write_bytes(content[: int(part * len(content))])
  assert run(folder, workdir) == 0
  assert (workdir / 'responses.jsonl').read_bytes() == content
  assert numbers(workdir) == numbers(whole)


def test_a_run_killed_on_one_device_ends_with_the_numbers_of_eight(folder, whole, runner, tmp_path):
  workdir = tmp_path / 'run'
  done = runner.finish(
      workdir, *arguments(folder), experiment='evaluate', die=['responses.jsonl', 7])
  assert done.returncode == -signal.SIGKILL, done.stderr
  assert running.num_lines(workdir / 'responses.jsonl') == 6
  assert not (workdir / 'responses.jsonl').read_bytes().endswith(b'\n')
  done = runner.finish(workdir, *arguments(folder), experiment='evaluate')
  assert done.returncode == 0, done.stderr
  assert numbers(workdir) == numbers(whole)
  assert 'policy from' in done.stdout and str(workdir / 'results.json') in done.stdout


def test_a_complete_run_is_reported(folder, whole, capsys):
  assert run(folder, whole) == 0
  error_text = capsys.readouterr().out
  assert 'This run is complete' in error_text and '| pass@1 (%)' in error_text


def test_prompts_in_a_chat_template(folder, tmp_path):
  assert run(folder, tmp_path / 'run', '--config.chat_template=auto', '--config.system=2') == 0
  _, first, *_ = metrics.read_jsonl(tmp_path / 'run' / 'responses.jsonl')
  assert first['prompt'] == '2==0=0=='


SHOTS = [{'prompt': '2=1', 'response': '2'}, {'question': '0=1', 'answer': ' 0'},
         {'prompt': '1=2', 'response': '1'}]
ANSWERED = [f'Question: {question}\nAnswer: {answer}\n\n'
            for question, answer in (('2=1', '2'), ('0=1', '0'), ('1=2', '1'))]


def _task(directory, **changes):
  """The task of a run with shots of a file, and its config."""
  (directory / 'shots.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in SHOTS))
  config = evaluate_config.EvaluatePolicy(
      data_dir=str(directory), policy_init_from='x',
      **{'num_shots': 2, 'shots_file': 'shots.jsonl', **changes})
  tokenizer = tokenizers.CharacterTokenizer('012= ')
  examples = [{'id': i, 'prompt': f'{i}=', 'answer': str(i)} for i in range(3)]
  return config, types.Task(
      name='toy', tokenizer=tokenizer, demonstrations=[
          {'id': i, 'prompt': f'{i}=9', 'response': f'\n{i}'} for i in range(9)],
      train=[], evaluation=examples, reward_fn=None, lenient_reward_fn=None, max_prompt_tokens=99,
      max_response_tokens=4)


def test_shots_in_the_text_of_a_prompt(tmp_path):
  prompts = lambda **changes: [
      example['prompt'] for example in
      (lambda config, task: config.used(task).evaluation)(*_task(tmp_path, **changes))]
  assert prompts(num_shots=0, shots_file='') == ['0=', '1=', '2=']
  assert prompts(num_shots=0, shots_file='', prompt_format='question_answer') == [
      f'Question: {i}=\nAnswer:' for i in range(3)]
  assert prompts() == [f'2=1\n2\n\n0=1 0\n\n{i}=' for i in range(3)]
  assert prompts(prompt_format='question_answer', num_shots=3) == [
      f'{"".join(ANSWERED)}Question: {i}=\nAnswer:' for i in range(3)]

  # Of the training split by the seed: distinct, the same for all problems.
  of_seed = [prompts(num_shots=4, shots_file='', seed=seed) for seed in (0, 0, 1)]
  assert of_seed[0] == of_seed[1] != of_seed[2]
  shots = {prompt.rpartition('\n\n')[0] for prompt in of_seed[0]}
  assert len(shots) == 1 and len({*shots.pop().split('\n\n')}) == 4


def test_shots_as_turns(tmp_path):
  config, task = _task(
      tmp_path, shots_as_turns=True, chat_template='chatml', prompt_format='question_answer')
  task = config.used(task)
  assert task.demonstrations == []
  template = chat_templates.ChatTemplate(
      '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}')
  task = dataclasses.replace(task, tokenizer=tokenizers.CharacterTokenizer(
      ''.join(map(chr, range(32, 127))) + '\n'))
  first = chat.with_template(task, template, system='S').evaluation[0]
  assert first['prompt'] == (
      '<system>S<user>Question: 2=1\nAnswer:<assistant>2<user>Question: 0=1\nAnswer:<assistant>0'
      '<user>Question: 0=\nAnswer:')
  assert task.tokenizer.decode(first['prompt_ids']) == first['prompt']


@pytest.mark.parametrize(('changes', 'line'), [
    ({'num_shots': 4}, 'config.num_shots must be at most 3, the number of'),
    ({'num_shots': 10, 'shots_file': ''}, 'at most 9, the number of the demonstrations of toy'),
    ({'shots_file': 'absent.jsonl'}, 'absent.jsonl'),
])
def test_shots_that_are_missing(tmp_path, changes, line):
  config, task = _task(tmp_path, **changes)
  with pytest.raises(ValueError, match=line):
    config.used(task)


def test_shots_that_cannot_be_used(tmp_path):
  config, task = _task(tmp_path)
  for row, line in (
      ({'prompt': '1=', 'response': '1'}, "must not be a held-out problem, got '1='"),
      ({'prompt': '1=', 'response': ' '}, "line 2: a shot needs the texts 'prompt' and 'response'"),
  ):
    rows = [SHOTS[0], row]
    (tmp_path / 'shots.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    with pytest.raises(ValueError, match=line):
      config.used(task)


def test_gsm8k_with_a_shot_of_its_training_split(tmp_path, data_dir):
  tiny.write_checkpoint(tmp_path / 'policy', num_layers=1)
  assert tiny.run(
      evaluate_main.main, f'--config={CONFIGS / "evaluate_gsm8k.py"}:five_shot',
      f'--workdir={tmp_path / "run"}', f'--config.data_dir={data_dir / "gsm8k"}',
      f'--config.policy_init_from={tmp_path / "policy"}', '--config.num_shots=1',
      '--config.shots_file=train.jsonl', '--config.task.num_evaluation=8',
      '--config.task.max_prompt_tokens=1800',
      '--config.task.max_response_tokens=4', '--config.model.max_length=2048',
      '--config.batch_size=8', experiment='evaluate') == 0

  _, *records = metrics.read_jsonl(tmp_path / 'run' / 'responses.jsonl')
  beginnings = set()
  for record in records:
    shot, question = record['prompt'].split('\n\nQuestion: ')
    beginnings.add(shot)
    assert question.endswith('?\nAnswer:') or question.endswith('.\nAnswer:')
  (shot,) = beginnings
  assert shot.startswith('Question: ') and '\nAnswer: ' in shot and '<<' in shot
  assert shot.splitlines()[-1].startswith('#### ')
  assert numbers(tmp_path / 'run')['eval/lenient_accuracy'] >= 0


def test_a_stop_string_ends_responses(folder, whole, tmp_path):
  assert run(folder, tmp_path / 'run', '--config.stop_strings=2,01') == 0
  results = [metrics.read_jsonl(path / 'responses.jsonl')[1:] for path in (whole, tmp_path / 'run')]
  stopped = 0
  for before, after in zip(*results, strict=True):
    for kind in ('samples', 'greedy'):
      for i, text in enumerate(before[kind]['responses']):
        cut = min((text.find(stop) for stop in ('2', '01') if stop in text), default=None)
        assert after[kind]['responses'][i] == text[:cut]
        if cut is not None:
          stopped += 1
          assert not after[kind]['truncated'][i]
          assert after[kind]['lengths'][i] <= before[kind]['lengths'][i]
  assert stopped > 3


def test_a_converted_policy_gives_the_same_numbers(folder, whole, tmp_path):
  values = flags.FlagValues()
  convert.define_flags(values)
  values(['convert', f'--from={folder / "policy"}', f'--to={tmp_path / "ours"}'])
  convert.main(values)
  assert run(folder, tmp_path / 'run', f'--config.policy_init_from={tmp_path / "ours"}',
             f'--config.task.tokenizer_dir={folder / "policy"}') == 0
  assert numbers(tmp_path / 'run') == numbers(whole)


def test_temperature_0_is_greedy_decoding(folder, whole, tmp_path):
  assert run(folder, tmp_path / 'run', '--config.temperature=0', '--config.num_samples=1') == 0
  resumed, expected = numbers(tmp_path / 'run'), numbers(whole)
  assert resumed['eval/pass@1'] == expected['eval/greedy_accuracy']
  assert resumed['sampled_tokens'] == expected['sampled_tokens/greedy']
  assert not any('greedy' in name or 'maj' in name for name in resumed)


def test_countdown_by_a_policy_of_this_project(tmp_path, data_dir):
  tiny.write_ours(tmp_path / 'policy', countdown.ALPHABET, num_layers=1)
  assert tiny.run(
      evaluate_main.main, f'--config={CONFIGS / "evaluate_countdown.py"}',
      f'--workdir={tmp_path / "run"}', f'--config.data_dir={data_dir / "countdown"}',
      f'--config.policy_init_from={tmp_path / "policy"}', '--config.num_samples=2',
      '--config.greedy=false', experiment='evaluate') == 0
  assert numbers(tmp_path / 'run')['eval/problems'] == 256


@pytest.mark.parametrize(('task', 'response', 'answer', 'equal'), [
    (gsm8k.Config(), 'so 3 + 4 = 7\n#### 1,000', '1,000', '1000'),
    (gsm8k.Config(), 'so 7', None, ''),
    (jsonl.Config(reward='math'), 'so it is 0.5', '0.5', r'\frac{1}{2}'),
    (jsonl.Config(reward='math_strict'), 'so it is 0.5', None, ''),
    (jsonl.Config(reward='exact'), ' 0.5', '0.5', '0.5'),
    (jsonl.Config(reward='countdown'), '<answer>(1+2)*3</answer>', '(1+2)*3', '(1+2)*3'),
    (jsonl.Config(reward='rewards:score'), ' 0.5\n', '0.5', '0.5'),
    (countdown.Config(), '<answer>(1+2)*3</answer>', '(1+2)*3', '(1+2)*3'),
    (arithmetic.Config(), '12', '12', '12'),
])
def test_votes_of_responses(task, response, answer, equal):
  voting = voting_rules.of_task(task)
  assert voting.answer(response) == answer
  if answer is not None:
    assert majority.group_answers([answer, equal, 'something else'], voting.same) == [0, 0, 1]


@pytest.mark.parametrize('name', ['gsm8k', 'math', 'countdown', 'jsonl'])
def test_the_configs_are_valid(name, tmp_path):
  config = command_line.load_config(str(CONFIGS / f'evaluate_{name}.py'))
  with pytest.raises(ValueError, match='policy_init_from must be the directory of a policy'):
    config.validate()
  config.policy_init_from = str(tmp_path)
  config.validate()
  assert voting_rules.of_task(config.task).answer('') in (None, '')


@pytest.mark.parametrize(('more', 'line'), [
    (['--config.policy_init_from=nowhere'], "policy_init_from: not a directory: 'nowhere'"),
    (['--config.task.files='], 'a file of problems is needed'),
    (['--config.task.files=nothing.jsonl'], 'nothing.jsonl'),
    (['--config.task.answer_field=truth'], "line 1: the key 'truth' is missing"),
    (['--config.task.max_prompt_tokens=200'], 'max_length must be at least 204'),
    (['--config.num_samples=0'], 'config.num_samples must be at least 1, got 0'),
    (['--config.num_samples=1001'], 'config.num_samples must be at most 1000, got 1001'),
    (['--config.temperature=0'], 'config.num_samples must be 1 with temperature 0, got 5'),
    (['--config.num_shots=-1'], 'config.num_shots must be at least 0, got -1'),
    (['--config.num_shots=1'], 'config.num_shots must be at most 0, the number of the demonstr'),
    (['--config.shots_file=x'], "config.shots_file must be '' without config.num_shots, got 'x'"),
    (['--config.num_shots=1', '--config.shots_as_turns=true'],
     "config.shots_as_turns must be False with chat_template 'none', got True"),
    (['--config.prompt_format=x'], 'prompt_format must be one of plain, question_answer'),
    (['--config.top_p=0'], 'config.top_p must be positive and finite, got 0.0'),
    (['--config.batch_size=3'], 'got 3 prompts (config.batch_size)'),
    (['--config.system=Be brief.'],
     "config.system must be '' with chat_template 'none', got 'Be brief.'"),
    (['--config.chat_template=absent'], "'auto', 'chatml' or the path of one, got 'absent'"),
    (['--config.model.width=5'], 'config.model.width is 5, and 16 in'),
])
def test_bad_input_is_one_line(folder, tmp_path, capsys, more, line):
  assert run(folder, tmp_path / 'run', *more) == 2
  error_text = capsys.readouterr().err.strip()
  assert error_text.startswith('evaluate: error: ') and line in error_text
  assert '\n' not in error_text
  assert not (tmp_path / 'run').exists()


def test_unsuitable_tokenizers_are_one_line_errors(folder, tmp_path, capsys):
  def error(policy, *more):
    assert run(folder, tmp_path / 'run', f'--config.policy_init_from={policy}', *more) == 2
    error_text = capsys.readouterr().err.strip()
    assert '\n' not in error_text
    return error_text

  bare = tmp_path / 'bare'
  shutil.copytree(folder / 'policy', bare)
  (bare / 'tokenizer.json').unlink()
  assert 'no tokenizer in' in error(bare) and not (tmp_path / 'run').exists()
  (bare / 'tokenizer.json').write_text('{')
  assert 'is not a complete tokenizer.json' in error(bare)
  tiny.write_tokenizer(tmp_path / 'large', characters='0123456789')
  error_text = error(bare, f'--config.task.tokenizer_dir={tmp_path / "large"}')
  assert 'has 11 ids and the embedding only 6 rows' in error_text
  ours = tmp_path / 'ours'
  tiny.write_ours(ours, '012=')
  error_text = error(ours, f'--config.task.tokenizer_dir={folder / "policy"}')
  assert f'the tokenizer of {ours}' in error_text and 'is not that of problems' in error_text


@pytest.mark.parametrize('change, message', [
    (lambda first: {'policy': 'another'}, "policy is 'another' there"),
    (lambda first: {'run': {**first['run'], 'config': {**first['run']['config'], 'seed': 7}}},
     'run.config.seed is 7 there, 0 here'),
])
def test_responses_of_another_policy_or_seed_are_refused(
    folder, whole, tmp_path, capsys, change, message):
  workdir = tmp_path / 'run'
  shutil.copytree(whole, workdir)
  (workdir / 'results.json').unlink()
  path = workdir / 'responses.jsonl'
  records_test.rewrite(path, **change(metrics.read_jsonl(path)[0]))
  lines = path.read_text()
  assert run(folder, workdir) == 2
  assert f'holds samples of something else ({message}' in capsys.readouterr().err
  assert path.read_text() == lines
