"""Hidden Markov models learnt in context by a small network trained for this task.

Every step draws fresh HMMs. Held-out ones measure how far its predictions are from those of the
filter, which knows the HMM, at each number of symbols seen. Baselines in the same context are
bigrams, and Baum-Welch on some of the sequences. The published HMMs, which are constructed
differently, are predicted too.

Given the HMM and the symbols seen, the label's distribution is known (the filter's): accuracy, loss
and distance are averaged over it exactly, so that no prediction can seem better than the filter's.
"""

import contextlib
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.icl_hmm import report as icl_hmm_report
from experiments.icl_hmm.config import IclHmm
from jaxrl_llm.algorithms import icl_hmm
from jaxrl_llm.hmm import (
  filtering,
  in_context,
  learners,
  oracles,
  published_results,
  random_models,
)
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.runs import launch
from jaxrl_llm.training import checkpoints, loop, metrics, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import ModelFns, Params

BIGRAM_SMOOTHING = 0.1  # Added to each count: without it a bigram has infinite loss.
EVALUATION_ROWS = 256  # Sequences at a time.


@functools.partial(jax.jit, static_argnames='length')
def trajectories(key, initial, transition, emission, *, length: int) -> icl_hmm.Trajectories:
  """One trajectory of each HMM, with its symbols' distributions given the HMM and the past.

  Args:
    key: PRNG key; folded for each HMM.
    initial: float32 [B, M]; π.
    transition: float32 [B, M, M]; A.
    emission: float32 [B, M, L]; B.
    length: T; T + 1 symbols are drawn.

  Returns:
    `Trajectories`.
  """
  def one(index, *model):
    _, symbols = filtering.sample(jax.random.fold_in(key, index), *model, length + 1)
    predictions = oracles.predict_next(*model, symbols[:-1])[1:]
    return icl_hmm.Trajectories(symbols=symbols, predictions=predictions)

  return jax.vmap(one)(jnp.arange(len(initial)), initial, transition, emission)


def draw(config: IclHmm, stream: rng.Stream, step: int, count: int):
  """(HMMs of a step, one trajectory of each): a pure function of the seed and the step."""
  generator = np.random.default_rng([config.seed, stream, step])
  models = random_models.sample_hmms(
      generator, count, num_states=config.num_states, num_symbols=config.num_symbols,
      lambda2=(config.lambda2_low, config.lambda2_high))
  key = rng.stream_key(rng.base_key(config.seed), stream, step)
  return models, trajectories(
      key, *(np.asarray(x, np.float32) for x in models[:3]), length=config.length)


def train(run: launch.Run, policy: ModelFns, stopper: loop.Stopper) -> Params:
  """Meta-trains the network; resumes from the newest checkpoint."""
  config: IclHmm = run.config
  optimizer = optim.for_run(config.optimizer, config.steps)
  algorithm = icl_hmm.make(config.algorithm, policy, optim.make_optimizer(optimizer))
  key = rng.base_key(config.seed)
  state = algorithm.init(
      key, {'policy': jax.jit(policy.init)(rng.stream_key(key, rng.Stream.INIT))})
  train_step = step_lib.jit_train_step(algorithm.train_step)

  saved = checkpoints.Checkpoints(run.workdir / 'checkpoints', identity=run.identity)
  with contextlib.closing(saved), contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    keeper = loop.Keeper(
        saved, files={'metrics': writer}, total=config.steps, save_every=config.save_every,
        stopper=stopper, on_save=run.save_clock)
    restored = keeper.restore(state)
    start, state = (restored.step, restored.state) if restored else (0, state)

    shown, pending = {}, loop.PendingCheck()
    with loop.progress(config.steps, 'meta-training', start) as bar:
      for step in range(start, config.steps):
        _, batch = draw(config, rng.Stream.DATA, step, config.batch_size)
        state, update = train_step(state, batch)
        pending.add(step, update)

        logs = loop.should(config.log_every, step) or step == config.steps - 1
        if logs:
          values = writer.write(step, {
              **update, 'train/learning_rate': optim.learning_rate_at(optimizer, step)})
          shown = {'divergence': values['train/divergence']}
        if logs or loop.should(config.save_every, step + 1) or stopper.requested:
          pending.check(last_saved=keeper.last_saved)
        bar.update(1, **shown)
        keeper.after_step(step + 1, state)
  return state.params['policy']


def score(predictions: jax.Array, distributions: jax.Array) -> dict[str, jax.Array]:
  """Accuracy, loss (nats) and Hellinger distance, expected under the label's distribution.

  Args:
    predictions: float [..., L]; predicted distributions of the next symbol.
    distributions: float [..., L]; its true distributions.

  Returns:
    float [...] each.
  """
  choice = jnp.argmax(predictions, axis=-1, keepdims=True)
  logs = jnp.log(jnp.maximum(predictions, 1e-30))
  return {
      'accuracy': jnp.take_along_axis(distributions, choice, axis=-1)[..., 0],
      'nll': -jnp.sum(distributions * logs, axis=-1),
      'hellinger': filtering.hellinger(predictions, distributions),
  }


def predict_bigrams(symbols: jax.Array, num_symbols: int) -> jax.Array:
  """Counts of what followed the last symbol so far, with `BIGRAM_SMOOTHING` added, normalised.

  Args:
    symbols: int [B, T].
    num_symbols: L.

  Returns:
    float32 [B, T, L]; row t predicts symbol t + 1 from symbols 0 to t.
  """
  one_hot = jax.nn.one_hot(symbols, num_symbols)
  same = jnp.einsum('bti,bsi->bts', one_hot, one_hot)  # Whether symbol s is symbol t.
  before = jnp.tril(jnp.ones((symbols.shape[1],) * 2), k=-1)
  follows = jnp.pad(one_hot[:, 1:], [(0, 0), (0, 1), (0, 0)])
  counts = jnp.einsum('bts,bsi->bti', same * before, follows) + BIGRAM_SMOOTHING
  return counts / counts.sum(axis=-1, keepdims=True)


def _keys(key: jax.Array, count: int) -> jax.Array:
  return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))


def predict_baum_welch(config: IclHmm, symbols: np.ndarray, lengths: np.ndarray) -> np.ndarray:
  """Predictions of the best of several Baum-Welch fits to each prefix.

  Args:
    config: `baum_welch_restarts`, `baum_welch_steps` and the size of the HMM are used.
    symbols: int [B, T].
    lengths: int [K]; prefix lengths.

  Returns:
    float32 [B, K, L].
  """
  key = rng.stream_key(rng.base_key(config.seed), rng.Stream.SAMPLE_CONTROL)
  draw_start = functools.partial(
      learners.random_parameters, num_states=config.num_states, num_symbols=config.num_symbols)

  @jax.jit
  def fit(key, observations, length):
    starts = jax.vmap(draw_start)(_keys(key, config.baum_welch_restarts))
    seen = jnp.where(jnp.arange(len(observations)) < length, observations, -1)
    fitted = learners.fit_best(starts, seen, max_steps=config.baum_welch_steps).parameters
    return oracles.predict_next(*fitted, observations, length[None])[0]

  every = jax.vmap(jax.vmap(fit, (None, None, 0)), (0, 0, None))
  return np.asarray(every(
      _keys(key, len(symbols)), symbols[:, : lengths[-1]], jnp.asarray(lengths)))


def make_measure(config: IclHmm, policy: ModelFns, params: Params, lengths: np.ndarray):
  """Returns a jitted function: `Trajectories` of B HMMs -> {method: {score: float [B, K]}}."""
  ids = jnp.arange(config.num_symbols)

  @jax.jit
  def measure(batch: icl_hmm.Trajectories):
    symbols = batch.symbols[:, :-1]
    methods = {
        'icl': jnp.exp(in_context.symbol_log_probs(policy, params, symbols, ids)),
        'filter': batch.predictions, 'bigram': predict_bigrams(symbols, config.num_symbols)}
    return {name: jax.tree.map(lambda x: x[:, lengths - 1], score(x, batch.predictions))
            for name, x in methods.items()}

  return measure


def recorded_hmms(config: IclHmm) -> list[published_results.RecordedHmm]:
  """The HMMs of the published file with as many symbols as the network's vocabulary."""
  if not config.results_file:
    return []
  return [model for model in published_results.read(config.results_file, methods={})
          if model.emission.shape[1] == config.num_symbols]


def evaluate_recorded(config: IclHmm, measure, models: Sequence[published_results.RecordedHmm]):
  """Means over trajectories, each with permuted symbols: {method: {score: float [R, K]}}."""
  count, means = config.recorded_sequences, []

  def repeat(x):
    return np.tile(np.asarray(x, np.float32), (count, *(1,) * np.ndim(x)))

  with loop.progress(len(models), 'published HMMs') as bar:
    for index, model in enumerate(models):
      stream = rng.Stream.SAMPLE_CONTROL, index + 1  # Step 0 is that of Baum-Welch.
      order = np.random.default_rng([config.seed, *stream]).permuted(
          np.tile(np.arange(config.num_symbols), (count, 1)), axis=1)
      emission = np.take_along_axis(repeat(model.emission), order[:, None, :], axis=2)
      batch = trajectories(
          rng.stream_key(rng.base_key(config.seed), *stream), repeat(model.initial),
          repeat(model.transition), emission, length=config.length)
      means.append(jax.tree.map(lambda x: x.mean(axis=0), jax.device_get(measure(batch))))
      bar.update(1)
  return jax.tree.map(lambda *x: np.stack(x), *means)


def evaluate(run: launch.Run, policy: ModelFns, params: Params) -> icl_hmm_report.HeldOut:
  """Scores on held-out HMMs from their own random stream, and on published ones."""
  config: IclHmm = run.config
  lengths = np.array([n for n in 2 ** np.arange(2, 16) if n <= config.length])
  measure = make_measure(config, policy, params, lengths)

  parts, models, first = [], [], None
  count = -(-config.num_evaluation // EVALUATION_ROWS)
  with loop.progress(count, 'held-out HMMs') as bar:
    for index in range(count):
      model, batch = draw(config, rng.Stream.SAMPLE_EVAL, index, EVALUATION_ROWS)
      parts.append(jax.device_get(measure(batch)))
      models.append(model)
      first = first or batch
      bar.update(1)

  def concatenate(*x):
    return np.concatenate(x)[: config.num_evaluation]

  baum_welch = None
  if rows := min(config.baum_welch_sequences, config.num_evaluation, EVALUATION_ROWS):
    short = lengths[lengths <= 64]
    predicted = predict_baum_welch(config, np.asarray(first.symbols[:rows]), short)
    baum_welch = jax.device_get(score(predicted, first.predictions[:rows, short - 1]))

  published = recorded_hmms(config)
  return icl_hmm_report.HeldOut(
      lengths, jax.tree.map(concatenate, *parts), jax.tree.map(concatenate, *models), baum_welch,
      evaluate_recorded(config, measure, published) if published else None, published)


def main(run: launch.Run) -> None:
  """Trains, evaluates, and writes the table, the figures and results.json."""
  policy = policy_lib.make(run.config.network)
  recorded_hmms(run.config)  # Fail on an unreadable file now, not after training.
  with loop.Stopper() as stopper:
    params = train(run, policy, stopper)
  checkpoints.save_params(run.workdir / 'params', {'policy': params}, {})
  icl_hmm_report.write(run, evaluate(run, policy, params))
