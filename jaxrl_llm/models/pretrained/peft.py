"""LoRA adapters in PEFT's format, both ways: adapter_config.json and adapter_model.safetensors.

PEFT adapts a module by lora_A.weight [r, in] and lora_B.weight [out, r]. Where a family keeps
several of our kernels in one module (GPT-2's c_attn, GPT-NeoX's query_key_value), their adapters
become one of the summed rank, exactly: the A's stand above each other, and each B fills its own
outputs and its own ranks, with zeros elsewhere. Kernels of the module without an adapter get an
A and a B of zeros, so that the blocks can be told apart when they are read.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_llm.models import configs, lora, policy
from jaxrl_llm.models.pretrained import huggingface, mapping, weights
from jaxrl_llm.types import Params

_CONFIG = 'adapter_config.json'
_TENSORS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
# The module of every head; before transformers 5 that of GPT-NeoX was called as in its files.
_HEAD, _OLD_HEAD = 'lm_head', 'embed_out'

# Fields of adapter_config.json that say nothing about the numbers, or nothing that the tensors
# do not say. Those that are neither here nor read must be off.
_INERT = frozenset({
    'auto_mapping', 'base_model_name_or_path', 'exclude_modules', 'fan_in_fan_out',
    'inference_mode', 'layers_pattern', 'layers_to_transform', 'lora_dropout', 'megatron_core',
    'peft_version', 'qalora_group_size', 'rank_pattern', 'revision', 'runtime_config',
    'target_modules', 'task_type',
})
_READ = frozenset({
    'alpha_pattern', 'bias', 'init_lora_weights', 'lora_alpha', 'peft_type', 'r', 'use_rslora',
})
# The others change the base's weights at the start.
_PLAIN_STARTS = (True, False, 'gaussian', 'orthogonal')


class _Module(NamedTuple):
  """A linear module of theirs, and the kernels of ours that it holds.

  Attributes:
    name: '{i}' stands for the layer.
    layers: paths in our tree, without `kernel`.
    shapes: of those kernels, for one layer.
    count: how many layers there are; 1 for a head.
    entry: of its weight.
  """

  name: str
  layers: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  count: int
  entry: mapping.Entry

  def names(self) -> list[str]:
    """Names of the modules, layer after layer."""
    return [self.name.replace('{i}', str(i)) for i in range(self.count)]

  @property
  def target(self) -> str:
    """How adapter_config.json names it for all layers together."""
    return self.name.rpartition('{i}.')[2]

  @property
  def inputs_first(self) -> bool:
    """Whether their weight is [in, out] (Conv1D) rather than [out, in] (Linear)."""
    one_input = [np.zeros((1, shape[1]), np.int8) for shape in self.shapes]
    return self.layers != ('head',) and self.entry.join(*one_input).shape[0] == 1


def save(
    directory: str | os.PathLike,
    adapters: Params,
    lora_config: lora.LoraConfig,
    config: configs.TransformerConfig,
    *,
    model_type: str,
    base: str | None = None,
) -> None:
  """Writes adapters so that `peft.PeftModel.from_pretrained(model, directory)` loads them.

  Args:
    directory: new or empty.
    adapters: of the parameters of a `lora.make`; float32 on the disk.
    lora_config: their config.
    config: of the base model.
    model_type: of the base model, as in its config.json.
    base: where the base model lies; a remark for readers.

  Raises:
    ValueError: there is an adapter that the family has no module for, or that does not fit it;
      the layers are split; or the folder is in use.
    OSError: it cannot be written.
  """
  from safetensors import numpy as safetensors_numpy

  if 'last_layers' in adapters:
    raise ValueError('the layers of these adapters stand apart: join them first (partial.join)')
  leaves = {path: np.asarray(leaf, np.float32) for path, leaf in mapping.flatten(adapters).items()}
  left = {path.rpartition('/')[0] for path in leaves}
  tensors, ranks, inputs_first = {}, {}, False
  for module in _modules(model_type, config):
    if not left & set(module.layers):
      continue
    left -= set(module.layers)
    _check(module, leaves)
    inputs_first = inputs_first or module.inputs_first
    for layer, name in enumerate(module.names()):
      a, b = _join(module, leaves, lora_config.rank, layer)
      tensors[f'{_PREFIX}{name}.lora_A.weight'] = np.ascontiguousarray(a)
      tensors[f'{_PREFIX}{name}.lora_B.weight'] = np.ascontiguousarray(b)
      ranks[module.target] = a.shape[0]
  if left:
    raise ValueError(f'{model_type} has no module for the adapter of {min(left)}')
  others = {target: rank for target, rank in ranks.items() if rank != lora_config.rank}
  scaled = lambda rank: _plain(lora_config.alpha * rank / lora_config.rank)
  fields = {
      'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base,
      'inference_mode': True, 'r': lora_config.rank, 'lora_alpha': scaled(lora_config.rank),
      'rank_pattern': others, 'target_modules': list(ranks),
      'alpha_pattern': {target: scaled(rank) for target, rank in others.items()},
      'fan_in_fan_out': inputs_first, 'lora_dropout': 0.0, 'bias': 'none',
  }
  with weights.new_directory(directory) as folder:
    (folder / _CONFIG).write_text(json.dumps(fields, indent=2) + '\n', encoding='utf-8')
    safetensors_numpy.save_file(tensors, folder / _TENSORS, metadata={'format': 'pt'})


def load(
    directory: str | os.PathLike, config: configs.TransformerConfig, *, model_type: str
) -> tuple[lora.LoraConfig, Params]:
  """Reads adapters that `save` or PEFT wrote.

  An adapter of several of our kernels becomes one for each, with the same A. What `save` wrote
  comes back as it was.

  Args:
    directory: with adapter_config.json and adapter_model.safetensors.
    config: of the base model.
    model_type: of the base model, as in its config.json.

  Returns:
    (the config, the adapters), float32 on the host. Some may have another rank than the config.

  Raises:
    ValueError: one line, naming the file and the field or tensor: it is missing, damaged, of a
      wrong shape, unknown, or asks for something that there is not here.
  """
  directory = pathlib.Path(directory)
  fields = _read_fields(directory / _CONFIG)
  path = directory / _TENSORS
  tensors = _read_tensors(path)
  rank, alpha = fields['r'], float(fields['lora_alpha'])
  if fields.get('use_rslora'):
    alpha *= rank**0.5
  leaves: dict[str, np.ndarray] = {}
  for module in _modules(model_type, config):
    pairs = [[f'{_PREFIX}{name}.lora_{side}.weight' for side in 'AB'] for name in module.names()]
    if not any(name in tensors for pair in pairs for name in pair):
      continue
    found = []
    for name, pair in zip(module.names(), pairs):
      a, b = _take(tensors, pair, module, path)
      factor = _scale(fields, name, a.shape[0]) / (alpha / rank)
      found.append((a, b if factor == 1 else b * np.float32(factor)))
    if len({a.shape for a, _ in found}) > 1:
      raise ValueError(f'the ranks of {module.name} in {path} must be those of its first layer')
    leaves |= _split(module, found, rank)
    _drop_base_layer(tensors, module)
  if tensors:
    raise ValueError(f'tensor {min(tensors)} in {path} has no place in the model')
  if not leaves:
    raise ValueError(f'{path} holds no adapter')
  targets = {leaf.rpartition('/')[0].removeprefix('layers/') for leaf in leaves}
  return lora.LoraConfig(rank, alpha, '|'.join(sorted(targets))), mapping.unflatten(leaves)


def _modules(model_type: str, config: configs.TransformerConfig) -> Iterator[_Module]:
  """The linear modules of a policy; its head also where it is tied."""
  family = huggingface.find_family(model_type)
  untied = dataclasses.replace(config, tie_embeddings=False)
  kernels = mapping.flatten(jax.eval_shape(policy.make(untied).init, jax.random.key(0)))
  for entry in mapping.with_prefix(family.entries(untied), family.PREFIX):
    if not all(path.endswith('/kernel') for path in entry.ours):
      continue
    stacked = '{i}' in entry.theirs
    yield _Module(
        name=entry.theirs.removesuffix('.weight') if stacked else _HEAD,
        layers=tuple(path.removesuffix('/kernel') for path in entry.ours),
        shapes=tuple(kernels[path].shape[1 if stacked else 0 :] for path in entry.ours),
        count=config.num_layers if stacked else 1,
        entry=entry,
    )


def _check(module: _Module, leaves: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError if an adapter is not one of this module's kernels."""
  stack = () if module.layers == ('head',) else (module.count,)
  for path, shape in zip(module.layers, module.shapes):
    if f'{path}/lora_a' in leaves:
      a, b = leaves[f'{path}/lora_a'].shape, leaves[f'{path}/lora_b'].shape
      # [in, r] [r, out], and for a head [r, D] and [V, r].
      fits = a[:-1] + b[-1:] == (*stack, *shape) if stack else b[:1] + a[1:] == shape
      if not fits:
        raise ValueError(
            f'the adapter of {path} is {list(a)}, {list(b)}, for a kernel of '
            f'{[*stack, *shape]} ({module.name})'
        )


def _join(
    module: _Module, leaves: Mapping[str, np.ndarray], rank: int, layer: int
) -> tuple[np.ndarray, np.ndarray]:
  """Their A [R, in] and B [out, R] of one layer; R is the sum of the kernels' ranks.

  The name map moves outputs only, so that it takes our B [r, out] as it takes a kernel [in, out].
  """
  if module.layers == ('head',):
    return leaves['head/lora_a'], leaves['head/lora_b']
  pairs = []
  for path, (inputs, outputs) in zip(module.layers, module.shapes):
    if f'{path}/lora_a' in leaves:
      pairs.append((leaves[f'{path}/lora_a'][layer], leaves[f'{path}/lora_b'][layer]))
    else:
      zeros = lambda *shape: np.zeros(shape, np.float32)
      pairs.append((zeros(inputs, rank), zeros(rank, outputs)))
  columns = []
  for place, (_, b) in enumerate(pairs):
    alone = [b if other == place else np.zeros((len(b), shape[1]), np.float32)
             for other, shape in enumerate(module.shapes)]
    column = module.entry.join(*alone)
    columns.append(column.T if module.inputs_first else column)
  return np.concatenate([a.T for a, _ in pairs]), np.concatenate(columns, axis=1)


def _split(
    module: _Module, pairs: list[tuple[np.ndarray, np.ndarray]], rank: int
) -> dict[str, np.ndarray]:
  """Our adapters of a module from their (A [R, in], B [out, R]) of each layer; see `_join`."""
  if module.layers == ('head',):
    ((a, b),) = pairs
    return {'head/lora_a': a, 'head/lora_b': b}
  stacked_a = np.stack([a.T for a, _ in pairs])  # [N, in, R]
  parts = [module.entry.split(b.T if module.inputs_first else b) for _, b in pairs]
  stacked_b = [np.stack(layers) for layers in zip(*parts)]  # Of each kernel, [N, R, out].
  blocks = [slice(k * rank, (k + 1) * rank) for k in range(len(stacked_b))]
  total = stacked_a.shape[-1]
  outside = lambda k: np.delete(stacked_b[k], np.r_[blocks[k]], axis=1)
  if total != len(blocks) * rank or any(outside(k).any() for k in range(len(blocks))):
    blocks = [slice(total)] * len(blocks)
  leaves = {}
  for path, block, b in zip(module.layers, blocks, stacked_b):
    if stacked_a[:, :, block].any():
      leaves[f'{path}/lora_a'] = np.ascontiguousarray(stacked_a[:, :, block])
      leaves[f'{path}/lora_b'] = np.ascontiguousarray(b[:, block])
  return leaves


def _take(
    tensors: dict[str, np.ndarray], names: list[str], module: _Module, path: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
  """Takes A [R, in] and B [out, R] of a module out of `tensors`."""
  for name in names:
    if name not in tensors:
      raise ValueError(f'tensor {name} is missing from {path}')
  a, b = (tensors.pop(name) for name in names)
  if module.layers == ('head',):
    outputs, inputs = module.shapes[0]
  else:
    inputs, outputs = module.shapes[0][0], sum(shape[1] for shape in module.shapes)
  rank = a.shape[0] if a.ndim else 0
  wanted = (rank, inputs), (outputs, rank)
  for name, tensor, shape in zip(names, (a, b), wanted):
    if tensor.shape != shape:
      raise ValueError(
          f'tensor {name} in {path} has shape {list(tensor.shape)}, the model needs {list(shape)}'
      )
  return a, b


def _drop_base_layer(tensors: dict[str, np.ndarray], module: _Module) -> None:
  """Drops the base's own head, which PEFT puts beside an adapter of it."""
  name = f'{_PREFIX}{module.name}.base_layer.weight'
  if name in tensors and tensors[name].shape == module.shapes[0]:
    del tensors[name]


def _scale(fields: Mapping[str, Any], name: str, rank: int) -> float:
  """By what PEFT multiplies B A of the module of that name."""
  alpha = fields['lora_alpha']
  for pattern, own in (fields.get('alpha_pattern') or {}).items():
    if re.fullmatch(_ending(pattern), name):
      alpha = own
      break
  return alpha / (rank**0.5 if fields.get('use_rslora') else rank)


def _plain(number: float) -> float:
  """An integer where it is one, which is what PEFT's own files hold."""
  return int(number) if number == int(number) else number


def _check_alphas(alphas: Any, path: pathlib.Path) -> None:
  """Raises ValueError unless `alpha_pattern` is {regular expression: positive number}."""
  if not isinstance(alphas, dict):
    raise ValueError(f'alpha_pattern must be an object, got {alphas!r} ({path})')
  for pattern, alpha in alphas.items():
    try:
      re.compile(_ending(pattern))
    except (re.error, OverflowError, RecursionError) as error:
      raise ValueError(
          f'alpha_pattern must have regular expressions as names, got {pattern!r}: {error} ({path})'
      ) from None
    if type(alpha) not in (int, float) or not 0 < alpha < float('inf'):
      raise ValueError(
          f'alpha_pattern must hold positive numbers, got {alpha!r} of {pattern!r} ({path})'
      )


def _ending(pattern: str) -> str:
  """A regular expression of the names that end, after a dot, in what `pattern` matches."""
  return rf'(.*\.)?({pattern})'


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  # The reader for JAX: the one for NumPy knows no bfloat16.
  from safetensors import SafetensorError
  from safetensors import flax as safetensors_jax

  try:
    tensors = safetensors_jax.load_file(path)
  except (OSError, SafetensorError) as error:
    raise ValueError(f'{path} cannot be read: {" ".join(str(error).split())}') from error
  old, new = (f'{_PREFIX}{head}.' for head in (_OLD_HEAD, _HEAD))
  renamed = lambda name: new + name.removeprefix(old) if name.startswith(old) else name
  return {renamed(name): np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def _read_fields(path: pathlib.Path) -> dict[str, Any]:
  """adapter_config.json, if it asks for nothing but plain LoRA."""
  try:
    fields = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read: {error}') from error
  if not isinstance(fields, dict):
    raise ValueError(f'{path} must hold a JSON object, got a {type(fields).__name__}')

  def require(condition: bool, field: str, rule: str) -> None:
    if not condition:
      raise ValueError(f'{field} must be {rule}, got {fields.get(field)!r} ({path})')

  number = lambda name, kinds: (
      isinstance(fields.get(name), kinds) and not isinstance(fields[name], bool)
      and 0 < fields[name] < float('inf')
  )
  require(fields.get('peft_type') == 'LORA', 'peft_type', "'LORA'")
  require(number('r', int), 'r', 'a positive integer')
  require(number('lora_alpha', (int, float)), 'lora_alpha', 'a positive number')
  require(fields.get('bias', 'none') == 'none', 'bias', "'none'")
  _check_alphas(fields.get('alpha_pattern') or {}, path)
  start = fields.get('init_lora_weights', True)
  require(start in _PLAIN_STARTS, 'init_lora_weights', f'one of {_PLAIN_STARTS}')
  for field in sorted(fields.keys() - _READ - _INERT):
    require(not fields[field], field, 'off: it is not supported')
  return fields
