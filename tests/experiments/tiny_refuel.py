"""Tiny checkpoints, short conversations, and configs that run REFUEL on them in seconds."""

import json

from experiments.refuel import batches as refuel_batches
from experiments.refuel import config as refuel_config
from experiments.refuel import dialogues as refuel_dialogues
from experiments.refuel import users as refuel_users
from jaxrl_llm.algorithms import refuel
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import reward_config
from jaxrl_llm.training import optim
from tests.experiments import tiny, tiny_rebel

# Tokens, which are bytes: the template adds 18 to a message.
PROMPT, MESSAGE, REPLY, TURNS = 28, 28, 6, 3
# Few, so that replies stop now and then; the last one encodes a space.
CHARACTERS = '0123456789?.[]SayMoreWhyAndRustiG\u0120'
SHAPE = {'num_layers': 1, 'width': 16, 'mlp_width': 16, 'max_length': 160, 'tie_embeddings': False}


def conversation(number, turns):
  """Messages of a conversation with `turns` turns."""
  asked = [f'Say {number}.', f'More {number}?', f'Why {number}?', 'And?', 'So?'][:turns]
  return [
      {'role': role, 'content': text} for question in asked
      for role, text in (('user', question), ('assistant', f'R{number}'))
  ]


def write(folder, rows=18, characters=CHARACTERS):
  """FOLDER/policy, FOLDER/reward, and conversations of one to three turns."""
  config = tiny.write_checkpoint(
      folder / 'policy', template=tiny.TEMPLATE, characters=sorted(set(characters or '')) or None,
      **SHAPE)
  tiny_rebel.write_reward(folder / 'reward', config, tokenizer_from=folder / 'policy')
  made = [{'messages': conversation(i, 1 + i % 3)} for i in range(rows)]
  (folder / 'talks.json').write_text(json.dumps(made))
  return folder


def task(**options):
  return refuel_dialogues.Config(**{
      'files': 'talks.json', 'num_evaluation': 4, 'num_turns': TURNS, 'max_prompt_tokens': PROMPT,
      'max_message_tokens': MESSAGE, 'max_response_tokens': REPLY, **options})


def config(folder, **changes):
  """A run whose user asks the questions of the data."""
  algorithm = refuel.Config(**{
      'kl_coefficient': 0.01, 'head_chunk': 0, 'num_epochs': 2, **changes.pop('algorithm', {})})
  return refuel_config.Refuel(**{
      'data_dir': str(folder), 'task': task(), 'sft': config_lib.SftConfig(steps=0),
      'policy_init_from': str(folder / 'policy'), 'reward_init_from': str(folder / 'reward'),
      'evaluation': reward_config.RebelEvaluation(
          num_samples=2, temperature=1.0, batch_size=8, num_shown=1, head_chunk=0),
      'algorithm': algorithm, 'optimizer': optim.OptimizerConfig(learning_rate=1e-2),
      'batch_size': 8, 'save_every': 2, 'steps': 3, 'eval_every': 2, 'widths': 'fixed',
      **changes})


def simulated(folder, user, **changes):
  """A run with a simulated user, the filters of setting one, and batches in two parts."""
  return config(folder, **{
      'user': user, 'law': 'one', 'task': task(first_only=True), 'max_tokens': 90,
      'batch_size': 16, 'rollout_batch_size': 8, 'algorithm': {'kl_coefficient': 0.0},
      'reward': reward_config.RewardConfig(eos_check='off', missing_stop_penalty=0.0),
      'evaluation': reward_config.RebelEvaluation(
          temperature=1.0, batch_size=8, num_shown=2, head_chunk=0),
      **changes})


def run(main, config, workdir):
  """Runs the program's main on a config, as its command would."""
  tiny_rebel.run(main, config, workdir, experiment='refuel')


def share_programs(patch):
  """As `tiny_rebel.share_programs`, with the samplers of replies and messages."""
  tiny_rebel.share_programs(patch)
  made = {}

  def shared(holder, key):
    original = holder.sampler

    def sampler(*arguments, **options):
      setting = holder.__name__, repr(key(*arguments, **options))
      if setting not in made:
        made[setting] = original(*arguments, **options)
      return made[setting]

    patch.setattr(holder, 'sampler', sampler)

  shared(refuel_batches, lambda setup, *, temperature: (
      setup.model, setup.finetuning.lora, setup.finetuning.last_layers, temperature,
      setup.task.max_reply_tokens))
  shared(refuel_users, lambda network, tokenizer, config: (tokenizer.fingerprint, config))
