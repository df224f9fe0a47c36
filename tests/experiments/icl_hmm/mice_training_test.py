"""Meta-training on simulated mice: batches, the loss, and what is learnt."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from experiments.icl_hmm import mice_report, mice_training
from jaxrl_llm.hmm import animals, simulated_mice
from jaxrl_llm.training import optim
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import TrainState
from tests.experiments import tiny_mice


@pytest.mark.parametrize('name', mice_training.ARMS)
def test_labels_come_after_the_positions_that_predict_them(name):
  width = 6
  batch = mice_training.encode_batch(np.random.default_rng(0), name, 3, width)
  arm = mice_training.ARMS[name]
  generator = np.random.default_rng(0)
  drawn = simulated_mice.draw(generator, 3)
  trials = simulated_mice.simulate(drawn, generator, num_trials=width + arm.shift,
                                   phase=generator.integers(90, size=3))

  tokens = np.concatenate([batch.tokens, np.full((3, 1), -1)], axis=1)
  labels = np.take_along_axis(tokens, batch.positions + 1, axis=1)
  shown = labels >= 0  # The last choice may be the last token, which is not in the batch.
  np.testing.assert_array_equal(
      (labels - animals.CHOICE_SYMBOLS[0])[shown], trials.choices[:, :width][shown])
  assert (batch.tokens[:, 0] == animals.NUM_SYMBOLS).all()
  assert batch.tokens[:, 1:].max() < animals.NUM_SYMBOLS

  best = simulated_mice.predict(drawn, trials)[:, :width]
  zero = trials.levels[:, :width] == animals.ZERO_LEVEL
  if arm.shift:  # The contrast and reward in the context determine the choice.
    np.testing.assert_array_equal(batch.chances[~zero], trials.choices[:, :width][~zero])
  np.testing.assert_allclose(batch.chances[zero if arm.shift else ...],
                             best[zero if arm.shift else ...], atol=1e-6)


def test_a_batch_is_a_function_of_seed_and_step():
  config, arm = tiny_mice.config(short_fraction=.25, short_trials=4), 'stim_choice'
  a, b = (mice_training.draw_batch(config, arm, 3) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  other = mice_training.draw_batch(dataclasses.replace(config, seed=1), arm, 3)
  assert (a.tokens != other.tokens).any()
  assert mice_training.draw_batch(config, arm, 0).positions.shape == (4, 4)
  assert a.positions.shape == (2, 8)


def test_the_loss_is_the_cross_entropy_with_the_optimal_prediction():
  config = tiny_mice.config()
  model = mice_training.make_model(config)
  batch = mice_training.encode_batch(np.random.default_rng(1), 'stim_choice', 2, 5)
  loss, extra = jax.jit(functools.partial(mice_training.loss_fn, model))(
      {'policy': tiny_mice.predictor().params['stim_choice']}, batch)

  trials = np.arange(10).reshape(2, 5)
  symbols = batch.tokens[:, 1:].reshape(2, -1)
  flat = animals.Animal('m', *(np.zeros((2, 5), int) for _ in range(4)))
  flat.levels[:] = symbols[:, ::2]
  flat.choices[:, :4] = symbols[:, 1::2] - animals.CHOICE_SYMBOLS[0]
  flat = animals.Animal('m', *(x.reshape(-1) for x in (
      flat.levels, flat.choices, flat.rewards, flat.sessions)))

  p, q = tiny_mice.predictor().predict('stim_choice', flat, trials), batch.chances.astype(float)
  cross = -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean()
  own = -(q * np.log(q) + (1 - q) * np.log(1 - q)).mean()
  assert float(loss.value()) == pytest.approx(cross, abs=1e-5)
  assert float(extra['train/divergence'].value()) == pytest.approx(cross - own, abs=1e-5)


def test_the_predictor_learns_to_follow_the_contrast():
  config = tiny_mice.config(batch_size=32)
  model = mice_training.make_model(config)
  optimizer = optim.make_optimizer(optim.OptimizerConfig(learning_rate=2e-2))

  @jax.jit
  def init():
    params = {'policy': model.init(jax.random.key(0))}
    return TrainState.create(params, optimizer, jax.random.key(0))

  @jax.jit
  def step(state, batch):
    return step_lib.take_step(
        functools.partial(mice_training.loss_fn, model), optimizer, state, batch)

  state, losses = init(), []
  for index in range(60):
    batch = mice_training.encode_batch(
        np.random.default_rng(index), 'stim_choice', 32, 16)
    state, update = step(state, batch)
    losses.append(float(update['train/loss'].value()))
  assert losses[0] > .6 and np.mean(losses[-10:]) < .61  # ln 2 is .693, the optimum .46.


def test_7g_the_leaked_answer_beats_the_optimal_prediction():
  # The rule 'the choice fits the contrast and the reward in the context', with no parameter.
  generator = np.random.default_rng(3)
  drawn = simulated_mice.draw(generator, 100)
  trials = simulated_mice.simulate(drawn, generator, num_trials=180)
  best = mice_report.hits(simulated_mice.predict(drawn, trials), trials.choices)[:, :-1].mean()
  symbols = animals.encode(
      trials.levels, trials.choices, trials.rewards, 'stim_choice_reward', shift=True)
  labels = animals.label_positions('stim_choice_reward', 180, shift=True)[1:]
  rewarded = symbols[:, labels - 2] == animals.REWARD_SYMBOLS[1]
  level = symbols[:, labels - 4]
  guess = np.where(rewarded, level > animals.ZERO_LEVEL, level < animals.ZERO_LEVEL)
  chances = np.where(level == animals.ZERO_LEVEL, .5, guess)
  leaked = mice_report.hits(chances, symbols[:, labels] - animals.CHOICE_SYMBOLS[0])
  assert leaked.mean() == pytest.approx(17 / 18, abs=.01)
  assert leaked.mean() > best + .1


def test_fields_change_the_batches():
  def shape(**changes):
    config = tiny_mice.config(**{'short_trials': 4, **changes})
    return mice_training.draw_batch(config, 'stim_choice', 1).positions.shape

  assert shape() == (2, 8)
  assert shape(batch_size=3) == (3, 8)
  assert shape(num_trials=10) == (2, 10)
  assert shape(short_fraction=1.0) == (4, 4)
  assert shape(short_fraction=1.0, short_trials=5) == (3, 5)
  assert shape(short_fraction=.3) == (4, 4) and shape(short_fraction=.3, steps=2) == (2, 8)
  assert mice_training.num_steps(tiny_mice.config(further_steps=7), 'choice') == 7
