"""Reading a family's config.json: each field is consumed, known to be inert, or rejected by name.

A field that is silently ignored is a model that silently differs from the published one.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrl_llm.models import configs

# Fields that no family's forward pass depends on: how a checkpoint was made, is stored, is
# trained further or is sampled from. Stop and pad ids are read with the tokenizer.
INERT = frozenset({
    'transformers_version', 'architectures', 'model_type', 'dtype', 'torch_dtype', '_name_or_path',
    'use_cache', 'initializer_range', 'bos_token_id', 'eos_token_id', 'pad_token_id',
    'decoder_start_token_id', 'sep_token_id', 'id2label', 'label2id', 'num_labels', 'problem_type',
    'output_attentions', 'output_hidden_states', 'return_dict', 'torchscript',
    'attention_dropout', 'hidden_dropout', 'classifier_dropout', 'is_decoder',
    '_attn_implementation', '_attn_implementation_autoset', 'attn_implementation',
    'task_specific_params', 'auto_map', 'unsloth_fixed', 'unsloth_version', 'finetuning_task',
    'tokenizer_class', 'use_bfloat16', 'tf_legacy_loss',
    # What older versions kept here of how to generate.
    'prefix', 'cache_implementation', 'do_sample', 'temperature', 'top_k', 'top_p', 'typical_p',
    'max_length', 'min_length', 'num_beams', 'num_beam_groups', 'num_return_sequences',
    'early_stopping', 'length_penalty', 'repetition_penalty', 'diversity_penalty',
    'no_repeat_ngram_size', 'encoder_no_repeat_ngram_size', 'bad_words_ids', 'suppress_tokens',
    'begin_suppress_tokens', 'forced_bos_token_id', 'forced_eos_token_id', 'output_scores',
    'return_dict_in_generate', 'remove_invalid_values', 'exponential_decay_length_penalty',
})
# Fields that are inert at one value, which every family accepts.
_ONLY = {
    'is_encoder_decoder': False, 'add_cross_attention': False, 'chunk_size_feed_forward': 0,
    'use_bidirectional_attention': False, 'pretraining_tp': 1, 'cross_attention_hidden_size': None,
    'tie_encoder_decoder': False, 'pruned_heads': {}, 'use_mrope': False,
}
_REQUIRED = object()

# Names of activation functions in config.json, and ours.
PLAIN_ACTIVATIONS = {
    'gelu': 'gelu_exact', 'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu',
    'relu': 'relu',
}
GATED_ACTIVATIONS = {
    'silu': 'swiglu', 'swish': 'swiglu', 'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu',
}


class Fields:
  """The fields of a config.json, each taken once."""

  def __init__(self, fields: Mapping[str, Any], *, name: str = 'config.json'):
    """Starts with all of them.

    Args:
      fields: the JSON object.
      name: what it is called in errors.
    """
    self.name = name
    self._left = dict(fields)

  def take(self, field: str, default: Any = _REQUIRED, *, kind: type | None = None) -> Any:
    """A field's value; null counts as absent.

    Args:
      field: its name.
      default: the value where it is absent; without one it must be there.
      kind: int, float, bool, str, dict or list; by default that of `default`.

    Returns:
      The value.

    Raises:
      ValueError: it is missing or of another type.
    """
    value = self._left.pop(field, None)
    if value is None:
      if default is _REQUIRED:
        raise ValueError(f'{self.name} has no field {field!r}')
      return default
    if kind is None and default is not _REQUIRED and default is not None:
      kind = type(default)
    accepted = (int, float) if kind is float else kind
    if kind and (not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool)):
      raise ValueError(f'{self.name}: {field} must be of type {kind.__name__}, got {value!r}')
    return kind(value) if kind in (int, float) else value

  def __contains__(self, field: str) -> bool:
    """Whether the file has a field that was not taken yet, be it null."""
    return field in self._left

  def choose(self, field: str, default: str, names: Mapping[str, str]) -> str:
    """Our name for a field that is one of a few words; ValueError for any other."""
    value = self.take(field, default)
    if value not in names:
      raise ValueError(f'{self.name}: {field} must be one of {", ".join(names)}, got {value!r}')
    return names[value]

  def only(self, field: str, value: Any) -> None:
    """Takes a field that may have no other value; ValueError where it does."""
    given = self._left.pop(field, None)
    if given not in (None, value):
      raise ValueError(f'{self.name}: {field} must be {value!r}, got {given!r}: not supported here')

  def finish(self, *, inert: Iterable[str] = ()) -> None:
    """Raises ValueError naming a field that is neither consumed nor known to be inert."""
    for field, value in _ONLY.items():
      self.only(field, value)
    for field, value in self._left.items():
      if field not in INERT and field not in inert:
        raise ValueError(
            f'{self.name}: field {field!r} ({value!r}) is not known: if it does not change what '
            'the model computes, take it out of the file'
        )


def read_rope(
    parameters: Mapping[str, Any] | None,
    scaling: Mapping[str, Any] | None,
    *,
    theta: float | None,
    default_theta: float,
    max_positions: int,
    default_fraction: float | None = None,
    name: str = 'config.json',
) -> dict[str, Any]:
  """The rotary positions, in the old spelling or the new one.

  Args:
    parameters: `rope_parameters` (the new spelling: base, type and its settings).
    scaling: `rope_scaling` (the old one: type and its settings).
    theta: the base beside them, where it was given.
    default_theta: the base where there is none.
    max_positions: stands for a missing `original_max_position_embeddings`.
    default_fraction: how much of a head is rotated where `partial_rotary_factor` does not say;
      None in families that rotate all of it, whatever the field says.
    name: what the file is called in errors.

  Returns:
    Fields of `TransformerConfig`, rope_*.

  Raises:
    ValueError: a kind of scaling, or a setting of one, that is not supported.
  """
  if scaling and parameters and dict(scaling) != dict(parameters):
    raise ValueError(f'{name} has rope_scaling and rope_parameters, which differ: keep one')
  spelling = 'rope_scaling' if scaling else 'rope_parameters'
  given = Fields(scaling or parameters or {}, name=f'{name}, {spelling}')
  kind = given.take('rope_type', given.take('type', 'default'))
  given.only('type', kind)
  names = {'default': 'none', 'linear': 'linear', 'llama3': 'llama3'}
  if kind not in names:
    raise ValueError(f'{name}: rope_scaling must be of type {", ".join(names)}, got {kind!r}')
  own_theta = given.take('rope_theta', None, kind=float)
  if default_fraction is None:
    given.only('partial_rotary_factor', 1.0)
    default_fraction = 1.0
  out = {
      'rope_theta': float(own_theta or theta or default_theta),
      'rope_fraction': given.take('partial_rotary_factor', default_fraction),
      'rope_scaling': names[kind],
  }
  if kind == 'default':
    given.only('factor', 1.0)
  else:
    out['rope_factor'] = given.take('factor', kind=float)
  if kind == 'llama3':
    out['rope_low_freq_factor'] = given.take('low_freq_factor', kind=float)
    out['rope_high_freq_factor'] = given.take('high_freq_factor', kind=float)
    out['rope_original_length'] = given.take('original_max_position_embeddings', max_positions)
  given.finish()
  return out


def write_rope_scaling(config: configs.TransformerConfig) -> dict[str, Any] | None:
  """`rope_scaling` in the old spelling, which every version of transformers reads."""
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


_LAYER_LETTERS = {'full_attention': 'f', 'sliding_attention': 's'}


def read_layers(
    fields: Fields, num_layers: int, *, window: int | None, default: Iterable[bool]
) -> dict[str, Any]:
  """Which layers are sliding, from `layer_types` or, where it is absent, by default.

  Args:
    fields: the file; `layer_types` is taken.
    num_layers: how many there are.
    window: of the sliding ones, in tokens; None where none slides.
    default: for each layer, whether it slides.

  Returns:
    Fields of `TransformerConfig`, sliding_window and layer_pattern (its shortest form).

  Raises:
    ValueError: kinds of layers that are not known, too few or too many of them, or
      sliding ones without a window.
  """
  kinds = fields.take('layer_types', None, kind=list)
  if kinds is None:
    letters = ''.join('s' if window is not None and slides else 'f' for slides in default)
  else:
    unknown = [kind for kind in kinds if kind not in _LAYER_LETTERS]
    if unknown or len(kinds) != num_layers:
      raise ValueError(
          f'{fields.name}: layer_types must name {num_layers} layers as '
          f'{" or ".join(_LAYER_LETTERS)}, got {unknown[0] if unknown else len(kinds)!r}'
      )
    letters = ''.join(_LAYER_LETTERS[kind] for kind in kinds)
  if 's' not in letters:
    return {'sliding_window': 0, 'layer_pattern': ''}
  if window is None:
    raise ValueError(f'{fields.name}: layer_types has sliding layers and there is no window')
  repeats = lambda size: all(letters[i] == letters[i % size] for i in range(len(letters)))
  size = next(size for size in range(1, len(letters) + 1) if repeats(size))
  return {'sliding_window': window, 'layer_pattern': letters[:size]}


def write_layer_types(config: configs.TransformerConfig) -> list[str]:
  """`layer_types`, one a layer."""
  return ['sliding_attention' if slides else 'full_attention' for slides in config.sliding_layers]


def check_expressed(
    config: configs.TransformerConfig, again: configs.TransformerConfig, family: str
) -> None:
  """Raises ValueError unless what was written is read as the same model.

  Args:
    config: the model to be saved.
    again: what its written config.json is read as.
    family: for the error.
  """
  for field in dataclasses.fields(config):
    if field.name in configs.COMPUTE_FIELDS:
      continue
    name = 'sliding_layers' if field.name == 'layer_pattern' else field.name
    mine, theirs = getattr(config, name), getattr(again, name)
    same = math.isclose(mine, theirs, rel_tol=1e-9) if isinstance(mine, float) else mine == theirs
    if not same:
      raise ValueError(
          f'a {family} checkpoint cannot express {field.name}={getattr(config, field.name)!r} '
          f'(it would be read as {getattr(again, field.name)!r})'
      )
