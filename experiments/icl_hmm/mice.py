"""Choices of mice, predicted in context by a model that never saw a mouse, and by fitted models.

For each animal (real ones of the International Brain Laboratory, and simulated ones, whose best
prediction is known) sessions are split into folds by seed. Held-out choices are predicted by
chance, the bias, a GLM, GLM-HMMs and counts, all from the training sessions of the fold, and in
context: by a small transformer that was trained only on simulated mice, in four layouts, and in
the shifted layout of the released code, in which the answer can be read off (arXiv 2506.07298; see
`hmm.animals`). `mice_predictors` documents which data each predictor sees. Results of finished
animals are saved and reused.

A cohort of simulated mice, one window each, shows how much the model in context loses to a
predictor that knows the mouse, by the number of trials read.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.icl_hmm import mice_predictors as predictors
from experiments.icl_hmm import mice_report as closing
from experiments.icl_hmm import mice_training as training
from experiments.icl_hmm.mice_config import IclHmmMice
from jaxrl_llm.hmm import animals, in_context, simulated_mice
from jaxrl_llm.models import configs
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import arms, checkpoint_sources, launch
from jaxrl_llm.training import loop

# Seed entries after config.seed, so that none of these mice occurs in a training step.
_SIMULATED, _COHORT = 2**31, 2**31 + 1
SESSION_LENGTH = 90


def simulated_animals(config: IclHmmMice) -> dict[str, tuple[animals.Animal, np.ndarray]]:
  """Simulated animals by name, each with the best prediction [N] of its choices."""
  generator = np.random.default_rng([config.seed, _SIMULATED])
  if not config.num_simulated:
    return {}
  drawn = simulated_mice.draw(generator, config.num_simulated)
  trials = simulated_mice.simulate(
      drawn, generator, num_trials=config.simulated_sessions * SESSION_LENGTH,
      session_length=SESSION_LENGTH)
  best = simulated_mice.predict(drawn, trials)
  names = [f'{closing.SIMULATED}{i}' for i in range(config.num_simulated)]
  return {
      name: (simulated_mice.as_animal(trials, i, name), best[i]) for i, name in enumerate(names)}


def make_readers(run: launch.Run, stopper: loop.Stopper) -> list[predictors.Reader]:
  """The meta-trained model, and the checkpoint's if the config names one."""
  config: IclHmmMice = run.config
  # Read the checkpoint first: an error then comes before minutes of training.
  others = [read_checkpoint(config)] if config.checkpoint else []
  params = training.meta_train(run, stopper)
  return [predictors.make_reader(
      'icl', training.make_model(config), params, training.TOKENISATION,
      num_trials=config.num_trials, batch_size=32), *others]


def read_checkpoint(config: IclHmmMice) -> predictors.Reader:
  """Reader of a language model on disk, with the tokenisation that the config names."""
  source = checkpoint_sources.read(config.checkpoint, field='config.checkpoint')
  tokenizer = source.load_tokenizer()
  shape = checkpoint_sources.resolve_model(configs.TransformerConfig(), source)
  needed = 1 + 3 * config.checkpoint_trials
  if shape.max_length < needed:
    raise ValueError(f'config.checkpoint reads {shape.max_length} tokens, and {needed} are needed '
                     f'for config.checkpoint_trials of {config.checkpoint_trials}')

  tokens = in_context.tokenise(
      tokenizer, config.tokenisation, animals.NUM_SYMBOLS, seed=config.seed)
  model = policy_lib.make(shape)
  return predictors.make_reader(
      'checkpoint', model, dict.fromkeys(training.ARMS, source.load_on_one_device(model)), tokens,
      num_trials=config.checkpoint_trials, batch_size=config.checkpoint_batch_size)


def predict_animal(
    config: IclHmmMice,
    animal: animals.Animal,
    best: np.ndarray | None,
    readers: Sequence[predictors.Reader],
    shape: tuple[int, int],
) -> dict[str, np.ndarray]:
  """P(choice 1) of every held-out choice, by every predictor.

  Args:
    config: the config of the study.
    animal: the animal.
    best: the best prediction [N], if known.
    readers: the models in context.
    shape: as in `predictors.fitted_predictions`.

  Returns:
    'choices' [N], 'fold' [N], 'fingerprint' of the animal, 'chance/<method>' [N], NaN where
    nothing is predicted, and 'online/<method>' [R, W], the windows of
    `predictors.online_windows`, with 'online/choices'.
  """
  fold = animals.folds(animal.num_sessions, config.num_folds, config.seed)
  found = {
      'chance': np.full(len(animal.choices), .5),
      'bias': predictors.bias_predictions(animal, fold),
      **predictors.fitted_predictions(config, animal, fold, shape),
  }

  windows = predictors.held_out_windows(animal, fold, config.num_trials)
  for prefix, counts in (('ngram', predictors.all_counts(animal, fold)),
                         ('context_ngram', predictors.window_counts(animal, *windows))):
    found |= {f'{prefix}{order}': counts[order - 1] for order in (2, 3)}

  online = {}
  for reader in readers:
    trials, predicted = predictors.held_out_windows(animal, fold, reader.num_trials)
    stream = predictors.online_windows(animal, reader.num_trials)
    for arm in training.ARMS:
      chances = np.full(len(animal.choices), np.nan)
      chances[trials[predicted]] = reader.predict(arm, animal, trials)[predicted]
      found[f'{reader.name}_{arm}'] = chances
      if reader.name == 'icl' and len(stream):
        online[f'online/icl_{arm}'] = reader.predict(arm, animal, stream)
        online['online/choices'] = animal.choices[stream]

  if best is not None:
    found['bayes'] = best
  return {'choices': animal.choices, 'fold': fold[animal.sessions],
          'fingerprint': np.array(animals.fingerprint(animal)), **online,
          **{f'chance/{name}': values for name, values in found.items()}}


def predict_cohort(
    config: IclHmmMice, reader: predictors.Reader
) -> dict[str, np.ndarray]:
  """Predicts simulated mice, one window each, in all layouts.

  Returns:
    'choices' and 'chance/<method>' [B, W].
  """
  generator = np.random.default_rng([config.seed, _COHORT])
  count, width = config.num_cohort, config.num_trials
  drawn = simulated_mice.draw(generator, count)
  trials = simulated_mice.simulate(
      drawn, generator, num_trials=width, phase=generator.integers(SESSION_LENGTH, size=count))

  flat = animals.Animal('cohort', *(x.reshape(-1) for x in (
      trials.levels, trials.choices, trials.rewards)), np.arange(count).repeat(width))
  rows = np.arange(count * width).reshape(count, width)
  counts = predictors.window_counts(flat, rows, np.ones(rows.shape, bool))

  found = {
      'bayes': simulated_mice.predict(drawn, trials),
      **{f'context_ngram{order}': counts[order - 1].reshape(rows.shape) for order in (2, 3)},
      **{f'icl_{arm}': reader.predict(arm, flat, rows) for arm in training.ARMS},
  }
  return {'choices': trials.choices, **{f'chance/{name}': x for name, x in found.items()}}


def _everyone(config: IclHmmMice) -> dict[str, tuple[animals.Animal, np.ndarray | None]]:
  """All animals by name, each with the best prediction if known; rejects those that cannot be
  scored."""
  real = animals.load_folder(config.data_dir) if config.data_dir else []
  for animal in real:
    if animal.name.startswith(closing.SIMULATED):
      raise ValueError(f'names in config.data_dir must not start with {closing.SIMULATED!r}, as '
                       f'those of simulated mice do, got {animal.name}')

  everyone = {animal.name: (animal, None) for animal in real} | simulated_animals(config)
  for name, (animal, _) in everyone.items():
    if animal.num_sessions < config.num_folds:
      raise ValueError(f'config.num_folds must be at most the sessions of {name} '
                       f'({animal.num_sessions}), got {config.num_folds}')

    # Two choices leave every method one to predict: shifted, a window's last trial has no label.
    choices = np.bincount(animal.sessions, weights=animal.choices >= 0)
    fold = animals.folds(animal.num_sessions, config.num_folds, config.seed)
    empty = set(range(config.num_folds)) - set(fold[choices >= 2].tolist())
    if empty:
      raise ValueError(f'each fold of {name} must have a session with two choices to be scored, '
                       f'got {len(empty)} of {config.num_folds} (config.num_folds) without')
  return everyone


def predict_all(
    run: launch.Run, stopper: loop.Stopper
) -> tuple[dict[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
  """Results of `predict_animal` by animal, and the cohort's; finished ones are read from disk."""
  config: IclHmmMice = run.config
  everyone = _everyone(config)
  sizes = [(animal.num_sessions, np.bincount(animal.sessions).max())
           for animal, _ in everyone.values()]
  shape = tuple(map(max, zip(*sizes)))

  readers, found = make_readers(run, stopper), {}
  kept = run.workdir / 'arms'
  cohort = arms.kept(kept / 'cohort.npz', lambda: predict_cohort(config, readers[0]))

  with loop.progress(len(everyone), 'animals') as bar:
    for name, (animal, best) in everyone.items():
      path = kept / f'{name}.animal.npz'
      found[name] = arms.kept(path, functools.partial(
          predict_animal, config, animal, best, readers, shape))
      if str(found[name].get('fingerprint')) != animals.fingerprint(animal):
        raise ValueError(f'{path} is of other trials than {name} of config.data_dir: give another '
                         '--workdir')
      run.save_clock()
      bar.update(1, animal=name)
      stopper.check(f'stopped after {name}, saved')
  return found, cohort


def main(run: launch.Run) -> dict[str, Any]:
  """Predicts all animals, writes table, figure and results.json, and returns the numbers."""
  with loop.Stopper() as stopper:
    found, cohort = predict_all(run, stopper)
  numbers = closing.write(run, found, cohort)
  launch.write_results(run, {**numbers, 'sampled_tokens': 0})
  print(f'results: {run.results_path}')
  return numbers
