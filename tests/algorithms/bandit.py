"""A bandit for every online algorithm: six prompts, each with one right answer out of eight.

The maximiser of E r − c KL(π ‖ π_ref) is known. With p the reference's probability of the answer,

  π*(right) = p e^{1/c} / (1 − p + p e^{1/c}),    V* = c ln(1 − p + p e^{1/c}),
  KL(π* ‖ π_ref) = (π*(right) − V*) / c.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim
from jaxrl_llm.types import Batch

CONFIG = configs.TransformerConfig(
    vocab_size=8, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=32,
    max_length=8)
MODEL = policy.make(CONFIG)
PROMPTS = np.arange(1, 7, dtype=np.int32)
RIGHT = np.array([3, 1, 7, 7, 2, 5])


class Learned(NamedTuple):
  """Result of `play`: `success`, `before` and `kl` [6] by prompt, the state, metrics by step."""

  success: np.ndarray
  before: np.ndarray
  kl: np.ndarray
  state: object
  metrics: dict


@functools.cache
def reference():
  """Parameters of π_ref, under which the eight answers are about equally likely."""
  return jax.jit(MODEL.init)(jax.random.key(0))


@jax.jit
def log_distributions(params):
  """ln π(answer | prompt) [6, 8]."""
  output = MODEL.apply(
      params, PROMPTS[:, None], positions=np.zeros((6, 1), np.int32),
      valid=np.ones((6, 1), bool))
  return jax.nn.log_softmax(output.hidden[:, 0] @ output.head.kernel.T)


def success_rates(params):
  """Probability of the right answer [6]."""
  return np.exp(log_distributions(params))[np.arange(6), RIGHT]


def learned(state, metrics) -> Learned:
  """Compares the policy of a state with the reference."""
  after, before = (np.asarray(log_distributions(p)) for p in (state.params['policy'], reference()))
  return Learned(
      success=success_rates(state.params['policy']), before=success_rates(reference()),
      kl=np.sum(np.exp(after) * (after - before), axis=-1), state=state,
      metrics={name: np.asarray(m.total / m.weight) for name, m in metrics.items()})


def play(make, num_samples, *, num_iterations=150, rows=48, others=None, learning_rate=1e-2,
         aux=None) -> Learned:
  """Trains an algorithm on answers that it samples; one program.

  Args:
    make: optimizer -> Algorithm, on `MODEL`.
    num_samples: K.
    num_iterations: train steps.
    rows: responses per iteration, over all prompts.
    others: parameters by role other than the policy's.
    learning_rate: learning rate of Adam.
    aux: arrays by prompt [6, ...] for `Batch.aux`.
  """
  algorithm = make(optim.make_optimizer(
      optim.OptimizerConfig(name='adam', learning_rate=learning_rate)))
  sampler = decode.make_sampler(
      MODEL, num_samples=num_samples, max_tokens=1, stop_ids=(0,), pad_id=0)
  chosen = np.arange(rows // num_samples) % 6
  extra = jax.tree.map(lambda leaf: leaf[chosen], aux or {})

  def iterate(state, key):
    rollouts = sampler(
        state.params['policy'], PROMPTS[chosen][:, None], np.ones(len(chosen), np.int32),
        np.arange(len(chosen)), key)
    rewards = (rollouts.tokens[:, :, 0] == RIGHT[chosen][:, None]).astype(jnp.float32)
    log_probs, _ = scoring.score(MODEL, reference(), rollouts)
    return algorithm.train_step(
        state, Batch(rollouts, rewards, log_probs, extra, jnp.ones(len(chosen))))

  keys = jax.random.split(jax.random.key(2), num_iterations)
  state = algorithm.init(jax.random.key(1), {'policy': reference(), **(others or {})})
  return learned(*jax.jit(lambda state: jax.lax.scan(iterate, state, keys))(state))


def optimum(before, coefficient):
  """(success, KL) of the maximiser, by prompt."""
  normaliser = 1 - before + before * np.exp(1 / coefficient)
  success = before * np.exp(1 / coefficient) / normaliser
  return success, (success - coefficient * np.log(normaliser)) / coefficient


def check_optimum(result: Learned, coefficient, *, success=0.06, kl=0.3) -> None:
  """The policy is the maximiser, within these tolerances, and it was not before."""
  best, best_kl = optimum(result.before, coefficient)
  assert result.before.mean() < 0.3 and best.mean() > 0.9
  np.testing.assert_allclose(result.success, best, atol=success)
  np.testing.assert_allclose(result.kl, best_kl, atol=kl)
