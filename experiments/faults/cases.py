"""The cases of a campaign: what is done to a run, and how its outcome is judged."""

import contextlib
import ctypes
import os
import pathlib
import random
import re
import shutil
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.faults import damage, invocations, processes, targets
from experiments.faults.config import Faults
from jaxrl_llm.training import metrics

# Outcomes of a case; the last five are failures.
EQUAL, REPAIRED, ONE_LINE = 'equal', 'equal, with a notice', 'one line'
UNCLEAR, WRONG, TRACEBACK, HUNG, ACCEPTED = 'unclear', 'wrong', 'traceback', 'hung', 'accepted'
FAILURES = (UNCLEAR, WRONG, TRACEBACK, HUNG, ACCEPTED)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SNAPSHOTS = (0.35, 0.55, 0.75, 0.9)  # Fractions of a run's duration at which one was killed.
_WHOLE_DIRECTORY = 0.15  # Share of damages to a whole directory.
_SMALL_FILES = ('config.json', 'wall_seconds.json')  # Damaged less often than the others.
_WRONG_COMMAND_SECONDS = 180.0  # It ends in seconds, or in a minute on a busy machine.
_COMPLETE = 0.3  # Share of damaged complete runs that keep results.json.
_ERROR = re.compile(r'^[\w.]+: error: .+$', re.MULTILINE)
_EXCEPTION = re.compile(r'^[\w.]+(?:Error|Exception|Exit|Interrupt|ZipFile)\b.*$', re.MULTILINE)
_NOTICE = re.compile(r'^warning: |\.damaged\b|computed again', re.MULTILINE)


class Case(NamedTuple):
  """One case.

  Attributes:
    index: its number; with the campaign's seed it determines everything random.
    kind: one of `config.KINDS`.
    target: name of the target, or of the program of a wrong command.
    invocation: the wrong command, or None.
  """

  index: int
  kind: str
  target: str
  invocation: invocations.Invocation | None = None


def plan(config: Faults, inputs: pathlib.Path) -> list[Case]:
  """Lists the cases of a campaign, always the same for the same config."""
  chosen = config.chosen()
  by_weight = [target.name for target in chosen for _ in range(target.weight)]

  drawn: list[tuple[str, str, invocations.Invocation | None]] = []
  for kind, count in (
      ('kill', config.kills), ('signal', config.signals), ('damage', config.damages),
      ('disk', config.disks)):
    drawn += [(kind, by_weight[i % len(by_weight)], None) for i in range(count)]

  table = invocations.table(inputs)
  if config.targets:
    table = [line for line in table if line.program in {target.program for target in chosen}]
  drawn += [
      ('invocation', line.program, line)
      for line in _draw(table, config.invocations, random.Random(config.seed))]
  return [Case(index, *case) for index, case in enumerate(drawn)]


def _draw(
    table: list[invocations.Invocation], count: int, rng: random.Random
) -> list[invocations.Invocation]:
  """Draws commands without repetition, from the programs in turn; all of them if `count` < 0."""
  if count < 0:
    return table
  by_program: dict[str, list[invocations.Invocation]] = {}
  for line in table:
    by_program.setdefault(line.program, []).append(line)
  for lines in by_program.values():
    rng.shuffle(lines)

  drawn: list[invocations.Invocation] = []
  while by_program and len(drawn) < count:
    for program in list(by_program):
      if len(drawn) < count:
        drawn.append(by_program[program].pop())
      if not by_program[program]:
        del by_program[program]
  return drawn


class Reference(NamedTuple):
  """The undisturbed run of a target, which its cases are compared with.

  Attributes:
    outcome: its numbers, from `targets.outcome`.
    seconds: its duration with a filled compilation cache.
    notices: the warnings that it printed.
  """

  outcome: dict[str, Any]
  seconds: float
  notices: frozenset[str]


class Campaign:
  """Runs cases.

  Before the first case of a target, the target runs once without a fault, once with another seed,
  and a few times until it is killed: these workdirs are what the cases start from.
  """

  def __init__(self, config: Faults, workdir: pathlib.Path, commit: str):
    """Prepares nothing yet.

    Args:
      config: the campaign's config.
      workdir: where everything is kept.
      commit: commit of the source: undisturbed runs of another one are not used.
    """
    self._config, self._folder = config, workdir / 'work'
    self._prepared = workdir / 'work' / f'targets_{commit}'
    self.inputs = workdir / 'inputs'
    self._targets = {target.name: target for target in config.chosen()}
    self._server = processes.Server(workdir / 'compiled')
    self._references: dict[str, Reference] = {}

  def prepare(self, name: str) -> None:
    """Makes the undisturbed run of a target and its snapshots; a finished part is kept."""
    target, folder = self._targets[name], self._prepared / name
    whole = folder / 'whole'
    self._expect_complete(target, whole)
    seconds = self._time(target, folder)
    output = [(folder / 'whole.log' / stream).read_text() for stream in ('stderr', 'stdout')]
    self._references[name] = Reference(
        targets.outcome(whole), seconds, frozenset(_notices(*output)))
    self._expect_complete(target, folder / 'other_seed', '--config.seed=1')

    for number, fraction in enumerate(_SNAPSHOTS):
      final = folder / f'at_{number}'
      if not final.exists():
        scratch = folder / 'scratch'
        shutil.rmtree(scratch, ignore_errors=True)
        self._run(target, scratch, interrupt=_send(signal.SIGKILL, fraction * seconds))
        if not (scratch / 'config.json').exists():  # Killed before the run began.
          shutil.copytree(whole, scratch, dirs_exist_ok=True)
        (scratch / 'results.json').unlink(missing_ok=True)
        scratch.rename(final)

  def _time(self, target: targets.Target, folder: pathlib.Path) -> float:
    """Seconds of a run whose programs are all in the compilation cache."""
    path = folder / 'seconds'
    if not path.exists():
      shutil.rmtree(folder / 'timed', ignore_errors=True)
      metrics.write_text_atomic(path, str(self._run(target, folder / 'timed').seconds))
    return float(path.read_text())

  def _expect_complete(
      self, target: targets.Target, workdir: pathlib.Path, *arguments: str
  ) -> None:
    if not (workdir / 'results.json').exists():
      shutil.rmtree(workdir, ignore_errors=True)
      ended = self._run(target, workdir, *arguments)
      if ended.status != 0:
        raise ValueError(
            f'{target.name} must run to its end without a fault, got status {ended.status}: '
            f'{ended.stderr[-300:]}')

  def _run(
      self, target: targets.Target, workdir: pathlib.Path, *arguments: str,
      logs: pathlib.Path | None = None, **options: Any
  ) -> processes.Ended:
    """Runs a target on a workdir; its output goes to a directory next to it, or to `logs`."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [*target.arguments(self.inputs), f'--workdir={workdir}', *arguments]
    return self._server.run(
        f'experiments.{target.program}', command, logs or workdir.with_name(f'{workdir.name}.log'),
        time_limit=self._config.time_limit, **options)

  def run(self, case: Case) -> dict[str, Any]:
    """Runs a case; returns its record: kind, target, detail, outcome and the line printed."""
    rng = random.Random(f'{self._config.seed}/{case.index}')
    scratch = self._folder / f'case_{case.index}'
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    make = {
        'kill': self._kill, 'signal': self._signal, 'damage': self._damage, 'disk': self._disk,
        'invocation': self._invocation}[case.kind]

    try:
      detail, outcome, line = make(case, rng, scratch)
    finally:
      shutil.rmtree(scratch, ignore_errors=True)
    return {
        'case': case.index, 'kind': case.kind, 'target': case.target, 'detail': detail,
        'outcome': outcome, 'line': line}

  def _kill(self, case, rng, scratch) -> tuple[str, str, str]:
    """Kills a run once or twice, then lets it finish."""
    target, seconds = self._targets[case.target], self._references[case.target].seconds
    moments = [rng.uniform(0, 1.05 * seconds) for _ in range(rng.choice([1, 1, 2]))]
    for moment in moments:
      self._run(target, scratch / 'run', interrupt=_send(signal.SIGKILL, moment))
    detail = 'kill -9 after ' + ' and '.join(f'{moment:.2f} s' for moment in moments)
    return detail, *_nothing_lost(self._finish(case, scratch / 'run'))

  def _signal(self, case, rng, scratch) -> tuple[str, str, str]:
    """Interrupts a run, which must end as with Ctrl-C, then lets it finish."""
    target, seconds = self._targets[case.target], self._references[case.target].seconds
    number, moment = rng.choice(_SIGNALS), rng.uniform(0, seconds)
    detail = f'{number.name} after {moment:.2f} s'
    ended = self._run(target, scratch / 'run', interrupt=_send(number, moment))

    begun = (scratch / 'run' / 'config.json').exists()
    if 'Traceback' in ended.stderr:
      return detail, TRACEBACK, _last_line(ended)
    if ended.status not in (0, 130) and begun:
      return detail, WRONG, f'status {ended.status}: {_last_line(ended)}'
    return detail, *_nothing_lost(self._finish(case, scratch / 'run'))

  def _damage(self, case, rng, scratch) -> tuple[str, str, str]:
    """Damages one file that an interrupted run keeps, then lets it finish."""
    folder = self._prepared / case.target
    names = [f'at_{number}' for number in range(len(_SNAPSHOTS))] + ['whole']
    source, workdir = folder / rng.choice(names), scratch / 'run'
    shutil.copytree(source, workdir)
    results = workdir / 'results.json'
    if rng.random() > _COMPLETE:
      results.unlink(missing_ok=True)

    path, detail = _damage_one(workdir, folder / 'other_seed', rng)
    outcome, line = self._finish(case, workdir)
    if outcome == ONE_LINE and not _names(line, path, workdir):
      outcome = UNCLEAR
    return f'{source.name}: {detail}', outcome, line

  def _disk(self, case, rng, scratch) -> tuple[str, str, str]:
    """Runs on a disk that fills up, then where there is room."""
    target, folder = self._targets[case.target], self._prepared / case.target
    sizes = [path.stat().st_size for path in folder.joinpath('whole').rglob('*') if path.is_file()]
    room = int(rng.uniform(0.02, 1.0) * sum(sizes))
    with _small_disk(scratch / 'disk', room) as is_mounted:
      limit = None if is_mounted else rng.randrange(max(sizes))
      ended = self._run(
          target, scratch / 'disk' / 'run', logs=scratch / 'log', file_bytes=limit)
      workdir = scratch / 'run'
      if (scratch / 'disk' / 'run').exists():
        shutil.copytree(scratch / 'disk' / 'run', workdir)

    detail = f'a disk of {room} bytes' if is_mounted else f'files of at most {limit} bytes'
    outcome, line = judge(ended)
    if outcome in FAILURES:
      return detail, outcome, line
    (workdir / 'results.json').unlink(missing_ok=True)
    if not (workdir / 'config.json').exists():  # Not even that was written.
      shutil.rmtree(workdir, ignore_errors=True)
    return detail, *_nothing_lost(self._finish(case, workdir))

  def _invocation(self, case, rng, scratch) -> tuple[str, str, str]:
    """Runs a wrong command."""
    del rng
    line = case.invocation
    arguments = [argument.replace('{scratch}', str(scratch)) for argument in line.arguments]
    if line.program not in _TOOLS:
      arguments.insert(0, f'--workdir={scratch / "run"}')
    ended = self._server.run(
        f'experiments.{line.program}', arguments, scratch / 'log',
        time_limit=min(_WRONG_COMMAND_SECONDS, self._config.time_limit))
    outcome, text = judge(ended)
    if outcome in (EQUAL, REPAIRED):
      outcome = ACCEPTED
    return line.wrong, outcome, text

  def _finish(self, case: Case, workdir: pathlib.Path) -> tuple[str, str]:
    """Runs the same command again; returns the outcome and the line printed."""
    ended = self._run(self._targets[case.target], workdir)
    outcome, line = judge(ended, self._references[case.target].notices)
    if outcome not in (EQUAL, REPAIRED):
      return outcome, line

    expected = self._references[case.target].outcome
    try:
      outcome_now = targets.outcome(workdir)
    except (OSError, ValueError) as error:
      return WRONG, f'the output cannot be read: {error}'
    names = sorted(expected.keys() | outcome_now.keys())
    differing = [name for name in names if outcome_now.get(name) != expected.get(name)]
    return (WRONG, f'{", ".join(differing)} differ') if differing else (outcome, line)


_TOOLS = frozenset({
    'study', 'reproduce', 'make_tables', 'generate', 'convert', 'bench', 'bench_load',
    'bench_model', 'bench_transformers', 'cost', 'check_verifier', 'fetch_models'})


def judge(
    ended: processes.Ended, undisturbed: frozenset[str] = frozenset()
) -> tuple[str, str]:
  """Judges a process by its status and what it printed.

  Args:
    ended: the process.
    undisturbed: notices of a run without a fault, which are ignored.

  Returns:
    (outcome, line): `EQUAL` for status 0, where the numbers are still to be compared.
  """
  if ended.status is None:
    return HUNG, _last_line(ended)
  if 'Traceback' in ended.stderr or 'Traceback' in ended.stdout:
    return TRACEBACK, _last_line(ended)
  if ended.status == 0:
    notices = [line for line in _notices(ended.stderr, ended.stdout) if line not in undisturbed]
    return (REPAIRED, notices[0]) if notices else (EQUAL, '')
  errors = _ERROR.findall(ended.stderr)
  if ended.status == 2 and len(errors) == 1:
    return ONE_LINE, errors[0]
  return TRACEBACK, f'status {ended.status}: {_last_line(ended)}'


def _notices(*outputs: str) -> list[str]:
  """Returns the lines with a warning, or that say that something was computed again."""
  return [line for text in outputs for line in text.splitlines() if _NOTICE.search(line)]


def _nothing_lost(outcome_and_line: tuple[str, str]) -> tuple[str, str]:
  """Makes a refusal to resume a failure, where nothing but the process was disturbed."""
  outcome, line = outcome_and_line
  return (WRONG if outcome == ONE_LINE else outcome), line


def _names(line: str, path: pathlib.Path, workdir: pathlib.Path) -> bool:
  """Returns whether a line names a file of the workdir, or a directory that contains it."""
  below = [path, *path.parents][: len(path.relative_to(workdir).parts)]
  return path.name in line or any(str(folder) in line for folder in below)


def _last_line(ended: processes.Ended) -> str:
  """Returns the line of the exception, or else the last one."""
  text = ended.stderr.strip() or ended.stdout.strip()
  lines = _EXCEPTION.findall(text) or text.splitlines()
  return lines[-1][:300] if lines else ''


def _send(number: signal.Signals, moment: float):
  """Makes an `interrupt` of `Server.run` that sends one signal after some seconds."""
  def interrupt(process: int, seconds: float) -> bool:
    if seconds < moment:
      return False
    with contextlib.suppress(ProcessLookupError):
      os.kill(process, number)
    return True

  return interrupt


def _damage_one(
    workdir: pathlib.Path, other: pathlib.Path, rng: random.Random
) -> tuple[pathlib.Path, str]:
  """Damages a random file or directory in place.

  Args:
    workdir: the workdir.
    other: a complete workdir of another seed.
    rng: the random source.

  Returns:
    (its path, what was done).
  """
  if rng.random() < _WHOLE_DIRECTORY and (damaged := _damage_directory(workdir, other, rng)):
    return damaged

  # By group, because checkpoints, of many files, would dominate.
  groups: dict[str, list[pathlib.Path]] = {}
  for path in targets.kept_files(workdir):
    groups.setdefault(path.relative_to(workdir).parts[0], []).append(path)
  weights = [1 if name in _SMALL_FILES else 4 for name in groups]

  while True:  # config.json can always be damaged.
    path = rng.choice(groups[rng.choices(list(groups), weights)[0]])
    name = str(path.relative_to(workdir))
    kind = rng.choice([*damage.applicable(path.name), 'remove', 'another seed', 'another file'])
    if kind == 'remove':
      path.unlink()
      return path, f'{name} removed'
    if kind in ('another seed', 'another file'):
      others = [other / name] if kind == 'another seed' else [
          p for p in path.parent.iterdir() if p.suffix == path.suffix and p.is_file()]
      foreign = rng.choice(sorted(others))
      if not foreign.exists() or foreign.read_bytes() == path.read_bytes():
        continue
      shutil.copyfile(foreign, path)
      return path, f'{name} replaced by {foreign.name} ({kind})'

    content = path.read_bytes()
    damaged = kind(content, rng)
    if damaged is not None and damaged != content:
      path.write_bytes(damaged)
      return path, f'{name}: {kind.__name__}'


def _damage_directory(
    workdir: pathlib.Path, other: pathlib.Path, rng: random.Random
) -> tuple[pathlib.Path, str] | None:
  """Removes a directory of parameters or a checkpoint, or takes it from another seed's run."""
  folders = sorted(path.parent for path in workdir.rglob('checksums.json'))
  folders = [path for path in folders if not targets.is_unread(path.relative_to(workdir))]
  if not folders:
    return None
  folder = rng.choice(folders)
  name = folder.relative_to(workdir)
  foreign = other / name
  shutil.rmtree(folder)
  if foreign.is_dir() and rng.random() < 0.7:
    shutil.copytree(foreign, folder)
    return folder, f'{name} of another seed'
  return folder, f'{name} removed'


@contextlib.contextmanager
def _small_disk(folder: pathlib.Path, room: int) -> Iterator[bool]:
  """Mounts a disk of `room` bytes; yields False where this process may not mount one."""
  folder.mkdir()
  libc = ctypes.CDLL(None, use_errno=True)
  options = f'size={room}'.encode()
  mounted = libc.mount(b'tmpfs', os.fsencode(folder), b'tmpfs', 0, options) == 0
  try:
    yield mounted
  finally:
    if mounted:
      libc.umount2(os.fsencode(folder), 2)  # Lazy unmount: the disk is no longer needed.
