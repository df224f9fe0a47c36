"""Supervised fine-tuning: the loss written out, ignored tokens, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.algorithms import sft
from jaxrl_llm.data import batching, sft_batches
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim, step
from tests.algorithms import groups, tiny
from tests.models import witness

# (prompt, response with its stop token 0)
DEMONSTRATIONS = [
    ([1, 2], [3, 0]), ([4], [5, 6, 1, 0]), ([2, 2, 2], [0]), ([6, 1], [4, 4, 0]),
    ([3, 5, 1], [2, 0]), ([5], [1, 0]), ([1, 1, 4], [6, 3, 0]), ([2, 6], [1, 0]),
]
WIDTH = 6


def _batch(demonstrations=DEMONSTRATIONS, filler=0):
  rows = len(demonstrations)
  tokens = np.full((rows, WIDTH), filler, np.int32)
  targets = np.full((rows, WIDTH), filler, np.int32)
  valid, mask = np.zeros((rows, WIDTH), bool), np.zeros((rows, WIDTH), np.float32)
  for i, (prompt, response) in enumerate(demonstrations):
    both = prompt + response
    length = len(both) - 1
    tokens[i, :length], targets[i, :length] = both[:-1], both[1:]
    valid[i, :length] = True
    mask[i, len(prompt) - 1 : length] = 1
  positions = np.broadcast_to(np.arange(WIDTH, dtype=np.int32), tokens.shape)
  return sft_batches.SftBatch(tokens, positions, valid, targets, mask, np.ones(rows, np.float32))


def _run(batch=None):
  return groups.runner(sft)(_batch() if batch is None else batch)


def _nll(prompt, response):
  """- ln π of each token of the response, by NumPy."""
  tokens = np.array(prompt + response)
  _, logits = witness.forward(tiny.CONFIG, tiny.params()['policy'], tokens)
  log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  return [-log_probs[t - 1, tokens[t]] for t in range(len(prompt), len(tokens))]


def test_the_loss_is_the_mean_over_all_response_tokens():
  losses = [_nll(prompt, response) for prompt, response in DEMONSTRATIONS]
  by_token = np.mean(np.concatenate(losses))
  by_sequence = np.mean([np.mean(row) for row in losses])
  assert abs(by_token - by_sequence) > 0.01
  loss, _, metrics = _run()
  np.testing.assert_allclose(loss, by_token, rtol=1e-5)
  assert metrics['train/grad_norm'] > 0


def test_the_gradient_is_that_of_the_loss_by_jax_grad():
  batch = _batch()

  def mean_nll(parameters):
    output = tiny.MODEL.apply(
        parameters['policy'], batch.tokens, positions=batch.positions, valid=batch.valid)
    every = jax.nn.log_softmax(output.hidden @ output.head.kernel.T)
    chosen = jnp.take_along_axis(every, batch.targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(batch.loss_mask * chosen) / jnp.sum(batch.loss_mask)

  expected = jax.jit(jax.grad(mean_nll))(tiny.params())
  tiny.assert_trees_close(_run()[1], expected, tolerance=1e-5)


def test_prompt_targets_and_padding_are_ignored():
  expected_loss, expected, _ = _run()
  batch = _batch(filler=6)  # In tokens and in targets.
  other = np.random.default_rng(0).integers(0, 7, batch.targets.shape)
  batch = batch._replace(
      targets=np.where(batch.loss_mask > 0, batch.targets, other).astype(np.int32))
  loss, gradients, _ = _run(batch)
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
  tiny.assert_trees_close(gradients, expected, tolerance=1e-5)
  # The prompt is context all the same, and the stop token a target.
  changed = _batch([([6, 2], [3, 0])] + DEMONSTRATIONS[1:])
  assert abs(_run(changed)[0] - expected_loss) > 1e-4
  unstopped = batch._replace(loss_mask=np.where(batch.targets == 0, 0, batch.loss_mask))
  assert abs(_run(unstopped)[0] - expected_loss) > 1e-3


def test_learns_its_demonstrations():
  optimizer = optim.make_optimizer(optim.OptimizerConfig(name='adam', learning_rate=1e-2))
  algorithm = sft.make(sft.Config(), tiny.MODEL, optimizer)
  parameters = {'policy': jax.jit(tiny.MODEL.init)(jax.random.key(0))}
  state = algorithm.init(jax.random.key(1), parameters)
  batch = _batch()
  train_step = step.jit_train_step(algorithm.train_step)
  losses = []

  for _ in range(100):
    state, metrics = train_step(state, batch)
    losses.append(float(metrics['train/loss'].value()))
  assert losses[0] > 1.5 and losses[-1] < 0.02
  assert int(state.step) == 100 and train_step.num_traces == 1

  # What it then says when it is asked.
  sampler = jax.jit(decode.make_sampler(
      tiny.MODEL, num_samples=1, max_tokens=4, stop_ids=(0,), pad_id=0, temperature=0.0))
  prompts, lengths = batching.left_pad([prompt for prompt, _ in DEMONSTRATIONS], 3, 0)
  rollouts = sampler(state.params['policy'], prompts, lengths, np.arange(8), jax.random.key(0))
  for row, (_, response) in enumerate(DEMONSTRATIONS):
    assert list(rollouts.tokens[row, 0, : rollouts.lengths[row, 0]]) == response
