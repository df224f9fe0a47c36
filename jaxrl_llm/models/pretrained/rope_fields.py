"""Rotary positions in config.json, in the old spelling and in the spelling of transformers 5.

Old: `rope_theta` and `rope_scaling`, in GPT-NeoX `rotary_emb_base` and `rotary_pct`. New:
`rope_parameters`, which holds all of them. A checkpoint that was saved again often has both; the
fields that they share must be equal.
"""

from collections.abc import Mapping
from typing import Any

from jaxrl_llm.models import configs
from jaxrl_llm.models.pretrained import config_fields

# Types of scaling in config.json, and our names.
_KINDS = {'default': 'none', 'linear': 'linear', 'llama3': 'llama3'}
# Fields that the old spelling has outside `rope_scaling`.
_OUTSIDE = ('rope_theta', 'partial_rotary_factor')


def read(
    parts: Mapping[str, Mapping[str, Any] | None],
    *,
    theta: Mapping[str, float | None],
    default_theta: float,
    max_positions: int,
    fraction: Mapping[str, float | None] | None = None,
    default_fraction: float = 1.0,
    name: str = 'config.json',
) -> dict[str, Any]:
  """Reads the rotary positions of one kind of layer.

  Args:
    parts: {'rope_scaling': ..., 'rope_parameters': ...}; None or empty if absent.
    theta: bases given outside `parts`, by field name; None if absent.
    default_theta: base if no field gives one.
    max_positions: default for `original_max_position_embeddings`.
    fraction: rotated fractions of a head given outside `parts`, by field name; None for families
      that rotate whole heads, in which every fraction must be 1.
    default_fraction: fraction if no field gives one.
    name: the file, for errors.

  Returns:
    The rope_* fields of `TransformerConfig`.

  Raises:
    ValueError: a kind of scaling or a field is not supported, or two fields differ.
  """
  spelling, merged = _merge(parts, name)
  given = config_fields.Fields(merged, name=f'{name}, {spelling}')
  kind = given.take('rope_type', 'default')
  if kind not in _KINDS:
    raise ValueError(f'{name}: {spelling} must be of type {", ".join(_KINDS)}, got {kind!r}')

  own_theta = given.take('rope_theta', None, kind=float)
  base = config_fields.agree(name, {**theta, f'{spelling}.rope_theta': own_theta})
  if fraction is None:
    given.only('partial_rotary_factor', 1.0)
    share = 1.0
  else:
    own_share = given.take('partial_rotary_factor', None, kind=float)
    share = config_fields.agree(
        name, {**fraction, f'{spelling}.partial_rotary_factor': own_share})

  out = {
      'rope_theta': float(default_theta if base is None else base),
      'rope_fraction': float(default_fraction if share is None else share),
      'rope_scaling': _KINDS[kind],
  }
  out |= _read_scaling(given, kind, max_positions)
  given.finish()

  return out


def _read_scaling(
    given: config_fields.Fields, kind: str, max_positions: int
) -> dict[str, Any]:
  """Reads the parameters of a kind of scaling."""
  if kind == 'default':
    given.only('factor', 1.0)
    return {}
  out = {'rope_factor': given.take('factor', kind=float)}
  if kind == 'llama3':
    out['rope_low_freq_factor'] = given.take('low_freq_factor', kind=float)
    out['rope_high_freq_factor'] = given.take('high_freq_factor', kind=float)
    out['rope_original_length'] = given.take('original_max_position_embeddings', max_positions)
  return out


def _merge(
    parts: Mapping[str, Mapping[str, Any] | None], name: str
) -> tuple[str, dict[str, Any]]:
  """Returns (name of one of the parts, union of the parts); raises ValueError if they differ."""
  present = {
      spelling: {field: value for field, value in part.items() if value is not None}
      for spelling, part in parts.items() if part
  }
  for spelling, part in present.items():
    kinds = {field: part.pop(field, None) for field in ('rope_type', 'type')}
    kind = config_fields.agree(f'{name}, {spelling}', kinds)
    part['rope_type'] = 'default' if kind is None else kind

  if not present:
    return next(iter(parts)), {}

  (first, merged), *others = present.items()
  for spelling, part in others:
    differing = [
        field for field in merged.keys() | part.keys()
        if merged.get(field) != part.get(field)
        and not (field in _OUTSIDE and (field not in merged or field not in part))
    ]

    if differing:
      field = min(differing)
      raise ValueError(
          f'{name}: {first} and {spelling} differ in {field} ({merged.get(field)!r} and '
          f'{part.get(field)!r}): keep one')
    merged |= part

  return first, merged


def write_scaling(config: configs.TransformerConfig) -> dict[str, Any] | None:
  """Returns `rope_scaling` in the old spelling, which every version of transformers reads."""
  if config.rope_scaling == 'none':
    return None
  scaling = {'rope_type': config.rope_scaling, 'factor': config.rope_factor}
  if config.rope_scaling == 'llama3':
    scaling |= {
        'low_freq_factor': config.rope_low_freq_factor,
        'high_freq_factor': config.rope_high_freq_factor,
        'original_max_position_embeddings': config.rope_original_length,
    }
  return scaling
