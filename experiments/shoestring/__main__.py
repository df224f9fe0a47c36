"""Shoestring: node classification with very few labels per class, honest and as released.

Each backbone of the config is trained with each head (none, or a metric head) on random splits with
n labels per class, and tested on all other labelled nodes. One network is read in several ways: by
its softmax, by prototypes of the training labels (honest), and by prototypes of the test labels (as
in the released code; `leaky`). The splits of an arm run in parallel; finished arms are saved: the
same command resumes with the next one.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from experiments.shoestring import criteria as shoestring_criteria
from experiments.shoestring import data, heads
from experiments.shoestring import report as shoestring_report
from jaxrl_llm.algorithms import shoestring
from jaxrl_llm.graphs import network
from jaxrl_llm.graphs.prototypes import METRICS
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import artefacts, criteria, launch
from jaxrl_llm.training import loop, metrics


class Study:
  """All arms of a run; finished arms are read from disk instead of trained."""

  def __init__(self, run: launch.Run):
    self._run, self._config = run, run.config
    self._graph = data.load_graph(run)
    self._graph_digest = artefacts.digest(dataclasses.asdict(self._graph))
    self._adjacency = network.normalised_adjacency(self._graph.edges, self._graph.num_nodes)
    self._trainers: dict[str, heads.Trainer] = {}
    self._readers: dict[str, Any] = {}
    self._states = None
    self._inputs: tuple[str, network.Inputs] | None = None

  def _trainer(self, head: str, **changes) -> heads.Trainer:
    name = head + str(changes)
    if name not in self._trainers:
      self._trainers[name] = heads.Trainer(
          self._config, self._graph, dataclasses.replace(self._algorithm(head), **changes))
    return self._trainers[name]

  def _train(self, trainer: heads.Trainer, *arguments):
    if self._states is None:
      self._states = trainer.start()
    return trainer.train(self._states, *arguments)

  def _read(self, head: str, outputs: np.ndarray, split: data.Split) -> dict[str, np.ndarray]:
    """Reads outputs; at λ = 0 with every metric, so that each head has an equal comparison."""
    if head not in self._readers:
      others = tuple(m for m in METRICS if m != 'cos') if head == 'softmax' else ()
      self._readers[head] = heads.make_reader(self._config, self._algorithm(head), others)
    accuracies = self._readers[head](outputs, self._graph.labels, split.train_mask(), split.test)
    return {name: np.asarray(value, np.float64) for name, value in accuracies.items()}

  def _algorithm(self, head: str) -> shoestring.Config:
    if head == 'softmax':
      return dataclasses.replace(self._config.algorithm, metric_coefficient=0.0)
    return dataclasses.replace(self._config.algorithm, metric=head)

  def _full_inputs(self, backbone: str) -> network.Inputs:
    """Inputs of a backbone; cached for one backbone at a time, as the filters are large."""
    if self._inputs is None or self._inputs[0] != backbone:
      graph = self._graph
      self._inputs = backbone, network.full_inputs(
          network.BACKBONES[backbone], self._adjacency,
          network.SparseRows(graph.indices, graph.values), graph.num_features)
    return self._inputs[1]

  def _play(self, backbone: str, head: str, labels: int | str, bar, title: str, **changes):
    """Runs one arm."""
    graph, split = self._graph, data.make_split(self._config, self._graph, labels)
    if _is_propagation(backbone):
      outputs = network.label_propagation(
          network.BACKBONES[backbone], self._adjacency, graph.labels, split.train,
          graph.num_classes)
      unreached = split.test * network.unreached(outputs)
      more = {'loss': np.zeros((len(outputs), 0)),
              'unreached': unreached.sum(axis=1) / split.test.sum(axis=1)}
      bar.update(0, arm=title)
    else:
      outputs, losses = self._train(
          self._trainer(head, **changes), self._full_inputs(backbone), graph.labels, split, bar,
          title)
      more = {'loss': losses}
    return self._read(head, outputs, split) | more

  def arms(self) -> list[tuple[str, str, int | str, dict]]:
    """(backbone, head, labels, config changes) of every arm, in running order."""
    config = self._config
    arms = [(backbone, head, labels, {}) for backbone in config.chosen_backbones()
              for head in config.chosen_heads(backbone)
              for labels in config.labels_per_class]
    if config.public_split:
      arms += [('gcn', 'softmax', data.PUBLIC, {'decay': decay}) for decay in ('all', 'first')]
    return arms

  def play(self) -> dict[tuple[str, ...], dict[str, np.ndarray]]:
    """Runs all arms; arrays by (backbone, head, 'n1' and so on, or 'public/all' and so on)."""
    outcomes, arms = {}, self.arms()
    trained = [arm for arm in arms if not _is_propagation(arm[0])]

    with loop.progress(self._config.steps * len(trained), 'epochs') as bar:
      for backbone, head, labels, changes in arms:
        last = f'{data.PUBLIC}/{changes["decay"]}' if labels == data.PUBLIC else f'n{labels}'
        title = f'{backbone}_{head}_{last}'.replace('/', '_')
        path = self._run.workdir / 'arms' / f'{title}.npz'
        if path.exists() and not _is_propagation(backbone):
          bar.update(self._config.steps, arm=title)

        identity = arms_lib.identity_of(
            'shoestring', self._config, arm=title, graph=self._graph_digest)
        outcomes[backbone, head, last] = arms_lib.finished(path, identity, functools.partial(
            self._play, backbone, head, labels, bar, title, **changes), commit=self._run.commit)
        self._run.save_clock()
    return outcomes


def _is_propagation(backbone: str) -> bool:
  return network.BACKBONES[backbone].where == 'labels'


def main(run: launch.Run) -> None:
  """Runs all arms and writes the table, the figure and results.json."""
  config = run.config
  outcomes = Study(run).play()
  numbers = shoestring_report.summarise(outcomes)
  findings = shoestring_criteria.findings(config.dataset, outcomes)

  shoestring_report.write_metrics(run, outcomes)
  shoestring_report.write_figure(run.workdir / 'figures' / 'accuracy.png', outcomes)
  shoestring_report.write_splits(run.workdir / 'accuracy_by_split.csv', outcomes, config.seed)

  report = '\n\n'.join(filter(None, [
      shoestring_report.table(outcomes), shoestring_report.differences(outcomes),
      shoestring_report.refinement(outcomes, config.refinement_ratios),
      criteria.markdown(findings), config.note]))

  metrics.write_text_atomic(run.table_path, report + '\n')
  launch.write_results(run, {
      **numbers, **{f'criteria/{f.name}': float(f.holds) for f in findings if f.holds is not None},
      'dataset': config.dataset, 'num_splits': config.num_splits, 'sampled_tokens': 0,
  })
  print(f'\n{report}\n\nfigure: {run.workdir / "figures" / "accuracy.png"}\n'
        f'results: {run.results_path}')


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/shoestring_blocks.py')
