"""Starts a program like its command, with probes: `python -m tests.system.child PROBES NAME ...`.

PROBES is a JSON object, any of:
  die: [point, n]; SIGKILL at the n-th time that the point is reached:
    'checkpoint': a checkpoint has been written to a temporary directory that is not renamed yet;
    'params': the same for the parameters that fine-tuning saves;
    a name such as 'stage1.jsonl': half a line of that file has been written;
    'results': results.json is about to be renamed.
  slow: seconds to wait before each line of a JSONL file, so that an observer can keep up.
  record: a file for internals of the run (`_Recorder`).

The arguments after NAME are those of `python -m experiments.NAME`.
"""

import collections
import importlib
import importlib.util
import json
import os
import pathlib
import signal
import sys
import time
import typing

from jaxrl_llm.runs import command_line, launch
from jaxrl_llm.training import checkpoints, metrics


def _die() -> None:
  os.kill(os.getpid(), signal.SIGKILL)


def _install_death(point: str, count: int) -> None:
  seen = collections.Counter()

  def reached() -> bool:
    seen[point] += 1
    return seen[point] == count

  write_checksums, write_line, replace = (
      checkpoints._write_checksums, metrics.JsonlFile.write, os.replace
  )

  def dying_checksums(folder):
    kind = 'params' if folder.name.startswith('.params') else 'checkpoint'
    if kind == point and reached():
      _die()
    write_checksums(folder)

  def dying_line(self, record):
    if self.path.name == point and reached():
      line = json.dumps(metrics.plain(record)).encode()
      self._file.write(line[: len(line) // 2])
      self._file.flush()
      _die()
    write_line(self, record)

  def dying_replace(source, target):
    if point == 'results' and pathlib.Path(target).name == 'results.json' and reached():
      _die()
    replace(source, target)

  checkpoints._write_checksums = dying_checksums
  metrics.JsonlFile.write = dying_line
  os.replace = dying_replace


def _install_slowness(seconds: float) -> None:
  write_line = metrics.JsonlFile.write

  def slow_line(self, record):
    time.sleep(seconds)
    write_line(self, record)

  metrics.JsonlFile.write = slow_line


class _Recorder:
  """Records as JSON: compilations, fingerprints of the reference, prompts with their V*."""

  def __init__(self, path: str):
    from experiments.a_star_po import __main__ as a_star_po_main
    from experiments.a_star_po import report
    from experiments.a_star_po import stage1 as stage1_lib
    from jaxrl_llm.training import fingerprint, step

    self.path = path
    self.record = {'compiled_at': [], 'reference': [], 'batches': []}
    self.counting = step.count_compilations()
    self.counts = self.counting.__enter__()
    self._wrap(metrics.MetricsWriter, 'write', self._note_compilations)
    note_reference = lambda reference: self.record['reference'].append(
        [reference.fingerprint, fingerprint.of_params(reference.params)])
    self._wrap(stage1_lib, 'estimate', lambda setup, ref: note_reference(ref))
    self._wrap(report, 'write', lambda setup, ref, *rest: note_reference(ref))
    self._wrap(a_star_po_main, 'Batch', self._note_batch)

  def _wrap(self, holder, name, note) -> None:
    original = getattr(holder, name)

    def wrapped(*args):
      note(*args)
      return original(*args)

    setattr(holder, name, wrapped)

  def _note_compilations(self, writer, step, values) -> None:
    del writer, values
    self.record['compiled_at'].append([step, dict(self.counts)])

  def _note_batch(self, rollouts, rewards, reference_log_probs, aux, weight) -> None:
    import numpy as np

    del reference_log_probs, weight
    lengths = np.asarray(rollouts.prompt_lengths)
    prompts = [row[len(row) - n :] for row, n in zip(np.asarray(rollouts.prompts), lengths)]
    self.record['batches'].append({
        'prompts': [prompt.tolist() for prompt in prompts],
        'values': np.asarray(aux['values']).tolist(), 'rewards': rewards[:, 0].tolist(),
    })

  def write(self) -> None:
    """Writes the record."""
    self.record['compiled'] = dict(self.counts)
    metrics.write_json_atomic(self.path, self.record)


def run(name: str, *arguments: str) -> typing.NoReturn:
  """Runs `python -m experiments.NAME` in this process, by default on the tiny config."""
  package = importlib.util.find_spec(f'experiments.{name}').submodule_search_locations
  program = importlib.import_module(f'experiments.{name}{".__main__" if package else ""}')
  config, _ = command_line.split_config(arguments)
  launch.run(
      program.main, default_config=config or 'tests/system/tiny_config.py', experiment=name,
      argv=[name, *arguments])


def main() -> None:
  """Installs the probes and runs the program."""
  probes, name, arguments = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
  recorder = _Recorder(probes['record']) if 'record' in probes else None
  if 'die' in probes:
    _install_death(*probes['die'])

  if 'slow' in probes:
    _install_slowness(probes['slow'])
  try:
    run(name, *arguments)
  finally:
    if recorder:
      recorder.write()


if __name__ == '__main__':
  main()
