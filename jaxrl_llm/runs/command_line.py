"""The command line of a program: the config file, its overrides, help, and one-line errors.

`ml_collections.config_flags` applies the overrides. Its errors are tracebacks, and it accepts a
missing file as long as nothing reads the config. Both become one-line errors here: what is wrong,
the value given, what is allowed.
"""

import dataclasses
import difflib
import errno
import importlib.machinery
import importlib.util
import os
import pathlib
import re
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

_MODULE_OF_CONFIG = 'config_'  # Prefix of the names of modules made from config files.
_OVERRIDE = re.compile(r'--?(no)?config\.([^=]+)(=.*)?$', re.DOTALL)
_PARSERS = {
    int: ('an integer', flags.IntegerParser()),
    float: ('a number', flags.FloatParser()),
    bool: ('true or false', flags.BooleanParser()),
}


class UsageError(ValueError):
  """Raised for bad input; its message is the one line that the user sees."""


class _SourceLoader(importlib.machinery.SourceFileLoader):
  """Compiles a config file each time.

  Python takes cached byte code for that of the file if both have the same size and second, as after
  one digit was edited.
  """

  def get_code(self, fullname: str) -> Any:
    """See `importlib.abc.InspectLoader.get_code`."""
    path = self.get_filename(fullname)
    return self.source_to_code(self.get_data(path), path)


def load_module(name: str) -> Any:
  """Imports a config file; raises a one-line UsageError if that fails.

  Args:
    name: path of the file.

  Returns:
    The module.
  """
  path = pathlib.Path(name)
  if not path.is_file():
    nearby = sorted(str(p) for p in path.parent.glob('*.py') if p.name != '__init__.py')
    close = difflib.get_close_matches(name, nearby, 1)
    raise UsageError(
        f'config file {name!r} does not exist (--config)'
        + (f'; did you mean {close[0]!r}?' if close else '')
    )

  try:
    if path.suffix != '.py':
      raise ValueError('not a Python file')
    module_name = f'{_MODULE_OF_CONFIG}{path.stem}'
    module_spec = importlib.util.spec_from_file_location(
        module_name, path, loader=_SourceLoader(module_name, str(path)))
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # A config file can raise anything.
    raise UsageError(
        f'config file {name!r} cannot be loaded: {type(error).__name__}: {one_line(error)}'
    ) from error
  return module


def load_config(spec: str) -> Any:
  """Calls `get_config` of a config file.

  Args:
    spec: `FILE.py[:variant]`.

  Returns:
    A fresh config.

  Raises:
    UsageError: one line that says what is wrong with the file or the variant.
  """
  name, colon, variant = spec.partition(':')
  module = load_module(name)

  get_config = getattr(module, 'get_config', None)
  if get_config is None:
    raise UsageError(f'config file {name!r} has no get_config()')

  try:
    config = get_config(variant) if colon else get_config()
  except ValueError as error:
    raise UsageError(f'{one_line(error)} (--config={spec})') from error
  except KeyboardInterrupt:
    raise
  except BaseException as error:
    if colon and isinstance(error, (KeyError, TypeError)):
      raise UsageError(
          f'config file {name!r} has no variant {variant!r} (--config={spec})') from error
    raise UsageError(
        f'get_config() of {name!r} cannot be called: {type(error).__name__}: {one_line(error)}'
    ) from error

  if not dataclasses.is_dataclass(config):
    raise UsageError(f'get_config() of {name!r} must return a dataclass, got {type(config)}')
  return config


def check_program(config: Any, spec: str, default_config: str, types: Sequence[type]) -> None:
  """Raises UsageError if a config belongs to another program.

  Args:
    config: the config.
    spec: `FILE.py[:variant]` that it comes from.
    default_config: the program's default; its type is allowed.
    types: further types that the program takes, with their subclasses.
  """
  def name(kind: type) -> str:
    # A class that a config file defines itself is another object each time a file is loaded.
    in_file = kind.__module__.startswith(_MODULE_OF_CONFIG)
    return kind.__qualname__ if in_file else f'{kind.__module__}.{kind.__qualname__}'

  default = type(load_config(default_config))
  if not isinstance(config, tuple(types)) and name(type(config)) != name(default):
    allowed = ' or '.join(dict.fromkeys(map(name, (default, *types))))
    raise UsageError(
        f'{_relative(spec)} is a config of another program: it makes {name(type(config))}, and '
        f'this one takes {allowed} (--config)')


def expand(argv: Sequence[str]) -> list[str]:
  """Returns a command line with the contents of --flagfile=FILE in its place."""
  try:
    return flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
  except (flags.Error, UnicodeDecodeError) as error:
    raise UsageError(f'{one_line(error)} (--flagfile)') from error


def parse(
    argv: list[str], default_config: str, types: Sequence[type] = ()
) -> tuple[Any, str, flags.FlagValues]:
  """Parses the command line of a program that has a config.

  Args:
    argv: the program's name and its arguments.
    default_config: `FILE.py[:variant]` if --config is not given.
    types: further config types that the program takes.

  Returns:
    The config with its overrides, validated; `FILE.py[:variant]`; the flags.

  Raises:
    UsageError: with one line; the config's own `validate` raises ValueError.
  """
  spec, arguments = split_config(argv[1:])
  default_config = in_repository(default_config)
  spec = spec or default_config
  config = load_config(spec)
  check_program(config, spec, default_config, types)
  arguments = set_parts(config, arguments)
  _check_overrides(config, arguments)
  argv = [argv[0], *arguments]

  values = flags.FlagValues()
  values.append_flag_values(flags.FLAGS)
  flags.DEFINE_string('workdir', None, 'directory of the run; resumed if it exists.', values)
  flags.DEFINE_bool('debug', False, 'show tracebacks instead of one line.', values)
  config_flags.DEFINE_config_dataclass(
      'config', config, 'FILE.py[:variant]', flag_values=values, sys_argv=argv)

  parse_flags(values, argv)
  flags.FLAGS.mark_as_parsed()

  config = values['config'].value
  _check_types(config, 'config')
  config.validate()
  return config, _relative(spec), values


def _relative(spec: str) -> str:
  return spec.removeprefix(f'{REPOSITORY}{os.sep}')


def parse_flags(values: flags.FlagValues, argv: list[str]) -> None:
  """Parses `argv` into `values`; raises a one-line UsageError."""
  try:
    rest = values(argv)
  except flags.UnrecognizedFlagError as error:
    close = difflib.get_close_matches(error.flagname, list(values), 1)
    raise UsageError(
        f'unknown flag --{error.flagname}'
        + (f'; did you mean --{close[0]}?' if close else ' (--help lists them)')
    ) from error
  except flags.Error as error:
    raise UsageError(one_line(error)) from error
  if len(rest) > 1:
    raise UsageError(f'unexpected argument {rest[1]!r}; flags look like --name=value')


def _check_overrides(config: Any, arguments: list[str]) -> None:
  for position, argument in enumerate(arguments):
    match = _OVERRIDE.match(argument)
    if not match:
      continue
    negated, path, value = match.groups()

    holder, prefix, kind = config, 'config', None
    for name in path.split('.'):
      names = _field_names(holder)
      if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        hint = f'did you mean {close[0]}? ' if close else ''
        allowed = f'allowed are {", ".join(names)}' if names else f'{prefix} is a single value'
        raise UsageError(f'unknown field {prefix}.{name}: {hint}{allowed}')
      kind = typing.get_type_hints(type(holder))[name]
      holder, prefix = getattr(holder, name), f'{prefix}.{name}'

    if _field_names(holder):
      fields = ', '.join(f'--{prefix}.{name}' for name in _field_names(holder))
      raise UsageError(f'{prefix} has fields; set one of them: {fields}')

    if value is None and kind is not bool and position + 1 < len(arguments):
      value = '=' + arguments[position + 1]
    if value is not None and not negated:
      _check_text(path, kind, value[1:])


def set_parts(config: Any, arguments: Sequence[str]) -> list[str]:
  """Replaces parts of a config that have one text, such as --config.task=FILE.

  Args:
    config: the config; `config.set_task(text)` replaces its part `task`.
    arguments: the command line, without --config.

  Returns:
    The other arguments: those of the new part follow, in any order.
  """
  rest, setter = [], None
  for argument in arguments:
    name, equals, value = argument.partition('=')
    part = re.fullmatch(r'--?config\.(\w+)', name)
    if setter:
      setter(argument)
      setter = None

    elif part and hasattr(config, f'set_{part[1]}'):
      setter = getattr(config, f'set_{part[1]}')
      if equals:
        setter(value)
        setter = None
    else:
      rest.append(argument)

  if setter:
    raise UsageError(f'Missing value for flag {arguments[-1]}')
  return rest


def overridden(arguments: Sequence[str]) -> tuple[str, ...]:
  """Returns the config fields set by a command line: 'model.width' for --config.model.width=64."""
  matches = (_OVERRIDE.match(argument) for argument in arguments)
  return tuple(match[2] for match in matches if match)


def _field_names(holder: Any) -> list[str]:
  return [f.name for f in dataclasses.fields(holder)] if dataclasses.is_dataclass(holder) else []


def _check_text(path: str, kind: Any, text: str) -> None:
  if kind in _PARSERS:
    description, parser = _PARSERS[kind]
    try:
      parser.parse(text)
    except (ValueError, TypeError) as error:
      raise UsageError(f'config.{path} must be {description}, got {text!r}') from error


def _check_types(holder: Any, prefix: str) -> None:
  for name, kind in typing.get_type_hints(type(holder)).items():
    value, path = getattr(holder, name), f'{prefix}.{name}'
    if dataclasses.is_dataclass(value):
      _check_types(value, path)
    elif not _has_type(value, kind):
      name = kind.__name__ if isinstance(kind, type) else kind
      raise UsageError(f'{path} must be {name}, got {value!r}')
    for item in value if isinstance(value, tuple) else (value,):
      if isinstance(item, int) and abs(item) >= 2**63:
        raise UsageError(f'{path} must be an integer of at most 64 bits, got {item}')


def _has_type(value: Any, kind: Any) -> bool:
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    return any(_has_type(value, argument) for argument in arguments)
  if origin is tuple:
    if not isinstance(value, tuple):
      return False
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    return len(kinds) == len(value) and all(map(_has_type, value, kinds))
  if kind in (int, float):
    return isinstance(value, (int, kind)) and not isinstance(value, bool)
  return kind is Any or not isinstance(kind, type) or isinstance(value, kind)


def split_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
  """Returns the last value of --config, and the other arguments."""
  spec, rest, needs_value = None, [], False
  for argument in arguments:
    name, equals, value = argument.partition('=')
    if needs_value:
      spec, needs_value = argument, False
    elif name in ('--config', '-config'):
      spec, needs_value = (value, False) if equals else (spec, True)
    else:
      rest.append(argument)
  if needs_value or spec == '':
    raise UsageError('Missing value for flag --config')
  return spec, rest


def in_repository(spec: str) -> str:
  """Resolves a default config: relative to the current directory, else to the repository."""
  exists = pathlib.Path(spec.partition(':')[0]).exists()
  return spec if exists else str(REPOSITORY / spec)


def one_line(error: BaseException) -> str:
  """Returns an error's text as one line, without the type and number of an OSError."""
  if isinstance(error, OSError) and error.strerror:
    text = error.strerror
    if text == os.strerror(errno.ENOSPC):  # Checkpoints have their own message.
      text = 'the disk is full; what was complete is kept'
    where = f': {error.filename}' if error.filename else ''
    return f'{text}{where}'
  return ' '.join(str(error).split()) or type(error).__name__


def wants_help(argv: list[str]) -> bool:
  """Returns whether the command line asks for help."""
  return any(re.fullmatch(r'--?(help|h|helpfull|helpshort)', arg) for arg in argv[1:])


def help_text(experiment: str, argv: list[str], default_config: str) -> str:
  """Returns the text of --help: the program's docstring, flags, and config fields with values."""
  spec, arguments = split_config(argv[1:])
  spec = spec or in_repository(default_config)
  config = load_config(spec)
  set_parts(config, arguments)

  lines = [
      docstring(), '',
      f'usage: python -m experiments.{experiment} [--config=FILE.py[:variant]] [--workdir=DIR] '
      '[--config.field=value ...] [--debug]', '',
      f'  --config   the config file and its variant; now {spec}',
      '  --workdir  directory of the run, which is resumed if it exists (default: runs/<config>, '
      'with _seed<N> for other seeds than 0)',
      '  --debug    show tracebacks instead of one line', '',
      f'fields of {spec}:',
  ]

  def show(holder: Any, prefix: str) -> None:
    for field in dataclasses.fields(holder):
      value = getattr(holder, field.name)
      if dataclasses.is_dataclass(value):
        show(value, f'{prefix}.{field.name}')
      else:
        lines.append(f'  --{prefix}.{field.name}={value!r}')

  show(config, 'config')
  return '\n'.join(lines)


def docstring() -> str:
  """Returns the docstring of the main module."""
  return (sys.modules['__main__'].__doc__ or '').strip()
