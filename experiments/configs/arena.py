"""The arena: all algorithms on addition, on summaries or in dialogue, five seeds.

These are not the papers' tables but their comparisons at small scale: networks of fewer than 0.2M
parameters, and one optimizer and one number of completions for every arm. Variants: none (all
algorithms); on summaries `:eta` (REBEL's step size) and `:overoptimisation` (no penalty); in
dialogue `:one_turn` (dialogues of one turn) and `:fixed_questions` (from a recorded user).

Learning rates are chosen by the sampled score of one run on seed 100, a held-out seed
(results/arena/tuning.csv).

  Addition: each arm's best of 1e-4, 3e-4 and 1e-3, and of 3e-5 or 3e-3 if the best was at an end.
  Dialogue: the best of the three for REFUEL (3e-4: within 0.002 of 1e-3, at less divergence) and
    for the online last-turn arms, whose rates the other prefixes reuse. Two of these arms are best
    at 1e-4, the lowest rate tried. For REFUEL in 1 to 4 iterations, η = 10 and 2 were tried.
  Summaries: a smaller sweep. REBEL's best of 3e-5 to 1e-3; the better of two for PPO, offline and
    online DPO (iterative DPO's is between them) and RLOO (shared by REINFORCE and GRPO); 3e-4
    alone for A*-PO.

The step-size and overoptimisation studies run three seeds. All else is shared: Adam, gradients
clipped to norm 1 (which affects REBEL, REFUEL and DPO most), and as many steps per batch as
published: 4 for REBEL and PPO, 1 for the others; in dialogue 2 for every arm.

Command: python -m experiments.arena --config.task=arithmetic|summarisation|dialogue
"""

import dataclasses

from experiments.arena import config as arena_config
from jaxrl_llm import tasks
from jaxrl_llm.algorithms import a_star_po, dpo, grpo, ppo, rebel, refuel, reinforce, rloo
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.training import optim

VARIANTS = ('eta', 'overoptimisation', 'one_turn', 'fixed_questions')

# Learning rate by task and arm.
LEARNING_RATES = {
    'arithmetic': dict(
        a_star_po=1e-3, rebel=1e-4, ppo=1e-3, grpo=3e-4, rloo_2=3e-4, rloo_4=3e-4, reinforce=1e-3,
        dpo=3e-5, iterative_dpo=3e-4, online_dpo=1e-3),
    'summarisation': dict(
        a_star_po=3e-4, rebel=1e-4, ppo=3e-4, grpo=3e-4, rloo_2=3e-4, rloo_4=3e-4, reinforce=3e-4,
        dpo=3e-5, iterative_dpo=1e-4, online_dpo=3e-4),
    'dialogue': dict(refuel=3e-4, rebel=1e-4, rloo=3e-4, dpo=1e-4),
}


def _arm(
    file: str, algorithm, learning_rate: float, *, kind=arena_config.ArmConfig, **options
) -> arena_config.ArmConfig:
  optimizer = optim.OptimizerConfig(
      name='adam', learning_rate=learning_rate, schedule='constant')
  return kind(file, algorithm, optimizer, **options)


def _all_arms(task: str):
  """Every algorithm, with a KL coefficient of 0.05 (A*-PO has its own weight for it)."""
  rates, kl = LEARNING_RATES[task], dict(kl_coefficient=0.05, temperature=1.0)

  def arm(name, file, algorithm, **options):
    return _arm(file, algorithm, rates[name], **options)

  # A learned reward is never simply wrong, so there is nothing to filter.
  filtered = {} if task == 'summarisation' else {'a_star_po_filtered': arm(
      'a_star_po', 'a_star_po', a_star_po.Config(filter_all_wrong=True))}
  return arena_config.arms(
      a_star_po=arm('a_star_po', 'a_star_po', a_star_po.Config()), **filtered,
      rebel=arm('rebel', 'rebel', rebel.Config(**kl)),
      ppo=arm('ppo', 'ppo', ppo.Config(**kl)),
      grpo=arm('grpo', 'grpo', grpo.Config(samples_per_prompt=8, **kl)),
      rloo_2=arm('rloo_2', 'rloo', rloo.Config(samples_per_prompt=2, **kl)),
      rloo_4=arm('rloo_4', 'rloo', rloo.Config(samples_per_prompt=4, **kl)),
      reinforce=arm('reinforce', 'reinforce', reinforce.Config(baseline='batch_mean', **kl)),
      dpo=arm('dpo', 'dpo', dpo.Config(temperature=1.0), refresh_every=0),
      iterative_dpo=arm('iterative_dpo', 'dpo', dpo.Config(temperature=1.0), refresh_every=25),
      online_dpo=arm('online_dpo', 'dpo', dpo.Config(temperature=1.0)),
  )


def _dialogue_arms(num_turns: int):
  """REFUEL, and last-turn arms: three prefixes with three algorithms.

  Every arm makes two passes over each batch. REFUEL in 1 to 4 iterations takes as many steps as the
  others on fewer, larger batches, and larger steps towards its target (η = 10), because one
  iteration has to go further.
  """
  rates, common = LEARNING_RATES['dialogue'], dict(num_epochs=2, temperature=1.0)
  kl = dict(kl_coefficient=0.05, **common)

  def arm(name, file, algorithm, **options):
    return _arm(file, algorithm, rates[name], kind=arena_config.DialogueArmConfig, **options)

  def whole(eta=2.0, **options):
    return arm('refuel', 'refuel', refuel.Config(eta=eta, **kl, **options))

  last_turn = {}
  for prefix in ('offline', 'mixed', 'own'):
    for file, algorithm in (
        ('dpo', dpo.Config(**common)), ('rloo', rloo.Config(samples_per_prompt=2, **kl)),
        ('rebel', rebel.Config(eta=2.0, **kl)),
    ):
      last_turn[f'lt_{prefix.replace("own", "online")}_{file}'] = arm(
          file, file, algorithm, prefix=prefix, turn='last')

  if num_turns == 1:  # Last-turn REBEL is REFUEL, if all else is equal.
    last_turn = {name: dataclasses.replace(arm, optimizer=whole().optimizer)
                 for name, arm in last_turn.items()}
    return arena_config.arms(refuel=whole(), **last_turn)

  iterations = {
      f'refuel_{count}': dataclasses.replace(whole(eta=10.0), iterations=count)
      for count in (1, 2, 3, 4)}
  return arena_config.arms(
      refuel=whole(), refuel_one=dataclasses.replace(whole(), turn='one'), **iterations,
      mt_mixed=dataclasses.replace(whole(), prefix='mixed'), **last_turn)


def _eta_arms():
  """REBEL at seven step sizes; of the upper five alone, the smallest is best."""
  rate = LEARNING_RATES['summarisation']['rebel']
  return arena_config.arms(**{
      f'eta_{str(eta).replace(".", "_")}': _arm(
          'rebel', rebel.Config(eta=eta, kl_coefficient=0.05, temperature=1.0), rate)
      for eta in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
  })


def _unpenalised_arms():
  """REBEL with and without the KL penalty, for twice as long."""
  rate = LEARNING_RATES['summarisation']['rebel']
  return arena_config.arms(**{
      name: _arm('rebel', rebel.Config(kl_coefficient=c, temperature=1.0), rate)
      for name, c in (('kl_0', 0.0), ('kl_0_05', 0.05))
  })


def _model(max_length: int, num_layers: int = 2) -> configs.TransformerConfig:
  return configs.TransformerConfig(
      num_layers=num_layers, width=64, num_heads=4, num_kv_heads=4, head_dim=16, mlp_width=128,
      max_length=max_length, positions='learned',
  )


def _sft(steps: int) -> config_lib.SftConfig:
  return config_lib.SftConfig(
      steps=steps, batch_size=128, log_every=100,
      optimizer=optim.OptimizerConfig(
          learning_rate=2e-3, schedule='cosine', warmup_steps=50, weight_decay=0.01),
  )


def get_config(variant: str = '') -> arena_config.Arena:
  arithmetic = arena_config.ArenaTaskConfig(
      task=tasks.arithmetic.Config(
          digits=2, num_demonstrations=4_000, num_train=1_000, num_evaluation=500),
      model=_model(16), sft=_sft(800), arms=_all_arms('arithmetic'),
  )

  # Four layers and b2 = 0.98: with fewer layers, or b2 = 0.999, the reward model barely learns to
  # compare.
  summarisation = arena_config.ArenaTaskConfig(
      task=tasks.summarisation.Config(num_train=600), model=_model(40, num_layers=4),
      sft=_sft(500), reward_model=arena_config.RewardModelConfig(
          num_pairs=16_384, label_noise=0.1, steps=2_000, batch_size=128,
          missing_stop_penalty=-6.0,  # Below the model's score of any summary that stops.
          optimizer=optim.OptimizerConfig(
              learning_rate=1e-3, schedule='cosine', warmup_steps=50, weight_decay=0.01, b2=0.98)),
      arms=_all_arms('summarisation'), completions=80 * 128, num_evaluations=6, eval_samples=1,
      one_reference=True)

  num_turns = 1 if variant == 'one_turn' else 5
  dialogue = arena_config.ArenaTaskConfig(
      task=arena_config.DialogueTask(
          num_turns=num_turns, fixed_questions=variant == 'fixed_questions'),
      model=_model(40), sft=_sft(800), arms=_dialogue_arms(num_turns),
      completions=144 * 128, batch_completions=128, num_evaluations=6, untrained=('sft',))

  # The variant also selects the task.
  task = 'summarisation' if variant else 'arithmetic'
  if variant in ('one_turn', 'fixed_questions'):
    task = 'dialogue'
  elif variant == 'eta':
    summarisation.arms = _eta_arms()
  elif variant == 'overoptimisation':
    summarisation = dataclasses.replace(
        summarisation, arms=_unpenalised_arms(), completions=160 * 128)
  elif variant:
    raise ValueError(
        f'variant must be one of {", ".join(VARIANTS)} or none, got {variant!r}')

  return arena_config.Arena(
      arithmetic=arithmetic, summarisation=summarisation, dialogue=dialogue, task=task,
      num_seeds=3 if variant in ('eta', 'overoptimisation') else 5)
