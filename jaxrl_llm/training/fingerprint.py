"""Fingerprints of parameters, for provenance."""

import hashlib

import jax
import numpy as np

from jaxrl_llm.types import Params


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
