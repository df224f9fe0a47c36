"""Few labels with images: episodes of n classes and k examples each, over frozen features.

An episode's labelled and unlabelled examples are connected by a graph of nearest neighbours with
Gaussian weights, and classified together: by prototypes alone, by prototypes refined with the
unlabelled examples, by label propagation, by prototypes of features filtered by the graph, and by a
graph network with the metric head of Shoestring, trained from scratch on each episode. The features
come from any npz file; without one they are generated, and the numbers then say nothing about
images. Finished batches are saved: the same command resumes with the next one.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.shoestring_few_shot.config import FewShot
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.evaluation import intervals, statistics
from jaxrl_llm.graphs import episodes, network
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import artefacts, figures, launch
from jaxrl_llm.training import loop, metrics, optim, rng

METHODS = {
    'prototypes': 'prototypes',
    'refined': 'prototypes, refined',
    'lp': 'label propagation',
    'filtered': 'prototypes of filtered features',
    'gcn_softmax': 'graph network with the metric head, softmax',
    'gcn_prototypes': 'graph network with the metric head, prototypes',
}


class Classifier:
  """All methods on one episode, compiled for a batch of episodes."""

  def __init__(self, config: FewShot, shots: int, width: int):
    self._config = config
    self._num_support = config.way * shots
    self._network = network.make(
        num_features=width, width=config.width, num_classes=config.way, dropout=config.dropout)
    self._algorithm = shoestring.make(
        config.algorithm, self._network, optim.make_optimizer(optim.OptimizerConfig(
            name='adam', learning_rate=config.learning_rate, max_grad_norm=0.0)))
    self.classify = jax.jit(jax.vmap(self._classify))

  def scores(self, index: Array, features: Array, labels: Array) -> dict[str, Array]:
    """Scores of every example for every class in one episode, by method.

    Args:
      index: int32 []; index of the episode.
      features: [M, D], labelled examples first.
      labels: int32 [M]; read only for the labelled examples.

    Returns:
      [M, n] by the names of `METHODS`.
    """
    config, count = self._config, labels.shape[0]
    support = (jnp.arange(count) < self._num_support).astype(jnp.float32)
    adjacency = network.gaussian_graph(features, neighbours=config.neighbours)
    known = support[:, None] * jax.nn.one_hot(labels, config.way)
    filtered = network.propagate(adjacency, features, alpha=config.feature_alpha)

    refining = dataclasses.replace(config.algorithm, refinement_ratio=config.refinement_ratio)

    def by_prototypes(algorithm, rows):
      return shoestring.metric_scores(algorithm, rows, labels, support, num_classes=config.way)

    by_network = shoestring.scores(
        config.algorithm, self._train(index, features, adjacency, labels), labels, support,
        1 - support)

    return {
        'prototypes': by_prototypes(config.algorithm, features),
        'refined': by_prototypes(refining, features),
        'lp': network.propagate(adjacency, known, alpha=config.label_alpha),
        'filtered': by_prototypes(config.algorithm, filtered),
        'gcn_softmax': by_network['softmax'], 'gcn_prototypes': by_network['metric'],
    }

  def _classify(self, index: Array, features: Array, labels: Array) -> dict[str, Array]:
    """Accuracy on the queries of one episode, by method."""
    queries = slice(self._num_support, None)
    is_correct = {name: (jnp.argmax(values, axis=-1) == labels)[queries]
                  for name, values in self.scores(index, features, labels).items()}
    return {name: jnp.mean(values.astype(jnp.float32)) for name, values in is_correct.items()}

  def _train(self, index: Array, features: Array, adjacency: Array, labels: Array) -> Array:
    """Outputs [M, n] of a network trained on this episode."""
    rows = slice(self._num_support)
    batch = shoestring.Batch(network.Inputs(features, adjacency, adjacency[rows]), labels[rows],
                             jnp.ones(self._num_support))
    key = rng.stream_key(rng.base_key(self._config.seed), rng.DATA, index)
    params = self._network.init(rng.stream_key(key, rng.INIT))
    state = self._algorithm.init(rng.stream_key(key, rng.DROPOUT), {'network': params})

    step = lambda state, _: (self._algorithm.train_step(state, batch)[0], None)
    state, _ = jax.lax.scan(step, state, length=self._config.steps)
    outputs = self._network.apply(
        state.params['network'], network.Inputs(features, adjacency, adjacency))
    # NaN if an update was skipped: the episode has diverged.
    return jnp.where(state.step == self._config.steps, outputs, jnp.nan)


def check_features(run: launch.Run, data: episodes.Features) -> str:
  """SHA-256 of the features, saved so that a resumed run can check it.

  Raises:
    ValueError: the run began with other features, or the file is damaged; one line.
  """
  digest = hashlib.sha256(repr(data.features.shape).encode())
  for array in data:
    digest.update(np.ascontiguousarray(array))

  ours, path = digest.hexdigest(), run.workdir / 'features.json'
  identity = arms_lib.identity_of('shoestring_few_shot', run.config)
  if not path.exists():
    artefacts.write(path, ours, identity, commit=run.commit)
  theirs = artefacts.read(path, identity)
  if theirs != ours:
    raise ValueError(f'the features must be those that {run.workdir} began with (SHA-256 '
                     f'{theirs[:12]}...), got others ({ours[:12]}...); give another --workdir')
  return ours


def play(
    run: launch.Run, data: episodes.Features, digest: str, shots: int, bar
) -> dict[str, np.ndarray]:
  """Accuracy of every episode by method, [E]; finished batches are read from disk.

  Args:
    run: the run.
    data: the features.
    digest: their digest, from `check_features`.
    shots: labelled examples per class.
    bar: progress bar.

  Returns:
    float64 [E] by the names of `METHODS`.
  """
  config = run.config
  classifier = Classifier(config, shots, data.features.shape[1])
  draw = functools.partial(episodes.draw_episode, data, way=config.way, shots=shots,
                           queries=config.queries, seed=config.seed)

  def classify(begin):
    indices = begin + np.arange(config.batch_size, dtype=np.int32)
    drawn = [draw(index=int(index)) for index in indices]
    return classifier.classify(
        indices, np.stack([e.features for e in drawn]), np.stack([e.labels for e in drawn]))

  parts = []
  for begin in range(0, config.episodes, config.batch_size):
    path = run.workdir / 'arms' / f'{shots}shot_{begin}.npz'
    identity = arms_lib.identity_of(
        'shoestring_few_shot', config, features=digest, shots=shots, begin=begin)
    parts.append(arms_lib.finished(
        path, identity, functools.partial(classify, begin), commit=run.commit))

    shown = {name: float(np.concatenate([p[name] for p in parts]).mean())
             for name in ('prototypes', 'lp')}
    bar.update(config.batch_size, shots=str(shots), **shown)
    run.save_clock()
  return {name: np.concatenate([part[name] for part in parts]).astype(np.float64)
          for name in METHODS}


def summarise(config: FewShot, outcomes: dict[int, dict[str, np.ndarray]]) -> dict[str, float]:
  """Numbers by flat name, as fractions: accuracies, and differences from plain prototypes."""
  numbers = {}
  for shots, arms in outcomes.items():
    for name, values in arms.items():
      prefix = f'eval/{name}/{config.way}way_{shots}shot'
      mean, error = statistics.mean_and_standard_error(values)
      numbers |= {f'{prefix}/accuracy': float(mean), f'{prefix}/accuracy_se': float(error)}
      if name != 'prototypes':
        gain = intervals.paired_interval(values, arms['prototypes'])
        numbers |= {f'{prefix}/difference': gain.mean, f'{prefix}/difference_low': gain.low,
                    f'{prefix}/difference_high': gain.high}
  return numbers


def table(config: FewShot, outcomes: dict[int, dict[str, np.ndarray]]) -> str:
  """Table of means with 95 % intervals over episodes."""
  def cell(values):
    mean, error = statistics.mean_and_standard_error(100 * values)
    return f'{mean:.2f} ± {1.96 * error:.2f}'

  rows = [[text, *(cell(arms[name]) for arms in outcomes.values())]
          for name, text in METHODS.items()]
  header = ['accuracy (%, 95 % interval over episodes)',
            *(f'{config.way}-way {shots}-shot' for shots in outcomes)]
  return figures.markdown_table(header, rows)


def source(config: FewShot) -> str:
  """Description of the source of the features."""
  return f'features of {config.features_file}' if config.features_file else 'generated features'


def write_figure(run: launch.Run, outcomes: dict[int, dict[str, np.ndarray]]) -> None:
  """Plots accuracy by method, one panel per number of shots; writes the data as CSV."""
  path, rows = run.workdir / 'figures' / 'accuracy.png', []
  title = f'Episodes, {source(run.config)}: means with 95 % intervals'
  with figures.figure(path, len(outcomes), title=title) as panels:
    for panel, (shots, arms) in zip(panels, outcomes.items()):
      for i, name in enumerate(METHODS):
        mean, error = statistics.mean_and_standard_error(arms[name])
        panel.errorbar(100 * mean, -i, xerr=196 * error, fmt='o', color='#1b6ca8', capsize=3)
        rows.append((shots, name, float(mean), float(error)))

      panel.set(xlabel='accuracy (%)', title=f'{run.config.way}-way {shots}-shot')
      names = [name.replace(' with ', '\nwith ') for name in METHODS.values()]
      panel.set_yticks([-i for i in range(len(METHODS))],
                       names if panel is panels[0] else [''] * len(names))

    limits = [panel.get_xlim() for panel in panels]  # One common scale makes gaps comparable.
    for panel in panels:
      panel.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
  metrics.write_csv_atomic(
      path.with_suffix('.csv'), ['shots', 'method', 'accuracy', 'standard_error'], rows)


def write_metrics(run: launch.Run, outcomes: dict[int, dict[str, np.ndarray]]) -> None:
  """Writes the mean accuracy of each batch of episodes to metrics.jsonl."""
  size = run.config.batch_size
  with contextlib.closing(metrics.MetricsWriter(run.workdir)) as writer:
    writer.truncate([])
    for begin in range(0, run.config.episodes, size):
      writer.write(begin, {
          f'eval/{name}/{run.config.way}way_{shots}shot': values[begin : begin + size].mean()
          for shots, arms in outcomes.items() for name, values in arms.items()})


def main(run: launch.Run) -> None:
  """Runs all episodes and writes the table, the figure and results.json."""
  config = run.config
  data = config.features()
  for shots in config.shots:  # Fail before anything is computed.
    episodes.draw_episode(data, way=config.way, shots=shots, queries=config.queries,
                          seed=config.seed, index=0)
  digest = check_features(run, data)
  with loop.progress(config.episodes * len(config.shots), 'episodes') as bar:
    outcomes = {shots: play(run, data, digest, shots, bar) for shots in config.shots}

  write_metrics(run, outcomes)
  write_figure(run, outcomes)
  caption = f'Examples: {source(config)}.' + (
      '' if config.features_file else ' They say nothing about images (config.features_file).')

  report = '\n\n'.join(filter(None, [table(config, outcomes), caption, config.note]))
  metrics.write_text_atomic(run.table_path, report + '\n')
  launch.write_results(run, {
      **summarise(config, outcomes), 'episodes': config.episodes, 'sampled_tokens': 0,
      'features': config.features_file or 'generated', 'features_sha256': digest})
  print(f'\n{report}\n\nfigure: {run.workdir / "figures" / "accuracy.png"}\n'
        f'results: {run.results_path}')


def _avoid_deadlock() -> None:
  """Turns off XLA's scheduler for concurrent operations, before the first array is made.

  With two threads it deadlocks on this program: every thread waits (jaxlib 0.10.2, AMD EPYC). A
  later XLA may not know the flag, and ends the process for unknown ones.
  """
  if jax.__version__.startswith('0.10.'):
    os.environ['XLA_FLAGS'] = ' '.join(filter(None, [
        os.environ.get('XLA_FLAGS'), '--xla_cpu_enable_concurrency_optimized_scheduler=false']))


if __name__ == '__main__':
  _avoid_deadlock()
  launch.run(main, default_config='experiments/configs/shoestring_few_shot.py')
