"""Few labels with images: episodes of n classes and k examples each, over frozen features.

An episode's labelled and unlabelled examples are connected by a graph of nearest neighbours with
Gaussian weights, and classified together: by prototypes alone, by prototypes refined with the
unlabelled examples, by label propagation, by prototypes of features filtered by the graph, and by a
graph network with the metric head of Shoestring, trained from scratch on each episode. The features
come from any npz file; without one they are generated, and the numbers then say nothing about
images. Finished batches are saved: the same command resumes with the next one.
"""

import functools
import hashlib
import os

import jax
import numpy as np

from experiments.shoestring_few_shot import methods
from experiments.shoestring_few_shot import report as few_shot_report
from jaxrl_llm.graphs import episodes
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import artefacts, launch
from jaxrl_llm.training import loop, metrics


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
    float64 [E] by the names of `methods.METHODS`.
  """
  config = run.config
  classifier = methods.Classifier(config, shots, data.features.shape[1])
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
          for name in methods.METHODS}


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

  few_shot_report.write_metrics(run, outcomes)
  few_shot_report.write_figure(run, outcomes)
  caption = f'Examples: {few_shot_report.source(config)}.' + (
      '' if config.features_file else ' They say nothing about images (config.features_file).')

  table = few_shot_report.table(config, outcomes)
  report = '\n\n'.join(filter(None, [table, caption, config.note]))
  metrics.write_text_atomic(run.table_path, report + '\n')
  launch.write_results(run, {
      **few_shot_report.summarise(config, outcomes),
      'episodes': config.episodes, 'sampled_tokens': 0,
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
