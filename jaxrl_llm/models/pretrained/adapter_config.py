"""Reads PEFT's adapter_config.json: the modules with an adapter, and each adapter's rank and scale.

Every field is used, is inert, or must be off. `exclude_modules`, `layers_pattern`,
`layers_to_transform` and `target_modules` select modules by name, as in PEFT's
`check_target_module_exists`; `rank_pattern` and `alpha_pattern` replace `r` and `lora_alpha` in
the modules that they match.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

FILE = 'adapter_config.json'

# Fields that do not change what an adapter computes. PEFT infers `fan_in_fan_out` from the base's
# modules. The configs of initialisations matter only for those that are not in `_STARTS`.
_INERT = frozenset({
    'auto_mapping', 'base_model_name_or_path', 'corda_config', 'eva_config', 'fan_in_fan_out',
    'inference_mode', 'loftq_config', 'lora_dropout', 'lora_ga_config', 'megatron_core',
    'peft_version', 'qalora_group_size', 'revision', 'runtime_config', 'task_type',
})
_USED = frozenset({
    'alpha_pattern', 'bias', 'exclude_modules', 'init_lora_weights', 'layers_pattern',
    'layers_to_transform', 'lora_alpha', 'peft_type', 'r', 'rank_pattern', 'target_modules',
    'use_rslora',
})
# Initialisations that do not change the base's weights.
_STARTS = (True, False, 'gaussian', 'orthogonal', 'eva')
_ALL_LINEAR = 'all-linear'


class AdapterConfig(NamedTuple):
  """Contents of adapter_config.json.

  Attributes:
    path: the file, for errors.
    r: rank, unless `rank_pattern` gives another.
    alpha: α, unless `alpha_pattern` gives another.
    rank_stabilised: scale adapters by α / √r instead of α / r.
    rank_pattern: {regular expression for the end of a name: rank}; the first match applies.
    alpha_pattern: the same for α.
    targets: ends of the names of adapted modules, a regular expression for their whole names,
      'all-linear' for all but the head, or None for the modules that have tensors.
    excluded: ends of the names of excluded modules, or a regular expression for whole names.
    layers: layers that have adapters; None is all layers.
    layers_pattern: names of the list of layers that `layers` indexes; empty is any list.
  """

  path: pathlib.Path
  r: int
  alpha: float
  rank_stabilised: bool
  rank_pattern: dict[str, int]
  alpha_pattern: dict[str, float]
  targets: list[str] | str | None
  excluded: list[str] | str
  layers: frozenset[int] | None
  layers_pattern: tuple[str, ...]

  def excluded_by(self, name: str, *, is_head: bool = False) -> str:
    """Returns the field, and its value, that excludes a module; '' if it has an adapter."""
    if self.excluded and _matches(self.excluded, name):
      return f'exclude_modules is {self.excluded!r}'
    if self.takes_all_linear:
      if is_head:
        return f'target_modules is {self.targets!r}, which leaves out the head'
    elif self.targets is not None and not _matches(self.targets, name):
      return f'target_modules is {self.targets!r}'

    named = isinstance(self.targets, list) and name in self.targets
    if self.layers is None or named:  # A full name matches in any layer.
      return ''
    lists = self.layers_pattern or (r'[^.]*',)
    matches = (re.match(rf'.*\.(?:{pattern})\.(?P<layer>\d+)\.', name) for pattern in lists)
    layer = next((int(match['layer']) for match in matches if match), None)
    return '' if layer in self.layers else f'layers_to_transform is {sorted(self.layers)}'

  @property
  def takes_all_linear(self) -> bool:
    """True if all linear modules except the head have adapters."""
    return isinstance(self.targets, str) and self.targets.lower() == _ALL_LINEAR

  def rank(self, name: str) -> tuple[int, str]:
    """Returns (rank of a module's adapter, name of the field that sets it)."""
    pattern = _first_match(self.rank_pattern, name)
    if pattern is None:
      return self.r, 'r'
    return self.rank_pattern[pattern], f'rank_pattern[{pattern!r}]'

  def scale(self, name: str) -> float:
    """Returns the factor on a module's B A."""
    pattern = _first_match(self.alpha_pattern, name)
    alpha = self.alpha if pattern is None else self.alpha_pattern[pattern]
    rank, _ = self.rank(name)
    return alpha / (rank**0.5 if self.rank_stabilised else rank)


def _matches(selected: list[str] | str, name: str) -> bool:
  if isinstance(selected, str):
    return re.fullmatch(selected, name) is not None
  return any(name == end or name.endswith(f'.{end}') for end in selected)


def _ending(pattern: str) -> str:
  """Returns a regular expression for names whose last dotted part or parts match `pattern`."""
  return rf'(.*\.)?({pattern})'


def _first_match(patterns: Iterable[str], name: str) -> str | None:
  return next((pattern for pattern in patterns if re.fullmatch(_ending(pattern), name)), None)


def read(path: pathlib.Path, *, num_layers: int) -> AdapterConfig:
  """Reads the file.

  Args:
    path: path of adapter_config.json.
    num_layers: number of layers of the base model.

  Returns:
    Its contents.

  Raises:
    ValueError: one line with the field, its value and the file: it is damaged, or requires
      anything other than low-rank products added to linear modules.
  """
  try:
    fields = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read: {error}') from error

  if not isinstance(fields, dict):
    raise ValueError(f'{path} must contain a JSON object, got a {type(fields).__name__}')

  def require(condition: bool, field: str, rule: str) -> None:
    if not condition:
      raise ValueError(f'{field} must be {rule}, got {fields.get(field)!r} ({path})')

  require(fields.get('peft_type') == 'LORA', 'peft_type', "'LORA'")
  require(_is_number(fields.get('r'), int), 'r', 'a positive integer')
  require(_is_number(fields.get('lora_alpha')), 'lora_alpha', 'a positive number')
  require(fields.get('bias', 'none') == 'none', 'bias', "'none'")
  require(fields.get('use_rslora') in (None, True, False), 'use_rslora', 'true or false')
  start = fields.get('init_lora_weights', True)
  require(start in _STARTS, 'init_lora_weights', f'one of {_STARTS}')

  for field in sorted(fields.keys() - _USED - _INERT):
    require(not fields[field], field, 'off, as it is not supported')

  layers, layers_pattern = _read_layers(fields, num_layers, path)
  return AdapterConfig(
      path=path,
      r=fields['r'],
      alpha=float(fields['lora_alpha']),
      rank_stabilised=bool(fields.get('use_rslora')),
      rank_pattern=_read_pattern(fields, 'rank_pattern', int, path),
      alpha_pattern=_read_pattern(fields, 'alpha_pattern', (int, float), path),
      targets=_read_names(fields, 'target_modules', path),
      excluded=_read_names(fields, 'exclude_modules', path) or [],
      layers=layers,
      layers_pattern=layers_pattern,
  )


def _is_number(value: Any, kinds: Any = (int, float)) -> bool:
  return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < 1e300


def _check_expression(expression: str, rule: str, path: pathlib.Path) -> None:
  try:
    re.compile(expression)
  except (re.error, OverflowError, RecursionError) as error:
    raise ValueError(f'{rule}: {error} ({path})') from None


def _read_pattern(
    fields: Mapping[str, Any], field: str, kinds: Any, path: pathlib.Path
) -> dict[str, Any]:
  """Reads {regular expression: positive number}."""
  patterns = fields.get(field) or {}
  if not isinstance(patterns, dict):
    raise ValueError(f'{field} must be an object, got {patterns!r} ({path})')
  numbers = 'positive integers' if kinds is int else 'positive numbers'
  for pattern, number in patterns.items():
    rule = f'{field} must have regular expressions as names, got {pattern!r}'
    _check_expression(_ending(pattern), rule, path)
    if not _is_number(number, kinds):
      raise ValueError(f'{field} must contain {numbers}, got {number!r} for {pattern!r} ({path})')
  return patterns


def _read_names(
    fields: Mapping[str, Any], field: str, path: pathlib.Path
) -> list[str] | str | None:
  """Reads a list of name endings, a regular expression, or None."""
  names = fields.get(field)
  if isinstance(names, str):
    _check_expression(names, f'{field} must be a regular expression, got {names!r}', path)
  elif names is not None and not _are_strings(names):
    raise ValueError(
        f'{field} must be a list of names or a regular expression, got {names!r} ({path})')
  return names


def _are_strings(values: Any) -> bool:
  return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _read_layers(
    fields: Mapping[str, Any], num_layers: int, path: pathlib.Path
) -> tuple[frozenset[int] | None, tuple[str, ...]]:
  """Reads (layers that have adapters, names of the list of layers)."""
  layers, lists = fields.get('layers_to_transform'), fields.get('layers_pattern') or []
  lists = [lists] if isinstance(lists, str) else lists
  if not _are_strings(lists):
    raise ValueError(f'layers_pattern must be a name or a list of names, got {lists!r} ({path})')

  for pattern in lists:
    rule = f'layers_pattern must contain regular expressions, got {pattern!r}'
    _check_expression(pattern, rule, path)

  if layers is None or layers == []:
    if lists:
      raise ValueError(f'layers_pattern needs layers_to_transform, got {lists!r} alone ({path})')
    return None, ()

  if isinstance(fields.get('target_modules'), str):
    raise ValueError(
        'layers_to_transform needs a list of target_modules, got a regular expression '
        f'{fields["target_modules"]!r} ({path})')

  numbers = layers if isinstance(layers, list) else [layers]
  if not all(type(layer) is int and 0 <= layer < num_layers for layer in numbers):
    raise ValueError(
        f'layers_to_transform must be layers of the model, 0 to {num_layers - 1}, got {layers!r} '
        f'({path})')

  return frozenset(numbers), tuple(lists)
