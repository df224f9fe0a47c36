"""Choices of mice, predicted in context by a model trained without them, and by fitted models.

For each animal (real ones of the International Brain Laboratory, and simulated ones, whose best
prediction is known) sessions are split into folds by seed. Held-out choices are predicted by
chance, the bias, a GLM, GLM-HMMs and counts, all from the training sessions of the fold, and in
context: by a small transformer trained only on simulated mice, in four layouts, and in the shifted
layout of the released code, which reveals the answer (arXiv 2506.07298; see `hmm.animals`).
`mice_predictors` documents which data each predictor sees. Finished animals are saved and reused.

A cohort of simulated mice, one window each, shows how far the model in context is from a predictor
that knows the mouse, by the number of trials read.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.icl_hmm import mice_predictors as predictors
from experiments.icl_hmm import mice_report as report
from experiments.icl_hmm import mice_training as training
from experiments.icl_hmm.mice_config import IclHmmMice
from jaxrl_llm.hmm import animals, in_context, simulated_mice
from jaxrl_llm.models import configs
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import arms, checkpoint_sources, launch
from jaxrl_llm.training import fingerprint, loop
from jaxrl_llm.types import Params

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
  names = [f'{report.SIMULATED}{i}' for i in range(config.num_simulated)]
  return {
      name: (simulated_mice.as_animal(trials, i, name), best[i]) for i, name in enumerate(names)}


def make_in_context_predictors(
    run: launch.Run, stopper: loop.Stopper
) -> list[predictors.InContextPredictor]:
  """The meta-trained model, and the checkpoint's if the config names one."""
  config: IclHmmMice = run.config
  # The checkpoint first, so that its errors come before minutes of training.
  others = [read_checkpoint(config)] if config.checkpoint else []
  params = training.meta_train(run, stopper)
  return [predictors.make_predictor(
      'icl', training.make_model(config), params, training.TOKENISATION,
      num_trials=config.num_trials, batch_size=32), *others]


def read_checkpoint(config: IclHmmMice) -> predictors.InContextPredictor:
  """Predictor from a language model on disk, with the tokenisation in the config."""
  source = checkpoint_sources.read(config.checkpoint, field='config.checkpoint')
  tokenizer = source.load_tokenizer()
  shape = checkpoint_sources.resolve_model(configs.TransformerConfig(), source)
  needed = 1 + 3 * config.checkpoint_trials
  if shape.max_length < needed:
    raise ValueError(f'config.checkpoint_trials of {config.checkpoint_trials} needs {needed} '
                     f'tokens, and the context of config.checkpoint has {shape.max_length}')

  tokens = in_context.tokenise(
      tokenizer, config.tokenisation, animals.NUM_SYMBOLS, seed=config.seed)
  model = policy_lib.make(shape)
  predictor = predictors.make_predictor(
      'checkpoint', model, dict.fromkeys(training.ARMS, source.load_on_one_device(model)), tokens,
      num_trials=config.checkpoint_trials, batch_size=config.checkpoint_batch_size)
  return predictor._replace(identity={
      **checkpoint_sources.identity(tokenizer.fingerprint, shape), 'tokens': tokens._asdict()})


def predict_animal(
    config: IclHmmMice,
    animal: animals.Animal,
    best: np.ndarray | None,
    in_context_predictors: Sequence[predictors.InContextPredictor],
    shape: tuple[int, int],
) -> dict[str, np.ndarray]:
  """P(choice 1) of every held-out choice, by every predictor.

  Args:
    config: the config of the study.
    animal: the animal.
    best: the best prediction [N], if known.
    in_context_predictors: the models that predict in context.
    shape: as in `predictors.fitted_predictions`.

  Returns:
    'choices' [N], 'fold' [N], 'chance/<method>' [N], NaN where nothing is predicted, and
    'online/<method>' [R, W], the windows of `predictors.online_windows`, with 'online/choices'.
  """
  fold = animals.folds(animal.num_sessions, config.num_folds, config.seed)
  predictions = {
      'chance': np.full(len(animal.choices), .5),
      'bias': predictors.bias_predictions(animal, fold),
      **predictors.fitted_predictions(config, animal, fold, shape),
  }

  windows = predictors.held_out_windows(animal, fold, config.num_trials)
  for prefix, counts in (('ngram', predictors.all_counts(animal, fold)),
                         ('context_ngram', predictors.window_counts(animal, *windows))):
    predictions |= {f'{prefix}{order}': counts[order - 1] for order in (2, 3)}

  online = {}
  for model in in_context_predictors:
    trials, predicted = predictors.held_out_windows(animal, fold, model.num_trials)
    stream = predictors.online_windows(animal, model.num_trials)

    for arm in training.ARMS:
      chances = np.full(len(animal.choices), np.nan)
      chances[trials[predicted]] = model.predict(arm, animal, trials)[predicted]
      predictions[f'{model.name}_{arm}'] = chances
      if model.name == 'icl' and len(stream):
        online[f'online/icl_{arm}'] = model.predict(arm, animal, stream)
        online['online/choices'] = animal.choices[stream]

  if best is not None:
    predictions['bayes'] = best
  return {'choices': animal.choices, 'fold': fold[animal.sessions], **online,
          **{f'chance/{name}': values for name, values in predictions.items()}}


def predict_cohort(
    config: IclHmmMice, model: predictors.InContextPredictor
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

  predictions = {
      'bayes': simulated_mice.predict(drawn, trials),
      **{f'context_ngram{order}': counts[order - 1].reshape(rows.shape) for order in (2, 3)},
      **{f'icl_{arm}': model.predict(arm, flat, rows) for arm in training.ARMS},
  }
  return {'choices': trials.choices, **{f'chance/{name}': x for name, x in predictions.items()}}


def _load_animals(config: IclHmmMice) -> dict[str, tuple[animals.Animal, np.ndarray | None]]:
  """Loads real and simulated animals by name, each with the best prediction if it is known.

  Raises:
    ValueError: one line; if an animal cannot be read or scored.
  """
  real = animals.load_folder(config.data_dir) if config.data_dir else []
  for animal in real:
    if animal.name.startswith(report.SIMULATED):
      raise ValueError(f'names in config.data_dir must not start with {report.SIMULATED!r}, the '
                       f'prefix of simulated mice, got {animal.name}')

  by_name = {animal.name: (animal, None) for animal in real} | simulated_animals(config)
  for name, (animal, _) in by_name.items():
    if animal.num_sessions < config.num_folds:
      raise ValueError(f'config.num_folds must be at most the number of sessions of {name} '
                       f'({animal.num_sessions}), got {config.num_folds}')

    # With two choices every method predicts one: the last trial of a shifted window has no label.
    choices = np.bincount(animal.sessions, weights=animal.choices >= 0)
    fold = animals.folds(animal.num_sessions, config.num_folds, config.seed)
    empty = set(range(config.num_folds)) - set(fold[choices >= 2].tolist())
    if empty:
      raise ValueError(f'config.num_folds must leave each fold of {name} a session with two '
                       f'choices, got {len(empty)} of {config.num_folds} folds without')
  return by_name


def fingerprints(params_by_arm: Mapping[str, Params]) -> dict[str, str]:
  """Returns fingerprints by arm; parameters that arms share, such as a checkpoint's, count once."""
  of = {id(params): fingerprint.of_params(params)
        for params in {id(params): params for params in params_by_arm.values()}.values()}
  return {arm: of[id(params)] for arm, params in params_by_arm.items()}


def predict_all(
    run: launch.Run, stopper: loop.Stopper
) -> tuple[dict[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]:
  """Results of `predict_animal` by animal, and the cohort's; finished ones are read from disk."""
  config: IclHmmMice = run.config
  by_name = _load_animals(config)
  sizes = [(animal.num_sessions, int(np.bincount(animal.sessions).max()))
           for animal, _ in by_name.values()]
  shape = tuple(map(max, zip(*sizes)))

  in_context_predictors = make_in_context_predictors(run, stopper)
  models = {model.name: {'params': fingerprints(model.params), **model.identity}
            for model in in_context_predictors}
  cohort = arms.finished(
      run.workdir / 'arms' / 'cohort.npz',
      arms.identity_of(run.experiment, config, arm='cohort', models=models),
      functools.partial(predict_cohort, config, in_context_predictors[0]), commit=run.commit)

  predictions = {}
  with loop.progress(len(by_name), 'animals') as bar:
    for name, (animal, best) in by_name.items():
      # `shape` and the trials are not in the config: its data_dir may hold other files now.
      identity = arms.identity_of(
          run.experiment, config, arm=name, models=models, trials=animals.fingerprint(animal),
          shape=shape)
      predictions[name] = arms.finished(
          run.workdir / 'arms' / f'{name}.animal.npz', identity,
          functools.partial(predict_animal, config, animal, best, in_context_predictors, shape),
          commit=run.commit)
      run.save_clock()
      bar.update(1, animal=name)
      stopper.check(f'stopped after {name}, saved')
  return predictions, cohort


def main(run: launch.Run) -> dict[str, Any]:
  """Predicts all animals, writes table, figure and results.json, and returns the numbers."""
  with loop.Stopper() as stopper:
    predictions, cohort = predict_all(run, stopper)
  numbers = report.write(run, predictions, cohort)
  launch.write_results(run, {**numbers, 'sampled_tokens': 0})
  print(f'results: {run.results_path}')
  return numbers
