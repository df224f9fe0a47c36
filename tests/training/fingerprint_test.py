"""Fingerprints tell any two sets of parameters apart."""

import jax.numpy as jnp
import numpy as np

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
