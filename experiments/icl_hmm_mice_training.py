"""Meta-training on simulated mice: the predictor that learns an animal in context.

Every step draws mice that were never seen (`tasks.mice`), shows what they did in one of the
layouts, and asks for each choice. The mouse is known here, so that the label may be averaged over:

  L(θ) = − E (1/W) Σ_t Σ_y P(y_t = y | mouse, trials before t) ln π_θ(y | sequence before it)

which has the expected gradient of sampled labels and less noise. In the shifted layout the sequence
holds the trial's own contrast and reward already; then the label is the choice itself, wherever
these two determine it.
"""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import launch
from experiments.settings_mice import IclHmmMice
from jaxrl_llm.data import animals
from jaxrl_llm.evaluation import in_context
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.tasks import mice
from jaxrl_llm.training import checkpoints, loop, metrics, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import ModelFns, Params, TrainState, WeightedMean


class Arm(NamedTuple):
  """A way to write trials down.

  Attributes:
    layout: one of `animals.LAYOUTS`.
    shift: as in `animals.encode`.
  """

  layout: str
  shift: bool = False


ARMS = {
    'choice': Arm('choice'),
    'stim_choice': Arm('stim_choice'),
    'choice_reward': Arm('choice_reward'),
    'stim_choice_reward': Arm('stim_choice_reward'),
    'shift': Arm('stim_choice_reward', True),
}
# Which arm a step shows: those that say more about a choice have more to learn.
SCHEDULE = ('stim_choice', 'stim_choice_reward', 'choice', 'stim_choice', 'shift', 'choice_reward')
# In front of a sequence stands a symbol that names the arm.
FIRST_SYMBOLS = {arm: animals.NUM_SYMBOLS + i for i, arm in enumerate(ARMS)}
TOKENISATION = in_context.Tokenisation(tuple(range(animals.NUM_SYMBOLS + len(ARMS))))


class Batch(NamedTuple):
  """What a step is shown.

  Attributes:
    tokens: int32 [B, T].
    places: int32 [B, W]; the index of the token that predicts each choice.
    chances: float32 [B, W]; of choice 1, given the mouse.
  """

  tokens: np.ndarray
  places: np.ndarray
  chances: np.ndarray


def draw_batch(config: IclHmmMice, step: int) -> Batch:
  """The mice of a step; a function of seed and step."""
  generator = np.random.default_rng([config.seed, step])
  width = config.short_trials if step < config.short_steps else config.num_trials
  return encode_batch(generator, SCHEDULE[step % len(SCHEDULE)], config.batch_size, width)


def encode_batch(generator: np.random.Generator, name: str, count: int, width: int) -> Batch:
  """Fresh mice in the layout of an arm, `width` choices each."""
  arm = ARMS[name]
  drawn = mice.draw(generator, count)
  # The last trial of a shifted sequence shows no choice.
  trials = mice.simulate(
      drawn, generator, num_trials=width + arm.shift, phase=generator.integers(90, size=count))
  chances = mice.predict(drawn, trials)
  if arm.shift:
    chances = np.where(trials.levels == animals.ZERO_LEVEL, chances, trials.choices)
  symbols = animals.encode(
      trials.levels, trials.choices, trials.rewards, arm.layout, shift=arm.shift)
  tokens = np.concatenate([np.full((count, 1), FIRST_SYMBOLS[name], np.int32), symbols], axis=1)
  places = animals.label_positions(arm.layout, width + arm.shift, shift=arm.shift)
  return Batch(tokens[:, :-1], np.tile(places.astype(np.int32), (count, 1)),
               chances[:, :width].astype(np.float32))


def loss_fn(model: ModelFns, params: Params, batch: Batch) -> tuple[WeightedMean, dict[str, Any]]:
  """The expected loss, nats a choice, and train/divergence: what is lost to who knows the mouse."""
  choices = jnp.asarray(animals.CHOICE_SYMBOLS)
  found = in_context.symbol_log_probs(model, params['policy'], batch.tokens, choices)
  found = jnp.take_along_axis(found, batch.places[..., None], axis=1)
  laws = jnp.stack([1 - batch.chances, batch.chances], axis=-1)
  mean = lambda x: WeightedMean(jnp.sum(x), jnp.float32(batch.chances.size))
  known = jax.scipy.special.entr(laws)
  return mean(-laws * found), {'train/divergence': mean(-laws * found - known)}


def make_model(config: IclHmmMice) -> ModelFns:
  """The predictor."""
  return policy_lib.make(dataclasses.replace(config.model, vocab_size=len(TOKENISATION.symbol_ids)))


def meta_train(run: launch.Run, stopper: loop.Stopper) -> Params:
  """Trains the predictor, or goes on with it; its parameters."""
  config: IclHmmMice = run.config
  model, options = make_model(config), optim.for_run(config.optimizer, config.steps)
  optimizer = optim.make_optimizer(options)
  key = rng.base_key(config.seed)

  def init():
    params = {'policy': model.init(rng.stream_key(key, rng.INIT))}
    return TrainState(jnp.int32(0), params, optimizer.init(params), key, aux={})

  train_step = jax.jit(
      lambda state, batch: step_lib.take_step(
          lambda params, batch: loss_fn(model, params, batch), optimizer, state, batch),
      donate_argnums=0)
  state = jax.jit(init)()
  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints')
  with contextlib.closing(saved), contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    keeper = loop.Keeper(
        saved, files={'metrics': writer}, total=config.steps, save_every=config.save_every,
        stopper=stopper, on_save=run.save_clock)
    restored = keeper.restore(state)
    start, state = (restored.step, restored.state) if restored else (0, state)
    shown = {}
    with loop.progress(config.steps, 'meta-training on simulated mice', start) as bar:
      for step in range(start, config.steps):
        state, update = train_step(state, draw_batch(config, step))
        logs = loop.should(config.log_every, step) or step == config.steps - 1
        if logs:
          values = writer.write(step, update)
          shown = {'loss': values['train/loss'], 'arm': SCHEDULE[step % len(SCHEDULE)]}
        if logs or loop.should(config.save_every, step + 1) or stopper.requested:
          loop.check_finite(step, metrics.to_floats(update), last_saved=keeper.last_saved)
        bar.update(1, **shown)
        keeper.after_step(step + 1, state)
  return state.params['policy']
