"""Fingerprints tell any two sets of parameters, or of problems, apart."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.tasks import arithmetic
from jaxrl_llm.training import fingerprint


def test_equal_exactly_for_bit_identical_parameters():
  params = {'a': jnp.arange(6.0).reshape(2, 3), 'b': {'c': jnp.ones(2)}}
  name = fingerprint.of_params(params)
  assert name == fingerprint.of_params({'b': {'c': np.ones(2, np.float32)}, 'a': params['a']})
  changed = [
      {'a': params['a'].at[1, 2].add(1e-6), 'b': params['b']},
      {'a': params['a'].reshape(3, 2), 'b': params['b']},
      {'a': params['a'].astype(jnp.float16), 'b': params['b']},
      {'d': params['a'], 'b': params['b']},
      {'a': -0.0 * params['a'], 'b': params['b']},
  ]
  assert len({name, *map(fingerprint.of_params, changed)}) == 6


def test_equal_exactly_for_the_same_problems_and_reward():
  config = arithmetic.Config(num_demonstrations=4, num_train=4, num_evaluation=4)
  task = config.make(seed=0)
  name = fingerprint.of_task(task)
  assert name == fingerprint.of_task(config.make(seed=0))

  other = {**task.train[0], 'answer': 'another'}
  arrays = {**task.train[0], 'ids': np.arange(3)}
  changed = [
      config.make(seed=1), dataclasses.replace(task, reward_source='def score(): ...'),
      *(dataclasses.replace(task, train=[first, *task.train[1:]]) for first in (other, arrays)),
      dataclasses.replace(task, train=task.train[:-1]),
      dataclasses.replace(task, train=[], evaluation=[*task.train, *task.evaluation])]
  assert len({name, *map(fingerprint.of_task, changed)}) == 7
