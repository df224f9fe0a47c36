"""Reads a family's config.json: each field is consumed, known to be inert, or rejected by name.

If a field were silently ignored, the model would silently differ from the published one.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrl_llm.models import configs

# Fields that no family's forward pass depends on, in all published spellings.
# A field that is inert in one family only is listed by that family, and a field that is
# inert at a single value is in `_ONLY` or checked by its family.
INERT = frozenset({
    # Origin and storage of the file.
    'transformers_version', 'architectures', 'model_type', 'dtype', 'torch_dtype', '_name_or_path',
    'name_or_path', '_commit_hash', 'auto_map', 'custom_pipelines', 'transformers.js_config',
    'unsloth_fixed', 'unsloth_version', 'tokenizer_class', 'torchscript', 'xla_device',
    'use_bfloat16', 'tf_legacy_loss',
    # Execution and return values.
    'use_cache', 'output_attentions', 'output_hidden_states', 'output_past', 'return_dict',
    'use_return_dict', 'is_decoder', 'attn_implementation', '_attn_implementation',
    '_attn_implementation_autoset', '_attn_implementation_internal', '_flash_attn_2_enabled',
    # Training.
    'initializer_range', 'attention_dropout', 'hidden_dropout', 'classifier_dropout',
    'gradient_checkpointing', 'neftune_noise_alpha', 'max_sequence_length', 'model_max_length',
    'finetuning_task', 'task_specific_params', 'problem_type', 'num_labels', '_num_labels',
    'id2label', 'label2id',
    # Special ids, which are read with the tokenizer.
    'bos_token_id', 'eos_token_id', 'eos_token_ids', 'pad_token_id', 'unk_token_id',
    'sep_token_id', 'cls_token_id', 'mask_token_id', 'decoder_start_token_id',
    # Text generation, in older versions.
    'prefix', 'do_sample', 'temperature', 'top_k', 'top_p', 'min_p', 'typical_p', 'epsilon_cutoff',
    'eta_cutoff', 'penalty_alpha', 'guidance_scale', 'max_length', 'min_length', 'max_new_tokens',
    'min_new_tokens', 'max_time', 'stop_strings', 'num_beams', 'num_beam_groups',
    'num_return_sequences', 'early_stopping', 'length_penalty', 'repetition_penalty',
    'encoder_repetition_penalty', 'diversity_penalty', 'no_repeat_ngram_size',
    'encoder_no_repeat_ngram_size', 'bad_words_ids', 'force_words_ids', 'sequence_bias',
    'suppress_tokens', 'begin_suppress_tokens', 'forced_bos_token_id', 'forced_eos_token_id',
    'forced_decoder_ids', 'constraints', 'renormalize_logits', 'remove_invalid_values',
    'exponential_decay_length_penalty', 'cache_implementation', 'cache_config', 'low_memory',
    'output_scores', 'output_logits', 'return_dict_in_generate', 'token_healing',
    'watermarking_config', 'generation_kwargs',
})
# Fields that are inert at one value, which every family accepts.
_ONLY = {
    'is_encoder_decoder': False, 'add_cross_attention': False, 'chunk_size_feed_forward': 0,
    'use_bidirectional_attention': False, 'pretraining_tp': 1, 'cross_attention_hidden_size': None,
    'tie_encoder_decoder': False, 'pruned_heads': {}, 'use_mrope': False,
}
_REQUIRED = object()

# Names of activation functions in config.json, and our names; the names that are written.
PLAIN_ACTIVATIONS = {
    'gelu': 'gelu_exact', 'gelu_new': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_fast': 'gelu',
    'relu': 'relu',
}
WRITTEN_ACTIVATIONS = {'gelu': 'gelu_new', 'gelu_exact': 'gelu', 'relu': 'relu'}
GATED_ACTIVATIONS = {
    'silu': 'swiglu', 'swish': 'swiglu', 'gelu_pytorch_tanh': 'geglu', 'gelu_new': 'geglu',
}


def agree(name: str, values: Mapping[str, Any]) -> Any:
  """Returns the common value of fields that mean the same.

  Args:
    name: the file, for errors.
    values: values by field; None if a field is absent.

  Returns:
    The value, or None if all are absent.

  Raises:
    ValueError: two values differ.
  """
  given = [(field, value) for field, value in values.items() if value is not None]
  for field, value in given[1:]:
    first, expected = given[0]
    if value != expected:
      raise ValueError(
          f'{name}: {field} must be {expected!r}, got {value!r}: {first} is {expected!r}, and both '
          'mean the same')
  return given[0][1] if given else None


class Fields:
  """The fields of a config.json, each taken once."""

  def __init__(self, fields: Mapping[str, Any], *, name: str = 'config.json'):
    """Initialises with no field taken.

    Args:
      fields: the JSON object.
      name: name of the file, for errors.
    """
    self.name = name
    self._left = dict(fields)

  def take(self, field: str, default: Any = _REQUIRED, *, kind: type | None = None) -> Any:
    """Takes a field and returns its value; null counts as absent, unless the default is True.

    Args:
      field: name of the field.
      default: value if the field is absent; a field without a default is required.
      kind: int, float, bool, str, dict or list; by default the type of `default`.

    Returns:
      The value.

    Raises:
      ValueError: the field is missing or of another type.
    """
    present = field in self._left
    value = self._left.pop(field, None)
    if value is None:
      if present and default is True:  # transformers treats null as false.
        raise ValueError(f'{self.name}: {field} must be true or false, got null')
      if default is _REQUIRED:
        raise ValueError(f'{self.name} has no field {field!r}')
      return default

    if kind is None and default is not _REQUIRED and default is not None:
      kind = type(default)
    accepted = (int, float) if kind is float else kind
    if kind and (not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool)):
      raise ValueError(f'{self.name}: {field} must be of type {kind.__name__}, got {value!r}')
    return kind(value) if kind in (int, float) else value

  def take_same(self, fields: Iterable[str], default: Any = _REQUIRED, *, kind: type) -> Any:
    """Takes a field that has several names; raises ValueError if their values differ."""
    first, *others = fields
    value = agree(
        self.name, {field: self.take(field, None, kind=kind) for field in (first, *others)})
    if value is None and default is _REQUIRED:
      raise ValueError(f'{self.name} has no field {first!r}')
    return default if value is None else value

  def __contains__(self, field: str) -> bool:
    """True if the file has the field, even as null, and it was not taken yet."""
    return field in self._left

  def choose(self, field: str, default: str, names: Mapping[str, str]) -> str:
    """Takes a field and maps its value to our name; raises ValueError for an unknown value."""
    value = self.take(field, default)
    if value not in names:
      raise ValueError(f'{self.name}: {field} must be one of {", ".join(names)}, got {value!r}')
    return names[value]

  def only(self, field: str, value: Any, reason: str = 'not supported here') -> None:
    """Takes a field that may only have `value`; raises ValueError with the reason otherwise."""
    given = self._left.pop(field, None)
    if given not in (None, value):
      raise ValueError(f'{self.name}: {field} must be {value!r}, got {given!r}: {reason}')

  def finish(self, *, inert: Iterable[str] = ()) -> None:
    """Raises ValueError naming a field that was neither taken nor is known to be inert."""
    for field, value in _ONLY.items():
      self.only(field, value)
    agree(self.name, {field: self._left.get(field) for field in ('torch_dtype', 'dtype')})
    for field, value in self._left.items():
      if field not in INERT and field not in inert:
        raise ValueError(
            f'{self.name}: unknown field {field!r} ({value!r}): if it does not change what the '
            'model computes, remove it from the file'
        )


_LAYER_LETTERS = {'full_attention': 'f', 'sliding_attention': 's'}


def read_layers(
    fields: Fields, num_layers: int, *, window: int | None, default: Iterable[bool]
) -> dict[str, Any]:
  """Reads the sliding layers from `layer_types` or, if it is absent, from `default`.

  Args:
    fields: fields of the file; `layer_types` is taken.
    num_layers: number of layers.
    window: window of the sliding layers, in tokens; None if no layer slides.
    default: for each layer, True if it slides.

  Returns:
    The fields sliding_window and layer_pattern (in its shortest form) of `TransformerConfig`.

  Raises:
    ValueError: unknown kinds of layers, too few or too many layers, or sliding layers
      without a window.
  """
  kinds = fields.take('layer_types', None, kind=list)
  if kinds is None:
    letters = ''.join('s' if window is not None and slides else 'f' for slides in default)
  else:
    unknown = [kind for kind in kinds if kind not in tuple(_LAYER_LETTERS)]
    if unknown or len(kinds) != num_layers:
      raise ValueError(
          f'{fields.name}: layer_types must name {num_layers} layers as '
          f'{" or ".join(_LAYER_LETTERS)}, got {unknown[0] if unknown else len(kinds)!r}'
      )
    letters = ''.join(_LAYER_LETTERS[kind] for kind in kinds)

  if 's' not in letters:
    return {'sliding_window': 0, 'layer_pattern': ''}
  if window is None:
    raise ValueError(f'{fields.name}: layer_types has sliding layers, but there is no window')

  repeats = lambda size: all(letters[i] == letters[i % size] for i in range(len(letters)))
  size = next(size for size in range(1, len(letters) + 1) if repeats(size))
  return {'sliding_window': window, 'layer_pattern': letters[:size]}


def write_layer_types(config: configs.TransformerConfig) -> list[str]:
  """Returns `layer_types`, one per layer."""
  return ['sliding_attention' if slides else 'full_attention' for slides in config.sliding_layers]


def check_expressed(
    config: configs.TransformerConfig, again: configs.TransformerConfig, family: str
) -> None:
  """Raises ValueError unless the written config.json is read back as the same model.

  Args:
    config: config of the model to be saved.
    again: config read back from its config.json.
    family: family name, for the error.
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
