"""Fingerprints of parameters and problems, for provenance."""

import hashlib
import json

import jax
import numpy as np

from jaxrl_llm.types import Params, Task


def of_params(params: Params) -> str:
  """Hashes the paths, shapes, dtypes and bytes of all leaves (sha256, 16 hex digits).

  Two sets of parameters have the same fingerprint if and only if they are bit-identical.

  Args:
    params: a pytree of arrays; they are copied to the host one at a time.

  Returns:
    The fingerprint.
  """
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.shape} {array.dtype}'.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
  return digest.hexdigest()[:16]


def of_task(task: Task) -> str:
  """Hashes all problems of a task and the user's own reward function (sha256, 16 hex digits).

  They come from files that can change while the config that names them does not.

  Args:
    task: a task of any kind.

  Returns:
    The fingerprint.
  """
  digest = hashlib.sha256(task.reward_source.encode())
  for examples in (task.demonstrations, task.train, task.evaluation):
    for example in examples:
      digest.update(json.dumps(example, sort_keys=True, default=np.ndarray.tolist).encode())
    digest.update(b'|')
  return digest.hexdigest()[:16]
