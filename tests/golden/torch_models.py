"""Runs the same checkpoint directories with transformers on torch.

Imported by scripts that make goldens and by tests/parity/ only; it needs the extra `parity`.
"""

import json
import pathlib
import re
import tempfile

import numpy as np
import safetensors
import torch
import transformers

from tests.golden import model_cases

torch.use_deterministic_algorithms(True)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def published(fields: dict) -> tuple[dict[str, tuple[int, ...]], dict]:
  """Saves a model of a config.json with transformers.

  Args:
    fields: fields of the config.json.

  Returns:
    (shapes of the saved tensors by name, the saved config.json).
  """
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    (directory / 'config.json').write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(directory)
    model = getattr(transformers, fields['architectures'][0])(config)
    model.save_pretrained(directory)
    return shapes_in(directory), json.loads((directory / 'config.json').read_text())


def shapes_in(directory: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """Shapes of the tensors in a directory's model.safetensors."""
  with safetensors.safe_open(directory / 'model.safetensors', 'np') as file:
    return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def load(directory: pathlib.Path, architecture: str | None = None, *, missing: str = ''):
  """Loads a model in evaluation mode, float32, with eager attention.

  Args:
    directory: directory with config.json and model.safetensors.
    architecture: class name; by default that of config.json.
    missing: regular expression for the tensors that may be missing.

  Raises:
    AssertionError: a tensor is missing for transformers, or unknown to it.
  """
  fields = json.loads((directory / 'config.json').read_text())
  cls = getattr(transformers, architecture or fields['architectures'][0])
  model, info = cls.from_pretrained(
      directory, dtype=torch.float32, attn_implementation='eager', output_loading_info=True)
  lost = [name for name in info['missing_keys'] if not re.fullmatch(missing, name)]
  assert not (lost or info['unexpected_keys'] or info['mismatched_keys']), info
  return model.eval()


def edited(model, edit: tuple[str, str]):
  """Changes modules of a model according to `model_cases.Control.edit`."""
  kind, pattern = edit
  factor = {'identity': None, 'unscaled': model.config.hidden_size**-0.5}[kind]
  hook = lambda _, inputs, output: inputs[0] if factor is None else output * factor
  modules = [module for name, module in model.named_modules() if re.fullmatch(pattern, name)]
  assert modules, f'{pattern} matches no module'
  for module in modules:
    module.register_forward_hook(hook)
  return model


def _tensors(tokens, mask, positions):
  return {'input_ids': torch.tensor(tokens, dtype=torch.long),
          'attention_mask': torch.tensor(mask, dtype=torch.long),
          'position_ids': torch.tensor(positions, dtype=torch.long)}


def logits(model, tokens, mask, positions) -> np.ndarray:
  """float32 [B, T, V], or [B, 1] of a classifier at each row's last token."""
  with torch.no_grad():
    return model(
        **_tensors(tokens, mask, positions), use_cache=False, return_dict=True).logits.numpy()


def decoded_logits(model, tokens, mask, positions) -> np.ndarray:
  """The same with a cache, and the last columns one at a time."""
  inputs = _tensors(tokens, mask, positions)
  width = tokens.shape[1]
  cache, pieces, start = None, [], 0
  with torch.no_grad():
    for end in range(width - model_cases.DECODED, width + 1):
      output = model(
          input_ids=inputs['input_ids'][:, start:end], use_cache=True, past_key_values=cache,
          return_dict=True,
          attention_mask=inputs['attention_mask'][:, :end],
          position_ids=inputs['position_ids'][:, start:end])
      cache, start = output.past_key_values, end
      pieces.append(output.logits)
  return torch.cat(pieces, dim=1).numpy()


def hidden_states(model, tokens, mask) -> np.ndarray:
  """float32 [B, T, D] of an encoder, or of the encoder inside a language model."""
  inputs = _tensors(tokens, mask, tokens)
  del inputs['position_ids']  # The padding of an encoder is on the right.
  with torch.no_grad():
    return getattr(model, 'bert', model)(**inputs, return_dict=True).last_hidden_state.numpy()


def mean_embeddings(model, rows) -> np.ndarray:
  """float32 [B, D]: means over the tokens of each row, scaled to length 1.

  The rows are run one at a time, so that there is no padding.
  """
  out = [hidden_states(model, np.array([ids]), np.ones((1, len(ids))))[0].mean(axis=0)
         for ids in rows]
  return np.stack([vector / np.linalg.norm(vector) for vector in out])
