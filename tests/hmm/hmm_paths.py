"""Small hidden Markov models, and sums over all their paths of states."""

import itertools

import numpy as np

# H1: the example that is worked out by hand. A is not symmetric: Aᵀ in its place shows.
INITIAL = np.array([.6, .4])
TRANSITION = np.array([[.9, .1], [.2, .8]])
EMISSION = np.array([[.7, .3], [.1, .9]])
OBSERVATIONS = np.array([0, 1, 1])
MODEL = (INITIAL, TRANSITION, EMISSION)


def random_model(seed, num_states, num_symbols, zeros=0.0):
  """Random distributions; each entry is 0 with chance `zeros`, except one in each row."""
  rng = np.random.default_rng(seed)
  tables = []
  for shape in ((1, num_states), (num_states, num_states), (num_states, num_symbols)):
    table = rng.dirichlet(np.ones(shape[1]), shape[0])
    nonzero = (rng.random(shape) >= zeros) | (np.arange(shape[1]) == rng.integers(shape[1]))
    table = table * nonzero
    tables.append(table / table.sum(axis=1, keepdims=True))
  return tables[0][0], *tables[1:]


def joint(initial, transition, likelihoods):
  """P(path, o) of every path of states: {path: probability}."""
  steps, num_states = likelihoods.shape
  joint = {}
  for path in itertools.product(range(num_states), repeat=steps):
    chance = initial[path[0]] * likelihoods[0, path[0]]
    for t in range(1, steps):
      chance *= transition[path[t - 1], path[t]] * likelihoods[t, path[t]]
    joint[path] = chance
  return joint


def last_distribution(joint, num_states):
  """Distribution [M] of the last state."""
  last = np.zeros(num_states)
  for path, chance in joint.items():
    last[path[-1]] += chance
  return last / last.sum()
