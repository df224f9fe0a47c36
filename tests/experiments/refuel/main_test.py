"""REFUEL end to end on tiny checkpoints: fixed and simulated users; resumed to the bit."""

import contextlib
import io
import json

import pytest

from experiments.refuel import __main__ as refuel_main
from experiments.refuel import batches as refuel_batches
from experiments.refuel import config as refuel_config
from jaxrl_llm.training import metrics
from tests.experiments import tiny, tiny_rebel, tiny_refuel


@pytest.fixture(scope='module', autouse=True)
def compiled_once():
  with pytest.MonkeyPatch.context() as patch:
    tiny_refuel.share_programs(patch)
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny_refuel.write(tmp_path_factory.mktemp('refuel'))


@pytest.fixture(scope='module')
def fixed(tmp_path_factory):
  """The published settings of HH on small checkpoints: rows of its schema, bfloat16, four blocks.

  Returns:
    (the folder, what was printed).
  """
  folder = tmp_path_factory.mktemp('hh')
  model = tiny.write_checkpoint(folder / 'policy', template=tiny.TEMPLATE, **{
      **tiny_refuel.SHAPE, 'num_layers': 5})
  tiny_rebel.write_reward(folder / 'reward', model, tokenizer_from=folder / 'policy')
  for name, first in (('train', 0), ('test', 50)):
    rows = [{'prompt': 'Say', 'chosen': tiny_refuel.conversation(first + i, 1 + i % 2)}
            for i in range(10)]
    rows.append({'prompt': 'Say', 'chosen': rows[0]['chosen'][:1]})
    (folder / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))

  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    status = tiny.run(
        refuel_main.main, f'--config={tiny.REPOSITORY}/experiments/configs/refuel_two.py:hh',
        f'--workdir={folder / "run"}', f'--config.data_dir={folder}',
        f'--config.policy_init_from={folder / "policy"}',
        f'--config.reward_init_from={folder / "reward"}', '--config.task.num_evaluation=8',
        '--config.task.num_turns=2', '--config.task.max_prompt_tokens=28',
        '--config.task.max_message_tokens=28', '--config.task.max_response_tokens=6',
        '--config.steps=2', '--config.eval_every=2', '--config.batch_size=8',
        '--config.reward.eos_check=off', '--config.reward.missing_stop_penalty=0.0',
        '--config.algorithm.num_micro_batches=1', '--config.optimizer.learning_rate=1e-2',
        '--config.evaluation.batch_size=8', '--config.evaluation.temperature=1.0',
        '--config.evaluation.num_samples=2', '--config.evaluation.num_shown=2',
        '--config.widths=fixed', experiment='refuel')

  assert status == 0, output.getvalue()
  return folder, output.getvalue()


# --- The questions of the data.


def test_metrics_and_results_of_the_published_setting(fixed):
  folder, output = fixed
  assert output.count('1 of 11 rows of') == 2  # A row without a reply, in each file.
  outcome = tiny_rebel.outcome(folder / 'run')
  results, records = outcome['results'], outcome['metrics.jsonl']
  assert [record['step'] for record in records] == [0, 1, 2]
  assert [r['step'] for r in records if 'eval/score' in r] == [0, 2]

  for record in records[:2]:
    assert record['train/initial_log_ratio'] < 1e-2  # In bfloat16.
    assert record['train/sampler_gap'] < 0.05 and record['train/dropped'] == 0
    assert record['train/grad_norm'] > 0 and 1 <= record['rollout/num_turns'] <= 2

  # Before any step the policy is its reference, and after the last one it is what is left.
  assert records[0]['eval/kl_to_reference'] == 0 < records[-1]['eval/kl_to_reference']
  names = ['score', 'kl_to_reference', 'length', 'truncated', 'decoded_score']
  for name in names + [f'turn_{turn}/score' for turn in (1, 2)]:
    assert results[f'eval/trained/{name}'] == records[-1][f'eval/{name}']
    assert results[f'eval/reference/{name}'] == records[0][f'eval/{name}']
  assert results['eval/dialogues/turn_1'] == results['eval/prompts'] == 8
  assert 0 < results['eval/dialogues/turn_2'] < 8

  for turn in (1, 2):
    assert 0 <= results[f'eval/trained/turn_{turn}/win_rate'] <= 1
  assert results['left_out/turns'] == 0 and results['fingerprint/user'] == ''

  tokens = [record['rollout/sampled_tokens'] for record in records[:2]]
  assert results['sampled_tokens'] == tokens[-1] <= 2 * 8 * 2 * 2 * 6
  assert tokens == sorted(tokens) and tokens[0] >= 8 * 2

  moved = tiny_rebel.moved(*map(
      tiny_rebel.load_params, (folder / 'policy', folder / 'run' / 'trained')), layers=5)
  assert moved and not any(name.startswith(('layers/0/', 'embedder/')) for name in moved)

  figures, table = folder / 'run' / 'figures', (folder / 'run' / 'table.md').read_text()
  assert len((figures / 'score.csv').read_text().splitlines()) == 3
  assert len((figures / 'turns.csv').read_text().splitlines()) == 5
  assert all((figures / f'{name}.png').stat().st_size > 1_000 for name in ('score', 'turns'))
  assert '| trained ' in table and '| up to turn |' in table


def test_samples_are_whole_dialogues(fixed):
  shown = metrics.read_jsonl(fixed[0] / 'run' / 'samples.jsonl')
  assert [(line['step'], line['kind']) for line in shown] == [
      (step, kind) for step in (0, 2) for kind in ('sampled', 'decoded') for _ in range(2)]
  for line in shown:
    roles = [message['role'] for message in line['messages']]
    count = len(line['turn_scores'])
    assert roles == ['user', 'assistant'] * count and len(line['stop_reasons']) == count
    assert line['score'] == line['turn_scores'][-1]
    asked = [m['content'] for m in line['messages'] if m['role'] == 'user']
    number = int(asked[0].removeprefix('Say ').removesuffix('.'))
    talk = tiny_refuel.conversation(number, count)
    assert asked == [m['content'] for m in talk if m['role'] == 'user']


def test_dialogues_on_the_questions_of_MT_bench(data_dir, tmp_path, capsys):
  """The policy is loaded: the data have no replies to fine-tune one on."""
  model = tiny.write_checkpoint(tmp_path / 'policy', template=tiny.TEMPLATE, **{
      **tiny_refuel.SHAPE, 'max_length': 512})
  tiny_rebel.write_reward(tmp_path / 'reward', model, tokenizer_from=tmp_path / 'policy')
  task = tiny_refuel.task(
      files='question.jsonl', key='turns', num_turns=2, max_prompt_tokens=220,
      max_message_tokens=160)
  config = tiny_refuel.config(
      tmp_path, task=task, data_dir=str(data_dir / 'mt_bench'), steps=1, save_every=1)
  tiny_refuel.run(refuel_main.main, config, tmp_path / 'run')
  outcome = tiny_rebel.outcome(tmp_path / 'run')
  assert outcome['results']['eval/dialogues/turn_2'] == 4
  assert outcome['metrics.jsonl'][0]['rollout/num_turns'] == 2

  asked = [json.loads(line)['turns'] for line in (
      data_dir / 'mt_bench' / 'question.jsonl').read_text().splitlines()]
  for line in outcome['samples.jsonl']:
    questions = [message['content'] for message in line['messages'][::2]]
    assert [text.strip() for text in asked[line['id']]] == questions and len(questions) == 2
  status = _command(
      data_dir / 'mt_bench', tmp_path / 'drawn', '--config.task.files=question.jsonl',
      '--config.task.key=turns', '--config.policy_init_from=', '--config.task.template=chatml',
      '--config.task.max_prompt_tokens=96', '--config.task.max_message_tokens=64',
      f'--config.reward_init_from={tmp_path / "reward"}', '--config.train_last_layers=1',
      config='refuel_two')
  errors = capsys.readouterr().err
  assert status == 2 and 'question.jsonl (config.task.files) has no replies' in errors, errors
  assert 'Traceback' not in errors


# --- A user that is simulated.


def test_the_reference_plays_the_user_and_a_killed_run_resumes(folder, tmp_path):
  user = refuel_config.UserConfig(
      kind='model', max_tokens=6, mark='a', instruction='Say')
  config = tiny_refuel.simulated(
      folder, user, steps=2, save_every=1, eval_every=5, seed=3,
      task=tiny_refuel.task(first_only=True, num_turns=2))
  tiny_refuel.run(refuel_main.main, config, tmp_path / 'whole')
  whole = tiny_rebel.outcome(tmp_path / 'whole')
  results = whole['results']
  assert [results[f'eval/dialogues/turn_{turn}'] for turn in (1, 2)] == [4, 4]

  records = whole['metrics.jsonl']
  assert results['seed'] == 3 and [r['step'] for r in records if 'eval/score' in r] == [0, 2]
  # With the distribution 'two' each dialogue would have both turns.
  assert all(1 < record['rollout/num_turns'] < 2 for record in records[:2])
  assert all(record['rollout/reward'] == record['rollout/score'] for record in records[:2])

  saved = {int(path.name) for path in (tmp_path / 'whole' / 'checkpoints' / 'refuel').iterdir()}
  assert {1, 2} <= saved
  assert all(record['train/initial_log_ratio'] < 1e-5 for record in records[:2])
  assert {'rollout/left_out/too_long', 'rollout/left_out/equal_reply'} <= records[0].keys()

  shares = [record['rollout/unmarked'] for record in records[:2]]
  shares += [records[0]['eval/unmarked'], results['eval/trained/unmarked']]
  assert all(0 <= share <= 1 for share in shares) and 0 < sum(shares) < 4

  # The user replies to the transcript instead of reading a list of questions.
  messages = [m['content'] for line in whole['samples.jsonl'] for m in line['messages'][2::2]]
  assert len(set(messages)) > 1 and not {text[:4] for text in messages} & {'More', 'Why '}

  with pytest.MonkeyPatch.context() as patch:  # Within the second iteration.
    patch.setattr(
        refuel_batches.BatchBuilder, 'score',
        tiny_rebel.dying(refuel_batches.BatchBuilder.score, 2))
    with pytest.raises(tiny_rebel.Killed):
      tiny_refuel.run(refuel_main.main, config, tmp_path / 'killed')

  tiny_refuel.run(refuel_main.main, config, tmp_path / 'killed')
  killed = tiny_rebel.outcome(tmp_path / 'killed')
  assert killed.keys() == whole.keys()

  for name, expected in whole.items():
    assert killed[name] == expected, name


# --- Bad input is one line, with status 2.


def _command(folder, tmp_path, *arguments, config):
  """Runs the command of a user in this process; returns its status."""
  return tiny.run(
      refuel_main.main, f'--config={tiny.REPOSITORY / "experiments" / "configs" / config}.py',
      f'--workdir={tmp_path / "run"}', f'--config.data_dir={folder}',
      f'--config.policy_init_from={folder / "policy"}',
      f'--config.reward_init_from={folder / "reward"}', '--config.task.files=talks.json',
      '--config.task.num_evaluation=4', '--config.task.template=auto',
      '--config.task.max_prompt_tokens=28', '--config.task.max_message_tokens=28',
      '--config.task.max_response_tokens=4', '--config.train_last_layers=0', *arguments,
      experiment='refuel')


@pytest.mark.parametrize('config, arguments, words', [
    ('refuel_two', ['--config.reward_init_from='], 'must be the directory of a reward model'),
    ('refuel_two', ['--config.task.max_prompt_tokens=99'], 'max_length must be at least'),
    ('refuel_two', ['--config.task.files=missing.json'], 'cannot read'),
    ('refuel_one', ['--config.user.max_tokens=99'], "the user's input and output"),
    ('refuel_one', ['--config.user.kind=endpoint'], 'config.user.url must be given'),
])
def test_bad_input_is_one_line(folder, tmp_path, capsys, config, arguments, words):
  status = _command(folder, tmp_path, *arguments, config=config)
  errors = capsys.readouterr().err
  lines = [line for line in errors.splitlines() if 'error' in line]
  assert status == 2 and len(lines) == 1 and 'Traceback' not in errors, errors
  assert words in lines[0]
  assert not (tmp_path / 'run' / 'results.json').exists()


def test_an_unreachable_server_is_one_line(folder, tmp_path, capsys):
  status = _command(
      folder, tmp_path, '--config.user.kind=endpoint', '--config.user.url=http://localhost:1/v1',
      '--config.user.model=big', '--config.user.mark=Ask:', '--config.user.retries=0',
      '--config.steps=1', '--config.batch_size=8', '--config.evaluation.batch_size=8',
      '--config.widths=fixed', config='refuel_one')
  errors = capsys.readouterr().err
  lines = [line for line in errors.splitlines() if 'error' in line]
  assert status == 2 and len(lines) == 1, errors
  assert lines[0].startswith('refuel: error: http://localhost:1/v1/chat/completions: ')
