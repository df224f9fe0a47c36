"""The arena: every algorithm with the same reference, prompts and evaluation.

Each arm may sample equally many completions, those of A*-PO's stage 1 included. Each arm and seed
writes one file to WORKDIR/seed<N>/arms; running the same command again continues with the next
missing one. The output is a table and two figures: the score against sampled tokens, and against
the KL divergence from the reference.
"""

import dataclasses
import functools
import pathlib

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
  kind = arena_dialogue.DialogueArenaTask if config.task == 'dialogue' else arena_tasks.ArenaTask
  shared = kind(config.chosen_task, config.seed)
  arenas: dict[int, arena_tasks.ArenaSeed] = {}

  def folder(seed: int) -> pathlib.Path:
    return run.workdir / f'seed{seed}'

  def arena_of(seed: int) -> arena_tasks.ArenaSeed:
    if shared.config.one_reference and seed != config.seed:
      arenas[seed] = dataclasses.replace(arena_of(config.seed), seed=seed)
    elif seed not in arenas:
      arenas[seed] = arena_tasks.prepare(shared, seed, folder(seed))
      stopper.check('stopped with the reference saved')
    return arenas[seed]

  def play(arm: arena_arms.Arm | None, name: str, seed: int) -> dict:
    if arm is None:
      outcome = arena_arms.untrained(name, arena_of(seed))
    else:
      check = functools.partial(stopper.check, 'stopped; this arm starts again')
      outcome = arena_arms.run(arm, arena_of(seed), check)
    return outcome | {'commit': run.commit}

  results = {}
  for name in config.chosen():
    arm = None if name in arena_config.UNTRAINED else arena_arms.Arm(shared, name)
    results[name] = {}

    for seed in range(config.seed, config.seed + config.num_seeds):
      # With the fingerprints, because training on another processor makes another reference.
      identity = arms_lib.identity_of(
          'arena', shared.config, task=config.task, first_seed=config.seed, seed=seed, arm=name,
          **arena_of(seed).fingerprints)
      results[name][seed] = arms_lib.finished(
          folder(seed) / 'arms' / f'{name}.json', identity,
          functools.partial(play, arm, name, seed), commit=run.commit)
      run.save_clock()
  return results


def main(run: launch.Run) -> None:
  """Runs every arm and seed; writes the table, the figures and results.json."""
  unused = [task for task in arena_config.TASKS if task != run.config.task]
  for name in run.overrides:
    if name.split('.')[0] in unused:
      raise ValueError(f'config.{name} has no effect with config.task={run.config.task!r}')
  with loop.Stopper() as stopper:
    arena_report.write(run, outcomes(run, stopper))


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/arena.py')
