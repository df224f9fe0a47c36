"""Reads and writes LoRA adapters in PEFT's format: adapter_config.json, adapter_model.safetensors.

PEFT adapts a module with lora_A.weight [r, in] and lora_B.weight [out, r]. If a family stores
several of our kernels in one module (GPT-2's c_attn, GPT-NeoX's query_key_value), their adapters
are combined exactly into one whose rank is the sum of theirs: the A's are stacked, and each B
fills its own outputs and its own ranks, with zeros elsewhere. Kernels of the module without an
adapter get an A and a B of zeros, so that the blocks can be separated when they are read.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.models import configs, lora, policy
from jaxrl_llm.models.pretrained import adapter_config, huggingface, mapping, weights
from jaxrl_llm.types import Params

_TENSORS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
# The module of every head; before transformers 5, GPT-NeoX used the name in its files.
_HEAD, _OLD_HEAD = 'lm_head', 'embed_out'


class _Module(NamedTuple):
  """A linear module of transformers, and our kernels that it contains.

  Attributes:
    name: name of the module, with '{i}' for the layer.
    layers: paths in our tree, without `kernel`.
    shapes: shapes of those kernels, for one layer.
    count: number of layers; 1 for a head.
    entry: entry of the module's weight in the name map.
  """

  name: str
  layers: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  count: int
  entry: mapping.Entry

  def names(self) -> list[str]:
    """Names of the modules, one per layer."""
    return [self.name.replace('{i}', str(i)) for i in range(self.count)]

  def aliases(self, name: str) -> tuple[str, ...]:
    """Names by which adapter_config.json may refer to the module `name`."""
    return (name, self.entry.theirs.removesuffix('.weight')) if self.is_head else (name,)

  @property
  def is_head(self) -> bool:
    """True for the head; our kernel of a head is [out, in]."""
    return self.layers == ('head',)

  @property
  def sizes(self) -> tuple[int, int]:
    """(inputs, outputs)."""
    if self.is_head:
      return self.shapes[0][1], self.shapes[0][0]
    return self.shapes[0][0], sum(shape[1] for shape in self.shapes)

  @property
  def target(self) -> str:
    """Name in adapter_config.json that selects the module in all layers."""
    return self.name.rpartition('{i}.')[2]

  @property
  def inputs_first(self) -> bool:
    """True if the module's weight is [in, out] (Conv1D) rather than [out, in] (Linear)."""
    one_input = [np.zeros((1, shape[1]), np.int8) for shape in self.shapes]
    return not self.is_head and self.entry.join(*one_input).shape[0] == 1


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
    directory: new or empty directory.
    adapters: the adapters of a model from `lora.make`; written as float32.
    lora_config: config of the adapters.
    config: config of the base model.
    model_type: model_type of the base model, as in its config.json.
    base: path or name of the base model; informational only.

  Raises:
    ValueError: an adapter has no module in the family, or does not fit it; the layers are
      split; or the directory is in use.
    OSError: the directory cannot be written.
  """
  from safetensors import numpy as safetensors_numpy

  if 'last_layers' in adapters:
    raise ValueError('the last layers of these adapters are split off: join them (partial.join)')

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

  fields = _config_fields(lora_config, ranks, base=base, inputs_first=inputs_first)
  with weights.new_directory(directory) as folder:
    (folder / adapter_config.FILE).write_text(json.dumps(fields, indent=2) + '\n', encoding='utf-8')
    safetensors_numpy.save_file(tensors, folder / _TENSORS, metadata={'format': 'pt'})


def _config_fields(
    lora_config: lora.LoraConfig, ranks: Mapping[str, int], *, base: str | None, inputs_first: bool
) -> dict[str, Any]:
  """Returns the contents of adapter_config.json for modules of the given ranks, by target."""
  def scaled(rank):
    return _plain(lora_config.alpha * rank / lora_config.rank)

  others = {target: rank for target, rank in ranks.items() if rank != lora_config.rank}
  return {
      'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base,
      'inference_mode': True, 'r': lora_config.rank, 'lora_alpha': scaled(lora_config.rank),
      'rank_pattern': others, 'target_modules': list(ranks),
      'alpha_pattern': {target: scaled(rank) for target, rank in others.items()},
      'fan_in_fan_out': inputs_first, 'lora_dropout': 0.0, 'bias': 'none',
  }


def is_adapters(directory: str | os.PathLike) -> bool:
  """Returns whether a directory holds adapters in PEFT's format."""
  directory = pathlib.Path(directory)
  return (directory / adapter_config.FILE).is_file() and (
      not (directory / 'config.json').is_file() or (directory / _TENSORS).is_file())


def base_directory(directory: str | os.PathLike) -> str:
  """Returns base_model_name_or_path of adapters; '' if there is none.

  Raises:
    ValueError: adapter_config.json is not a JSON object.
  """
  path = pathlib.Path(directory) / adapter_config.FILE
  try:
    base = json.loads(path.read_bytes()).get('base_model_name_or_path')
  except (ValueError, AttributeError) as error:
    raise ValueError(f'{path} must contain a JSON object: {error}') from error
  return base if isinstance(base, str) else ''


def load(
    directory: str | os.PathLike, config: configs.TransformerConfig, *, model_type: str
) -> tuple[lora.LoraConfig, Params]:
  """Reads adapters written by `save` or PEFT.

  An adapter of several of our kernels becomes one adapter per kernel, with the same A. Layers that
  adapter_config.json excludes get adapters of zeros, which add nothing and get no gradient.
  Adapters written by `save` are restored exactly.

  Args:
    directory: directory with adapter_config.json and adapter_model.safetensors.
    config: config of the base model.
    model_type: model_type of the base model, as in its config.json.

  Returns:
    (config, adapters); adapters are float32 on the host. Some may differ in rank from the config.

  Raises:
    ValueError: one line that names the file and the field or tensor: it is missing, damaged, of
      a wrong shape or rank, unknown, of a module that the config excludes, or requires an
      unsupported feature.
  """
  directory = pathlib.Path(directory)
  fields = adapter_config.read(directory / adapter_config.FILE, num_layers=config.num_layers)
  path = directory / _TENSORS
  tensors = _read_tensors(path)
  if not tensors:
    raise ValueError(f'{path} contains no adapter')

  _check_no_embedding(fields, model_type, config)

  rank = fields.r
  alpha = fields.alpha * (rank**0.5 if fields.rank_stabilised else 1.0)
  leaves: dict[str, np.ndarray] = {}
  for module in _modules(model_type, config):
    pairs = _take_layers(tensors, module, fields, alpha / rank, path)
    if pairs:
      leaves |= _split(module, pairs, rank)
      _drop_base_layer(tensors, module)

  if tensors:
    raise ValueError(f'tensor {min(tensors)} in {path} is not used by the model')
  if not leaves:
    raise ValueError(f'{path} contains no adapter')

  targets = {leaf.rpartition('/')[0].removeprefix('layers/') for leaf in leaves}
  return lora.LoraConfig(rank, alpha, '|'.join(sorted(targets))), mapping.unflatten(leaves)


def _check_no_embedding(
    fields: adapter_config.AdapterConfig, model_type: str, config: configs.TransformerConfig
) -> None:
  """Raises ValueError if the config selects an embedding, whose adapters are not supported."""
  if fields.targets is None or fields.takes_all_linear:
    return
  family = huggingface.find_family(model_type)
  for entry in mapping.with_prefix(family.entries(config), family.PREFIX):
    name = entry.theirs.removesuffix('.weight')
    if entry.ours[0].startswith('embedder/') and not fields.excluded_by(name):
      raise ValueError(
          f'target_modules must not include the embedding {name} (its adapters are not supported), '
          f'got {fields.targets!r} ({fields.path})')


def _take_layers(
    tensors: dict[str, np.ndarray], module: _Module, fields: adapter_config.AdapterConfig,
    scale: float, path: pathlib.Path,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Removes the adapters of a module, in all layers, from `tensors` and returns them.

  Args:
    tensors: remaining tensors of the file.
    module: the module.
    fields: the file's config: layers with an adapter, ranks and scales.
    scale: factor on B A that the returned adapters will have; B is rescaled accordingly.
    path: the file, for errors.

  Returns:
    (A [R, in], B [out, R]) of each layer, where R is the largest rank. Layers of a smaller rank
    are padded with zeros, and layers without an adapter are zero: no gradient ever changes them.
    Empty if the module has no adapters.
  """
  sides = {
      name: [f'{_PREFIX}{name}.lora_{side}.weight' for side in 'AB'] for name in module.names()
  }
  if fields.targets is None and not any(set(pair) & tensors.keys() for pair in sides.values()):
    return []

  pairs = []
  for name, names in sides.items():
    present = [tensor for tensor in names if tensor in tensors]
    reasons = [fields.excluded_by(alias, is_head=module.is_head) for alias in module.aliases(name)]
    if all(reasons):
      if present:
        raise ValueError(
            f'tensor {present[0]} in {path} is of a module that has no adapter: {reasons[0]} '
            f'({adapter_config.FILE})')
      pairs.append(None)
      continue

    a, b = _take(tensors, names, module, fields.rank(name), path)
    factor = fields.scale(name) / scale
    pairs.append((a, b if factor == 1 else b * np.float32(factor)))

  rank = max((pair[0].shape[0] for pair in pairs if pair), default=0)
  return [_fill(module, pair, rank) for pair in pairs] if rank else []


def _fill(
    module: _Module, pair: tuple[np.ndarray, np.ndarray] | None, rank: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads (A, B) to a larger rank with zeros; None is an adapter of rank 0."""
  inputs, outputs = module.sizes
  a, b = pair or (np.zeros((0, inputs), np.float32), np.zeros((outputs, 0), np.float32))
  more = rank - a.shape[0]
  return (np.pad(a, [(0, more), (0, 0)]), np.pad(b, [(0, 0), (0, more)])) if more else (a, b)


def _modules(model_type: str, config: configs.TransformerConfig) -> Iterator[_Module]:
  """Yields the linear modules of a policy, including a tied head."""
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
  """Raises ValueError if an adapter does not fit its kernel in this module."""
  stack = () if module.is_head else (module.count,)
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
  """Returns PEFT's A [R, in] and B [out, R] of one layer; R is the sum of the kernels' ranks.

  The name map rearranges outputs only, so it applies to our B [r, out] as to a kernel [in, out].
  """
  if module.is_head:
    return leaves['head/lora_a'], leaves['head/lora_b']

  pairs = []
  for path, (inputs, outputs) in zip(module.layers, module.shapes):
    if f'{path}/lora_a' in leaves:
      pairs.append((leaves[f'{path}/lora_a'][layer], leaves[f'{path}/lora_b'][layer]))
    else:
      zeros = lambda *shape: np.zeros(shape, np.float32)
      pairs.append((zeros(inputs, rank), zeros(rank, outputs)))

  columns = []
  for index, (_, b) in enumerate(pairs):
    alone = [b if other == index else np.zeros((len(b), shape[1]), np.float32)
             for other, shape in enumerate(module.shapes)]
    column = module.entry.join(*alone)
    columns.append(column.T if module.inputs_first else column)

  return np.concatenate([a.T for a, _ in pairs]), np.concatenate(columns, axis=1)


def _split(
    module: _Module, pairs: list[tuple[np.ndarray, np.ndarray]], rank: int
) -> dict[str, np.ndarray]:
  """Converts PEFT's (A [R, in], B [out, R]) of each layer to our adapters; see `_join`."""
  if module.is_head:
    ((a, b),) = pairs
    return {'head/lora_a': a, 'head/lora_b': b}

  stacked_a = np.stack([a.T for a, _ in pairs])  # [N, in, R]
  parts = [module.entry.split(b.T if module.inputs_first else b) for _, b in pairs]
  stacked_b = [np.stack(layers) for layers in zip(*parts)]  # [N, R, out] per kernel.
  blocks = [slice(k * rank, (k + 1) * rank) for k in range(len(stacked_b))]
  total = stacked_a.shape[-1]

  def outside(k):
    """Rows of the k-th kernel that are not in its block."""
    return np.delete(stacked_b[k], np.r_[blocks[k]], axis=1)

  # `save` writes separate blocks; otherwise every kernel gets the whole A.
  if total != len(blocks) * rank or any(outside(k).any() for k in range(len(blocks))):
    blocks = [slice(total)] * len(blocks)

  leaves = {}
  for path, block, b in zip(module.layers, blocks, stacked_b):
    if stacked_a[:, :, block].any():
      leaves[f'{path}/lora_a'] = np.ascontiguousarray(stacked_a[:, :, block])
      leaves[f'{path}/lora_b'] = np.ascontiguousarray(b[:, block])

  return leaves


def _take(
    tensors: dict[str, np.ndarray], names: list[str], module: _Module, rank: tuple[int, str],
    path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray]:
  """Removes A [R, in] and B [out, R] of a module from `tensors`; `rank` is (R, its field)."""
  for name in names:
    if name not in tensors:
      raise ValueError(f'tensor {name} is missing from {path}')
  a, b = (tensors.pop(name) for name in names)
  inputs, outputs = module.sizes
  number, field = rank
  for name, tensor, shape in zip(names, (a, b), ((number, inputs), (outputs, number))):
    if tensor.shape != shape:
      raise ValueError(
          f'tensor {name} in {path} has shape {list(tensor.shape)}, the model needs {list(shape)} '
          f'with {field} = {number} ({adapter_config.FILE})')
  return a, b


def _drop_base_layer(tensors: dict[str, np.ndarray], module: _Module) -> None:
  """Drops the base model's head, which PEFT stores next to its adapter."""
  name = f'{_PREFIX}{module.name}.base_layer.weight'
  if name in tensors and tensors[name].shape == module.shapes[0]:
    del tensors[name]


def _plain(number: float) -> float:
  """Converts a whole number to int, as in PEFT's own files."""
  return int(number) if number == int(number) else number


def _read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  # The NumPy reader does not support bfloat16; the JAX reader does.
  from safetensors import SafetensorError
  from safetensors import flax as safetensors_jax

  try:
    tensors = safetensors_jax.load_file(path)
  except (OSError, SafetensorError) as error:
    raise ValueError(f'{path} cannot be read: {" ".join(str(error).split())}') from error
  for name, tensor in tensors.items():
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
      raise ValueError(f'tensor {name} in {path} must contain floats, got {tensor.dtype}')

  old, new = (f'{_PREFIX}{head}.' for head in (_OLD_HEAD, _HEAD))

  def renamed(name: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name

  return {renamed(name): np.asarray(tensor, np.float32) for name, tensor in tensors.items()}
