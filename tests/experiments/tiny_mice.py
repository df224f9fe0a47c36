"""A small mouse, config and untrained predictor for tests of the study of mice."""

import functools

import jax
import numpy as np

from experiments.icl_hmm import mice_config, mice_predictors, mice_training
from jaxrl_llm.hmm import animals, simulated_mice
from jaxrl_llm.models import configs


@functools.cache
def animal(seed=0, sessions=4, length=12):
  generator = np.random.default_rng(seed)
  trials = simulated_mice.simulate(
      simulated_mice.draw(generator, 1), generator, num_trials=sessions * length,
      session_length=length)
  return simulated_mice.as_animal(trials, 0, f'M{seed}')


def write(folder, animal):
  """Writes an animal like the published files, whose first trials contain their own choices."""
  last = np.arange(len(animal.choices)) - 1
  last += np.concatenate([[True], np.diff(animal.sessions) > 0])
  choice = 2 * animal.choices[last].astype(int) - 1
  stimulus = animals.CONTRASTS[animal.levels] * 2.1 + .001
  np.savez(folder / f'{animal.name}_processed.npz',
           np.stack([stimulus, choice, choice * animal.rewards[last]], axis=1),
           animal.choices[:, None].astype(int), np.char.add('s', animal.sessions.astype(str)))


def config(**options):
  small = dict(num_folds=2, num_states=(2,), restarts=1, em_steps=2, num_cohort=2, num_trials=8,
               short_trials=8, short_fraction=0.0, steps=4, further_steps=4, batch_size=2,
               model=configs.TransformerConfig(
                   num_layers=1, width=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_width=8,
                   max_length=64, tie_embeddings=False))
  return mice_config.IclHmmMice(**small | options)


@functools.cache
def predictor():
  model = mice_training.make_model(config())
  params = jax.jit(model.init)(jax.random.key(0))
  return mice_predictors.make_predictor(
      'icl', model, dict.fromkeys(mice_training.ARMS, params),
      mice_training.TOKENISATION, num_trials=8, batch_size=4)
