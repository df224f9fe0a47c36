"""The toy dialogue: its user's messages, the rewards of dialogues, and the scores of styles."""

import dataclasses
import re

import numpy as np
import pytest

from jaxrl_llm.data import sft_batches
from jaxrl_llm.tasks import dialogue
from jaxrl_llm.types import STOPPED, TRUNCATED

RULES = dialogue.Rules()
GOAL = 24  # 'ce'


def _say(turns, *, rules=RULES, goal=GOAL, heard=True, cut=()):
  """A dialogue in which the assistant says `turns` (texts); (dialogue, the user's messages)."""
  talk, everyone, sent = rules.start(np.array([goal])), np.ones(1, bool), []
  for turn, text in enumerate(turns):
    ids = [*rules.tokenizer.encode(text), *([] if turn in cut else [1])]
    talk = talk.with_replies(
        turn, everyone, tokens=np.array([ids + [0] * (4 - len(ids))]), lengths=[len(ids)],
        log_probs=np.zeros((1, 4)), stop_reason=[TRUNCATED if turn in cut else STOPPED])
    if turn + 1 < rules.num_turns:
      listens = heard if isinstance(heard, bool) else heard[turn]
      seeds = np.array([0 if listens else 2**32 - 1], np.uint32)
      message = rules.user(dataclasses.replace(talk, seeds=seeds))
      sent.append(rules.tokenizer.decode(message[0]))
      talk = talk.with_messages(turn, everyone, message)
  return talk, sent


@pytest.mark.parametrize('turns, expected', [
    (['?', 'ce', 'cb', 'ce', 'ce'], ['=ce', '+ce', '-', '-']),  # From then on terse.
    (['?', '~?', 'ce', '?', 'ce'], ['=ce', '=ce', '+ce', '-']),  # The fourth turn is too late.
    (['ce', '?', '?'], ['+ce', '=ce', '-']),
    (['cb', '?', 'ce'], ['-', '-', '-']), (['ec'], ['-']), (['c'], ['-']), ([''], ['-']),
    (['~ce', 'c~e', 'cee', '~~?'], ['+ce', '+ce', '-', '-']), (['??'], ['-']), (['=ce'], ['-']),
])
def test_messages_of_the_user(turns, expected):
  assert _say(turns)[1] == expected


def test_a_user_that_does_not_listen_changes_nothing():
  assert _say(['?', '?', 'ce'], heard=[False, True, True])[1] == ['.', '=ce', '+ce']
  assert _say(['cb', '?', 'cb', '?'], heard=[False, True, False, True])[1] == ['.', '=ce', '.', '-']
  assert _say(['cb', 'ce', 'ce'], heard=[True, False, True])[1] == ['-', '.', '-']
  # The noise that decides it is that of the message, which the caller sets.
  talk, _ = _say(['?'])
  seeds = np.array([0, 2**31, int(0.9 * 2**32) - 1, int(0.9 * 2**32) + 1, 2**32 - 1], np.uint32)
  five = dataclasses.replace(talk[np.zeros(5, int)].cut(1), seeds=seeds)
  sent = [RULES.tokenizer.decode(ids) for ids in RULES.user(five)]
  assert sent == ['=ce', '=ce', '=ce', '.', '.']


def test_a_truncated_reply_has_no_content():
  talk, sent = _say(['?', 'ce', 'ceee'], cut=(0, 1, 2))
  assert sent == ['-', '-', '-']
  assert RULES.rewards(talk)[0, :3].tolist() == [0, 0, 0]
  assert not RULES.asks(talk).any()


@pytest.mark.parametrize('turns, expected', [
    (['?', 'ce', 'cb', '~ce', '~~?'], [0, 1, 0.2, 0.98, 0]),
    (['cb', 'cb', 'cb', 'cb', 'cb'], [0.4, 0.3, 0.2, 0.1, 0.0]),
    (['~~~', 'cc', 'ca', 'ce', 'ec'], [0, 0.24, 0.14, 0.94, 0]),  # Fillers cost for good.
    (['be', 'c', 'cee', '', 'ce'], [0, 0, 0, 0, 1]),
    (['c?', '~cb', '?c', 'c+', 'ce'], [0, 0.28, 0, 0, 0.98]),
])
def test_rewards_by_hand(turns, expected):
  talk, _ = _say(turns)
  np.testing.assert_allclose(RULES.rewards(talk)[0], expected, atol=1e-6)
  assert RULES.asks(talk)[0].tolist() == [turn.strip('~') == '?' for turn in turns]


def test_rewards_of_missing_replies_are_nan():
  talk, _ = _say(['?', 'ce', 'ce'])
  rewards = RULES.rewards(talk)
  assert rewards.dtype == np.float32 and np.isnan(rewards[0, 3:]).all()
  np.testing.assert_array_equal(rewards[0, :3], [0, 1, 1])
  stacked = talk[np.zeros((2, 3), int)]
  np.testing.assert_array_equal(RULES.rewards(stacked), np.broadcast_to(rewards, (2, 3, 5)))


def _documented():
  """Name of a style -> its documented scores, turn by turn."""
  lines = re.findall(r'^  (\w+(?: once)?) {2,}.*?((?:\s+\d\.\d{3}){5})$', dialogue.__doc__, re.M)
  return {name: [float(number) for number in numbers.split()] for name, numbers in lines}


@pytest.mark.parametrize('name, style', [
    ('perfect', dialogue.PERFECT), ('initial', dialogue.INITIAL), ('at once', dialogue.AT_ONCE),
    ('behaviour', dialogue.BEHAVIOUR)])
def test_styles_score_as_documented(name, style):
  talk = RULES.simulate(np.arange(20_000), style, seed=1)
  rewards = RULES.rewards(talk)
  errors = rewards.std(axis=0) / len(rewards) ** 0.5
  assert (abs(rewards.mean(axis=0) - _documented()[name]) <= 4 * errors + 6e-4).all()


def test_the_scores_by_hand():
  scores = _documented()
  # Asked in both early turns, answered unless the user was inattentive twice; a last guess is right
  # in a tenth of the cases.
  knows = 1 - 0.1**2
  np.testing.assert_allclose(scores['perfect'][:2], [0, 0.9], atol=6e-4)
  assert abs(scores['perfect'][2] - (knows + 0.01 * (0.1 + 0.9 * 0.2))) < 6e-4
  # At once: right in a tenth, half right otherwise.
  assert abs(scores['at once'][0] - (0.1 + 0.9 * 0.4)) < 6e-4 + 1e-3
  # Behaviour: five fillers by the last turn, and every guess is blind.
  np.testing.assert_allclose(scores['behaviour'][4], 0.1 * 0.9, atol=1e-3)
  # The point of the task: at once is better in the first turn, and nearly worthless in the last.
  assert scores['at once'][0] > scores['perfect'][0] + 0.4
  assert scores['perfect'][4] > scores['at once'][4] + 0.7
  assert scores['perfect'][4] > scores['initial'][4] + 0.7


def test_asking_first_pays_under_both_distributions_of_the_turn():
  talk = RULES.simulate(np.arange(40_000), dialogue.INITIAL, seed=2)
  rewards, asked = RULES.rewards(talk), RULES.asks(talk)[:, 0]
  gain = rewards[asked].mean(axis=0) - rewards[~asked].mean(axis=0)
  one = np.array([1 / (end + 1) for end in range(5)])  # P(L | h = 0) of setting one.
  assert abs(gain[4] - 0.56) < 0.04 and abs(np.average(gain, weights=one) - 0.06) < 0.03
  assert 0.13 < asked.mean() < 0.17 and RULES.asks(talk)[:, 2:].sum() == 0


def test_the_task_is_a_function_of_its_seed():
  config = dialogue.Config(num_demonstrations=150, num_train=230, num_evaluation=70)
  task, again, other = (config.make(seed) for seed in (3, 3, 4))
  assert task.train == again.train != other.train
  np.testing.assert_array_equal(task.offline.replies, again.offline.replies)

  parts = [task.demonstrations, task.train, task.evaluation]
  assert [len(part) for part in parts] == [150, 230, 70]
  ids = [example['id'] for part in parts for example in part]
  assert len(set(ids)) == 450
  for part in parts:  # Every goal equally often, up to one.
    counts = np.bincount([example['id'] % 100 for example in part], minlength=100)
    assert counts.max() - counts.min() <= 1
  for example in task.evaluation:
    assert example['prompt'] == '!' + example['answer'][0] and len(example['answer']) == 2
    start = RULES.start(np.array([example['id']]))
    assert task.tokenizer.decode(start.prompts[0]) == example['prompt']
    assert task.tokenizer.decode(RULES.goals(example['id'])) == example['answer']


def test_demonstrations_are_whole_dialogues_for_fine_tuning():
  task = dialogue.Config(num_demonstrations=300, num_train=10, num_evaluation=0).make(0)
  assert task.tokenizer.vocab_size == 19 and task.max_response_tokens == 32
  encoded = sft_batches.encode_demonstrations(task)
  assert len(encoded) == 300 and encoded.lengths.max() <= 34
  speaker = np.array([task.tokenizer.decode([i]) for i in range(19)])
  asked = 0
  for example in task.demonstrations:
    ids, sent = example['ids'], example['loss_mask']
    assert len(ids) == len(sent) and not sent[:2].any() and sent[2]
    assert (ids[sent] == 1).sum() == 5 and not (ids[~sent] == 1).any()  # Five stop tokens.
    assert not np.isin(speaker[ids[sent]], ['=', '+', '.', '-', '!']).any()
    assert task.tokenizer.decode(ids).startswith(example['prompt'])
    asked += speaker[ids[2]] == '?' or speaker[ids[3]] == '?'
  assert 20 < asked < 75


def test_the_offline_dialogues_are_the_behaviours_on_the_training_prompts():
  task = dialogue.Config(num_demonstrations=0, num_train=300, num_evaluation=0).make(0)
  offline = task.offline
  assert offline.example_ids.tolist() == [example['id'] for example in task.train]
  assert not task.rules.asks(offline).any() and (offline.num_replies == 5).all()
  assert (offline.replies[..., 0] == task.rules.sign('~')).all()
  assert np.isnan(offline.continuation().log_probs).any()
  terse = (offline.messages[..., -1, 0] == task.rules.sign('-')).mean()
  assert terse > 0.7


@pytest.mark.parametrize('field, value, rule', [
    ('num_turns', 0, 'at least 1'), ('num_turns', 17, 'at most 16'),
    ('num_symbols', 13, 'at most 12'), ('attention', 1.5, 'in .0, 1.'), ('half', -0.1, 'in .0, 1.'),
    ('filler_cost', 2, 'in .0, 1.'), ('early_turns', -1, 'at least 0')])
def test_bad_rules(field, value, rule):
  with pytest.raises(ValueError, match=f'{field} must be {rule}, got {value}'):
    dataclasses.replace(RULES, **{field: value}).validate()


@pytest.mark.parametrize('field, value, rule', [
    ('num_train', -1, 'at least 0'), ('num_evaluation', 1_000_001, 'at most 1000000'),
    ('num_turns', 17, 'at most 16')])
def test_bad_fields(field, value, rule):
  with pytest.raises(ValueError, match=f'config.task.{field} must be {rule}, got {value}'):
    dialogue.Config(**{field: value}).make(0)


def test_other_worlds():
  one = dialogue.Config(num_demonstrations=20, num_train=20, num_evaluation=5, num_turns=1).make(0)
  assert one.name == 'dialogue_1_turns' and one.max_response_tokens == 4
  assert one.rules.rewards(one.offline).shape == (20, 1)
  assert dialogue.Rules(num_symbols=3).tokenizer.vocab_size == 12
  # A user that always listens, and one that never does.
  for attention, signs in ((1.0, '-=+'), (0.0, '.')):
    rules = dialogue.Rules(attention=attention)
    talk = rules.simulate(np.arange(200), dialogue.INITIAL, seed=0)
    heard = set(rules.tokenizer.decode(talk.messages[..., 0].reshape(-1)))
    assert heard == set(signs)
  free = dialogue.Rules(filler_cost=0.0).simulate(np.arange(50), dialogue.BEHAVIOUR, seed=0)
  first = dialogue.Rules(filler_cost=0.0).rewards(free)[:, 0]
  assert set(np.round(first, 3)) <= {np.float32(0.4), np.float32(1.0)}
