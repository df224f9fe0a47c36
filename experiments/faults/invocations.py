"""Commands that cannot be right: each must end with status 2 and one line."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.faults import targets
from jaxrl_llm.runs import command_line


class Invocation(NamedTuple):
  """A wrong command.

  Attributes:
    program: the program, as in `python -m experiments.PROGRAM`.
    wrong: what is wrong with it, for the report.
    arguments: the command line; the workdir is added for programs with a config.
  """

  program: str
  wrong: str
  arguments: tuple[str, ...]


# Config files that cannot be used, by name.
BAD_CONFIGS = {
    'raises.py': 'raise RuntimeError("on import")\n',
    'raises_later.py': 'def get_config():\n  raise RuntimeError("when called")\n',
    'exits.py': 'import sys\nsys.exit(3)\n',
    'exits_later.py': 'import sys\ndef get_config():\n  sys.exit(0)\n',
    'imports_missing.py': 'import no_such_module\n',
    'recurses.py': 'def get_config():\n  return get_config()\n',
    'returns_none.py': 'def get_config():\n  return None\n',
    'returns_dict.py': 'def get_config():\n  return {"steps": 3}\n',
    'no_get_config.py': 'CONFIG = 3\n',
    'not_callable.py': 'get_config = 3\n',
    'syntax_error.py': 'def get_config(:\n',
    'null_byte.py': 'a = "\0"\n',
    'empty.py': '',
}

# Fields that size an array or count in 32 bits: 10^12 is too much.
_SIZES = frozenset({
    'width', 'num_layers', 'vocab_size', 'mlp_width', 'head_dim', 'num_heads', 'max_length',
    'batch_size', 'stage1_batch_size', 'evaluation_batch_size', 'num_samples', 'samples_per_prompt',
    'num_splits', 'num_seeds', 'rank', 'num_train', 'num_demonstrations', 'nodes_per_class',
    'num_words', 'evaluation_samples', 'diagnosed_samples', 'steps', 'packed_length',
    'num_pairs', 'seed', 'num_epochs', 'min_count', 'baum_welch_steps',
})
_LIMITS = frozenset({'num_train', 'num_demonstrations'})
# Integers that may be negative, with a meaning.
_MAY_BE_NEGATIVE = frozenset({'file_pad_id'})


def write_bad_configs(folder: pathlib.Path) -> None:
  """Writes `BAD_CONFIGS`, and a directory with the name of a config file."""
  (folder / 'directory.py').mkdir(parents=True, exist_ok=True)
  for name, text in BAD_CONFIGS.items():
    (folder / name).write_text(text)


def table(inputs: pathlib.Path) -> list[Invocation]:
  """Lists every wrong command, in a fixed order.

  Args:
    inputs: the directory of `inputs.write`; `write_bad_configs` has written to its `bad`.

  Returns:
    The commands.
  """
  commands = []
  for target in targets.TARGETS:
    commands += _of_target(target, inputs)
  return commands + list(_of_tools(inputs))


def _of_target(target: targets.Target, inputs: pathlib.Path) -> Iterator[Invocation]:
  """Wrong commands of a program with a config."""
  right = target.arguments(inputs)
  make = lambda wrong, *arguments: Invocation(target.program, wrong, arguments)

  for other in targets.TARGETS:
    if other.program != target.program:
      yield make('config of another program', f'--config=experiments/configs/{other.config}')
  for name in (*BAD_CONFIGS, 'directory.py', 'absent.py'):
    yield make(f'config file {name}', f'--config={inputs / "bad" / name}')
  yield make('variant', f'--config=experiments/configs/{target.config.split(":")[0]}:no_such')

  for wrong, argument in (
      ('unknown flag', '--no_such_flag=1'), ('absent flagfile', '--flagfile=/no/such/file'),
      ('flagfile is a directory', '--flagfile=/'), ('positional argument', 'now'),
      ('unknown field', '--config.no_such_field=1'), ('group', '--config.model.width.depth=1'),
      ('empty field', '--config.=1'), ('no value', '--config'), ('text for debug', '--debug=x'),
  ):
    yield make(wrong, *right, argument)

  config = command_line.load_config(f'experiments/configs/{target.config}')
  for path, value in _leaves(config, ''):
    name = path.rpartition('.')[2]
    # A limit on what a file holds may be of any size.
    is_limit = name in _LIMITS and 'data_dir' in target.overrides
    if is_limit or re.match(target.unused, path):
      continue
    for text in _wrong_values(name, value):
      yield make(f'{path}={text}', *right, f'--config.{path}={text}')


def _leaves(holder: Any, prefix: str) -> Iterator[tuple[str, Any]]:
  """Yields the path and value of every field of a config that is not a group."""
  for field in dataclasses.fields(holder):
    value = getattr(holder, field.name)
    if dataclasses.is_dataclass(value):
      yield from _leaves(value, f'{prefix}{field.name}.')
    else:
      yield f'{prefix}{field.name}', value


def _wrong_values(name: str, value: Any) -> tuple[str, ...]:
  """Lists values that a field of this name and type cannot have."""
  if isinstance(value, bool):
    return ('maybe', '')
  if isinstance(value, int):
    wrong = ('x', '1.5', '')
    if name in _SIZES:
      wrong += (str(10**12), str(10**20))
    return wrong if name in _MAY_BE_NEGATIVE else (*wrong, '-7')
  if isinstance(value, float):
    return ('x', '', 'nan')
  if name.endswith('_init_from') or name in ('data_dir', 'results_file', 'tokenizer_dir'):
    return ('/no/such/folder',)
  return ()


def _of_tools(inputs: pathlib.Path) -> Iterator[Invocation]:
  """Wrong commands of programs without a config."""
  bad, policy = inputs / 'bad', inputs / 'policy'
  lines = {
      'study': (
          '--arms=', '--arms=no_such_arm', '--seeds=x', '--seeds=', '--seeds=-1',
          '--config=/no/such.py', f'--config={bad / "no_get_config.py"}',
          f'--config={bad / "raises.py"}', '--experiment=no_such_program',
          '--results=/proc/no/such', '--work=/proc/no/such'),
      'reproduce': (
          '', '--experiment=no_such', '--experiment=a_star_po --setting=no_such',
          '--experiment=a_star_po --setting=arithmetic --seeds=x',
          '--experiment=a_star_po --setting=arithmetic --seeds=-1',
          '--experiment=a_star_po --setting=arithmetic --seeds=',
          '--experiment=a_star_po --setting=arithmetic --tolerance=nan',
          '--experiment=a_star_po --runs=/no/such'),
      'make_tables': ('--runs=/no/such', f'--runs={policy}', '--pages=/no/such.md'),
      'generate': (
          '', '--policy=/no/such --prompt=a', f'--policy={policy}',
          f'--policy={policy} --prompt=a --temperature=-1',
          f'--policy={policy} --prompt=a --max_tokens=100000',
          f'--policy={policy} --prompt=a --num_samples=0',
          f'--policy={policy} --prompt=a --num_samples=1000000000000',
          f'--policy={policy} --prompt=a --mesh=2x3', f'--policy={policy} --prompts=/no/such',
          f'--policy={bad} --prompt=a'),
      'convert': (
          '', '--from=/no/such --to={scratch}/no', f'--from={policy}',
          f'--from={bad} --to={{scratch}}/no',
          f'--from={policy} --to={policy}', f'--from={policy} --to=/proc/no/such',
          f'--from={policy} --to={{scratch}}/no --format=hugging_face --model_type=no_such',
          f'--from={policy} --to={{scratch}}/no --format=hugging_face --model_type=gpt2'),
      'cost': (
          '--config=/no/such.py', f'--config={bad / "raises.py"}',
          '--config=experiments/configs/a_star_po_arithmetic.py', '--out=setup.py'),
      # None of these reaches the network.
      'fetch_models': (
          '--which=', '--which=no_such', '--which=minilm,no_such', '--to=', '--to=/proc/no/such',
          f'--to={bad / "raises.py"}', f'--to={bad / "raises.py" / "models"}'),
      'check_verifier': ('', '--solutions=/no/such', f'--solutions={bad / "raises.py"}'),
  }

  for program, commands in (lines | _of_measurements(bad, policy)).items():
    for command in (*commands, '--no_such_flag', '--flagfile=/no/such/file', 'now'):
      yield Invocation(program, command or 'no arguments', tuple(command.split()))


def _of_measurements(bad: pathlib.Path, policy: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """Wrong commands of the benchmarks and of this campaign, by program."""
  return {
      'bench': (
          '--suite=no_such', '--suite=', '--scale=no_such', '--repeats=0', '--repeats=x',
          '--cores=-1', '--cores=100000', '--seed=-1', '--json=/no/such/file.json'),
      'bench_load': (
          '--model=no_such', '--file_dtype=int7', '--param_dtype=', '--mesh=', '--mesh=2x2',
          '--mesh=0x8x1', '--mesh=3x3x3', '--cpu_devices=-1', '--cpu_devices=x',
          '--cpu_devices=1000000000000', '--folder=/no/such', '--folder=/proc',
          '--json=/no/such/file.json', '--json=/'),
      'bench_model': (
          '--shape=no_such', '--checkpoint=/no/such', f'--checkpoint={bad}', '--folder=/no/such',
          '--json=/no/such/file.json', '--json=/', '--rows=0', '--prompt_tokens=-1',
          '--new_tokens=x', '--sequence_tokens=', '--rank=0', *(
              f'--checkpoint={policy} --{name}=1000000000000' for name in (
                  'rows', 'prompt_tokens', 'new_tokens', 'sequence_tokens', 'rank'))),
      'bench_transformers': (
          '', '--notransformers --checkpoint=/no/such', f'--notransformers --checkpoint={bad}',
          '--dtype=int7', '--rows=0',
          '--prompt_tokens=-1', '--new_tokens=x', '--sequence_tokens=', '--micro_batches=0',
          '--rank=0', '--repeats=0', '--seed=-1', '--transformers=maybe', *(
              f'--checkpoint={policy} {flag}' for flag in (
                  '--parts=no_such', '--batches=x', '--batches=0', '--json=/no/such/file.json'))),
      'faults': (
          '--config=/no/such.py', '--config=experiments/configs/sft_arithmetic.py',
          '--config=experiments/configs/faults.py:no_such', '--config.targets=no_such',
          '--config.no_such_field=1', *(
              f'--config.{name}={value}' for name, values in {
                  'seed': ('-1', 'x'), 'kills': ('-1', ''), 'signals': ('-1', '1.5'),
                  'damages': ('-1', '1000000000000'), 'disks': ('-1', '1e3'),
                  'invocations': ('-2', 'x'), 'workers': ('0', '1000000000000'),
                  'time_limit': ('0', 'nan', 'x'),
              }.items() for value in values)),
  }
