"""The arena: every algorithm with the same reference, prompts and evaluation.

Each arm may sample equally many completions, those of A*-PO's stage 1 included. Each arm and seed
writes one file to WORKDIR/seed<N>/arms; running the same command again continues with the next
missing one. The output is a table and two figures: the score against sampled tokens, and against
the KL divergence from the reference.
"""

import dataclasses
import functools

from experiments.arena import arms as arena_arms
from experiments.arena import config as arena_config
from experiments.arena import dialogue as arena_dialogue
from experiments.arena import report as arena_report
from experiments.arena import tasks as arena_tasks
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import launch
from jaxrl_llm.training import loop


def outcomes(run: launch.Run, stopper: loop.Stopper) -> dict[str, dict[int, dict]]:
  """Runs the missing arms and seeds; returns the outcomes by arm and seed."""
  config = run.config
  kind = arena_dialogue.World if config.task == 'dialogue' else arena_tasks.World
  world = kind(config.world, config.seed)
  seeds = range(config.seed, config.seed + config.num_seeds)
  folder = lambda seed: run.workdir / f'seed{seed}'

  grounds: dict[int, arena_tasks.Ground] = {}

  def ground(seed: int) -> arena_tasks.Ground:
    if world.settings.one_reference and seed != config.seed:
      grounds[seed] = dataclasses.replace(ground(config.seed), seed=seed)
    elif seed not in grounds:
      grounds[seed] = arena_tasks.prepare(world, seed, folder(seed))
      stopper.check('stopped with the reference saved')
    return grounds[seed]

  def play(arm: arena_arms.Arm | None, name: str, seed: int) -> dict:
    if arm is None:
      outcome = arena_arms.untrained(name, ground(seed))
    else:
      check = lambda: stopper.check('stopped; this arm starts again')
      outcome = arena_arms.run(arm, ground(seed), check)
    return outcome | {'commit': run.commit}

  found = {}
  for name in config.chosen():
    arm = None if name in arena_config.UNTRAINED else arena_arms.Arm(world, name)
    found[name] = {}
    for seed in seeds:
      identity = arms_lib.identity_of(
          'arena', config.world, task=config.task, first_seed=config.seed, seed=seed, arm=name)
      found[name][seed] = arms_lib.finished(
          folder(seed) / 'arms' / f'{name}.json', identity,
          functools.partial(play, arm, name, seed), commit=run.commit)
      run.save_clock()
  return found


def main(run: launch.Run) -> None:
  """Runs every arm and seed; writes the table, the figures and results.json."""
  idle = [task for task in arena_config.TASKS if task != run.config.task]
  for name in run.overrides:
    if name.split('.')[0] in idle:
      raise ValueError(f'config.{name} has no effect with config.task={run.config.task!r}')
  with loop.Stopper() as stopper:
    arena_report.write(run, outcomes(run, stopper))


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/arena.py')
