"""Runs checkpoint directories with our models, without torch."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from jaxrl_llm.models import encoder, policy, reward, value
from jaxrl_llm.models.pretrained import huggingface
from tests.golden import draws, model_cases

FOLDER = pathlib.Path(__file__).parent / 'models'
KEY = jax.random.key(0)


@functools.cache
def records(*, encoders: bool = False) -> dict[str, dict]:
  """Golden records by name, each with 'arrays': those of its case, '', and of its controls."""
  all_records = {}
  for path in sorted(FOLDER.glob('*.json')):
    if (path.stem == 'bert') is encoders:
      with np.load(path.with_suffix('.npz')) as arrays:
        for record in json.loads(path.read_text()):
          record['arrays'] = {
              key.removeprefix(record['name']).lstrip('/'): arrays[key] for key in arrays
              if key.split('/')[0] == record['name']}
          all_records[record['name']] = record
  return all_records


def reseeded(record: dict, seed: int) -> dict:
  """The same model with other weights and tokens, without golden logits."""
  key = f'{seed}/{record["name"]}'
  sequences = draws.rows(key, model_cases.LENGTHS, record['fields']['vocab_size'])
  return {**record, 'key': key, 'sequences': sequences, 'arrays': {}}


def weights(record: dict) -> dict[str, np.ndarray]:
  """The tensors of a checkpoint."""
  key = record.get('key', record['name'])
  return draws.tensors(key, record['shapes'], norm_centre=record['norm_centre'])


def control_weights(record: dict, control: dict) -> dict[str, np.ndarray]:
  """The tensors of one of its controls."""
  changed = weights(record)
  if control.get('shapes'):
    key = record.get('key', record['name'])
    changed = draws.in_shapes(
        key, changed, control['shapes'], norm_centre=record['norm_centre'])
  edit = control.get('edit')
  return draws.edited(changed, edit) if edit and edit[0] in ('zero', 'minus_one') else changed


def batch(record: dict, *, left: bool):
  """(tokens, mask, positions) of its sequences."""
  fill = 0 if record['classifier'] else None
  return draws.padded(record['sequences'], width=model_cases.WIDTH, left=left, fill=fill)


def stored(record: dict, values: np.ndarray, mask: np.ndarray, indices) -> np.ndarray:
  """Selects the outputs of a model on a batch that the golden files contain."""
  return values if record['classifier'] else draws.at_tokens(values, mask, indices)


def file_bytes(directory: pathlib.Path) -> dict[str, bytes]:
  """Data of each tensor of a directory's only file."""
  with safetensors.safe_open(directory / 'model.safetensors', 'np') as file:
    return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def functions(checkpoint, config=None):
  """Returns the model of a checkpoint's architecture: a policy or a reward model."""
  make = value.make if checkpoint.role == 'value' else policy.make
  return make(checkpoint.config if config is None else config)


def load(directory: pathlib.Path):
  """Reads a directory: (checkpoint, parameters)."""
  checkpoint = huggingface.read_config(directory)
  abstract = jax.eval_shape(functions(checkpoint).init, KEY)
  return checkpoint, huggingface.load_params(checkpoint, abstract)


def load_encoder(directory: pathlib.Path):
  """Reads the directory of an encoder: (checkpoint, parameters)."""
  checkpoint = huggingface.read_config(directory)
  abstract = jax.eval_shape(encoder.make(checkpoint.config).init, KEY)
  return checkpoint, huggingface.load_params(checkpoint, abstract)


# The tests compile many small models and run each only a few times.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def _outputs(role, output, valid):
  """Logits [B, T, V], or a reward model's [B, 1]."""
  if role == 'value':
    return reward.rewards(output, valid)[:, None]
  logits = jnp.einsum('btd,vd->btv', output.hidden, output.head.kernel)
  cap = output.head.softcap
  return cap * jnp.tanh(logits / cap) if cap else logits


class Model:
  """A loaded model, compiled once for all batches of one shape."""

  def __init__(self, checkpoint, params, **changes):
    """Compiles lazily; `changes` are fields of the config."""
    self.role, self.params = checkpoint.role, params
    self.fns = functions(checkpoint, dataclasses.replace(checkpoint.config, **changes))

    @compiled
    def run(params, tokens, mask, positions):
      output = self.fns.apply(params, tokens, positions=positions, valid=mask)
      return _outputs(self.role, output, mask)

    @compiled
    def step(params, tokens, mask, positions, cache, index):
      output = self.fns.apply(
          params, tokens, positions=positions, valid=mask, cache=cache, cache_index=index)
      return _outputs(self.role, output, mask), output.cache

    self._run, self._step = run, step

  def logits(self, tokens, mask, positions, *, params=None) -> np.ndarray:
    """float32 [B, T, V], or [B, 1] of a reward model at each row's last token."""
    params = self.params if params is None else params
    return np.asarray(self._run(params, tokens, mask, positions))

  def decoded_logits(self, tokens, mask, positions, *, prefill=1) -> np.ndarray:
    """The same with a cache: the first `prefill` columns at once, the others one by one."""
    cache = self.fns.init_cache(*tokens.shape)
    pieces, start = [], 0
    for end in range(prefill, tokens.shape[1] + 1):
      valid = mask & (np.arange(tokens.shape[1]) < end)
      logits, cache = self._step(
          self.params, tokens[:, start:end], valid, positions[:, start:end], cache,
          jnp.int32(start))
      pieces.append(np.asarray(logits))
      start = end
    return np.concatenate(pieces, axis=1)
