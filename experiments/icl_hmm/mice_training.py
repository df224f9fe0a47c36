"""Meta-training on simulated mice: the predictors that learn an animal in context.

Every step draws fresh mice (`hmm.simulated_mice`), encodes their trials in one layout, and predicts
each choice. The mouse is known, so the loss averages over the label:

  L(θ) = − E (1/W) Σ_t Σ_y P(y_t = y | mouse, trials before t) ln π_θ(y | sequence before it)

This has the expected gradient of sampled labels with less noise. In the shifted layout the sequence
already contains the trial's own contrast and reward; the label is then the choice itself, wherever
these two determine it. Each layout has its own network, which starts from the one before: a single
network trained on all layouts at once was worse on each of them.
"""

import contextlib
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.icl_hmm.mice_config import IclHmmMice
from jaxrl_llm.hmm import animals, in_context, simulated_mice
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import launch
from jaxrl_llm.training import checkpoints, loop, metrics, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import ModelFns, Params, TrainState, WeightedMean


class Arm(NamedTuple):
  """A way to encode trials.

  Attributes:
    layout: one of `animals.LAYOUTS`.
    shift: as in `animals.encode`.
  """

  layout: str
  shift: bool = False


# In training order.
ARMS = {
    'stim_choice': Arm('stim_choice'),
    'stim_choice_reward': Arm('stim_choice_reward'),
    'shift': Arm('stim_choice_reward', True),
    'choice_reward': Arm('choice_reward'),
    'choice': Arm('choice'),
}
# One token per symbol, and one that starts every sequence.
TOKENISATION = in_context.Tokenisation(
    tuple(range(animals.NUM_SYMBOLS)), (animals.NUM_SYMBOLS,))


class Batch(NamedTuple):
  """Training batch.

  Attributes:
    tokens: int32 [B, T].
    positions: int32 [B, W]; index of the token that predicts each choice.
    chances: float32 [B, W]; probability of choice 1, given the mouse.
  """

  tokens: np.ndarray
  positions: np.ndarray
  chances: np.ndarray


def num_steps(config: IclHmmMice, arm: str) -> int:
  """Steps of an arm: the first starts from scratch, the others from the arm before."""
  return config.steps if arm == next(iter(ARMS)) else config.further_steps


def draw_batch(config: IclHmmMice, arm: str, step: int) -> Batch:
  """Batch of an arm's step; a pure function of the seed, the arm and the step."""
  generator = np.random.default_rng([config.seed, list(ARMS).index(arm), step])
  count, width = config.batch_size, config.num_trials
  if step < config.short_fraction * num_steps(config, arm):
    count, width = count * width // config.short_trials, config.short_trials
  return encode_batch(generator, arm, count, width)


def encode_batch(generator: np.random.Generator, name: str, count: int, width: int) -> Batch:
  """Encodes fresh mice in the layout of an arm, `width` choices each."""
  arm = ARMS[name]
  drawn = simulated_mice.draw(generator, count)

  # The last trial of a shifted sequence shows no choice.
  trials = simulated_mice.simulate(
      drawn, generator, num_trials=width + arm.shift, phase=generator.integers(90, size=count))
  chances = simulated_mice.predict(drawn, trials)
  if arm.shift:
    chances = np.where(trials.levels == animals.ZERO_LEVEL, chances, trials.choices)
  symbols = animals.encode(
      trials.levels, trials.choices, trials.rewards, arm.layout, shift=arm.shift)

  first = np.full((count, 1), TOKENISATION.prefix_ids[0], np.int32)
  # The prefix shifts tokens by one: the token at a choice's position is the last one before it.
  positions = animals.label_positions(arm.layout, width + arm.shift, shift=arm.shift)
  return Batch(np.concatenate([first, symbols[:, :-1]], axis=1),
               np.tile(positions.astype(np.int32), (count, 1)),
               chances[:, :width].astype(np.float32))


def loss_fn(model: ModelFns, params: Params, batch: Batch) -> tuple[WeightedMean, dict[str, Any]]:
  """Expected loss in nats per choice, and train/divergence, its excess over knowing the mouse."""
  choices = jnp.asarray(animals.CHOICE_SYMBOLS)
  log_probs = in_context.symbol_log_probs(model, params['policy'], batch.tokens, choices)
  log_probs = jnp.take_along_axis(log_probs, batch.positions[..., None], axis=1)
  labels = jnp.stack([1 - batch.chances, batch.chances], axis=-1)
  entropy = jax.scipy.special.entr(labels)

  def mean(x):
    return WeightedMean(jnp.sum(x), jnp.float32(batch.chances.size))

  return mean(-labels * log_probs), {'train/divergence': mean(-labels * log_probs - entropy)}


def make_model(config: IclHmmMice) -> ModelFns:
  """The predictor."""
  return policy_lib.make(dataclasses.replace(config.model, vocab_size=animals.NUM_SYMBOLS + 1))


def make_step(config: IclHmmMice, steps: int):
  """(optimizer, jitted train step) for an arm with `steps` steps."""
  model = make_model(config)
  optimizer = optim.make_optimizer(optim.for_run(config.optimizer, steps))

  def train_step(state, batch):
    return step_lib.take_step(functools.partial(loss_fn, model), optimizer, state, batch)

  return optimizer, jax.jit(train_step, donate_argnums=0)


def meta_train(run: launch.Run, stopper: loop.Stopper) -> dict[str, Params]:
  """Trains the predictors, or resumes; returns parameters by arm, saved in WORKDIR/params."""
  config: IclHmmMice = run.config
  key = rng.stream_key(rng.base_key(config.seed), rng.INIT)
  params = jax.jit(make_model(config).init)(key)
  make = functools.cache(functools.partial(make_step, config))

  params_by_arm, done = {}, {'metrics_position': [], 'steps': 0}
  total = sum(num_steps(config, arm) for arm in ARMS)

  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer, loop.progress(
      total, 'meta-training on simulated mice') as bar:
    for arm in ARMS:
      path = run.workdir / 'params' / arm
      made_from = arms_lib.identity_of(run.experiment, config, arm=arm)
      if not path.exists():
        trained = _train(run, stopper, writer, bar, arm, params, make, done)
        done = {
            'metrics_position': writer.position(),
            'steps': done['steps'] + num_steps(config, arm)}
        checkpoints.save_params(path, trained, {**done, 'made_from': made_from})
      else:
        bar.update(num_steps(config, arm))

      params, done = checkpoints.load_params(
          path, params, expected={'made_from': made_from})
      params_by_arm[arm] = params
    writer.truncate(done['metrics_position'])  # Verifies the log if all arms are finished.
  return params_by_arm


def _train(run, stopper, writer, bar, arm, params, make, done) -> Params:
  """Trains an arm from `params`; `done` holds where the earlier arms ended: steps, metrics."""
  config: IclHmmMice = run.config
  steps, (optimizer, train_step) = num_steps(config, arm), make(num_steps(config, arm))
  params = {'policy': jax.tree.map(jnp.copy, params)}  # The step donates them.
  state = TrainState.create(params, optimizer, rng.base_key(config.seed))

  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints' / arm, identity=run.identity)
  with contextlib.closing(saved):
    keeper = loop.Keeper(
        saved, files={'metrics': writer}, total=steps, save_every=config.save_every,
        stopper=stopper, on_save=run.save_clock,
        base_positions={'metrics': done['metrics_position']})
    restored = keeper.restore(state)
    start, state = (restored.step, restored.state) if restored else (0, state)
    bar.update(start)

    shown, pending = {}, loop.PendingCheck()
    for step in range(start, steps):
      state, update = train_step(state, draw_batch(config, arm, step))
      pending.add(step, update)

      logs = loop.should(config.log_every, step) or step == steps - 1
      if logs:
        named = {name.replace('train', f'train/{arm}'): x for name, x in update.items()}
        values = writer.write(done['steps'] + step, named)
        shown = {'layout': arm, 'divergence': values[f'train/{arm}/divergence']}

      if logs or loop.should(config.save_every, step + 1) or stopper.requested:
        pending.check(last_saved=keeper.last_saved)
      bar.update(1, **shown)
      keeper.after_step(step + 1, state)
  return state.params['policy']
