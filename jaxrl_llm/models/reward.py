"""A reward model: a scalar read at the last real token of a sequence."""

import jax
import jax.numpy as jnp

from jaxrl_llm.models import value
from jaxrl_llm.types import ModelOutput

# The same network as a scalar value function; only the position that is read differs.
make = value.make


def rewards(output: ModelOutput, valid: jax.Array) -> jax.Array:
  """The scalar at each row's last valid token.

  Args:
    output: output of a model from `make`, hidden [B, T, D].
    valid: bool [B, T]; True at real tokens. A row without any is read at its
      last position.

  Returns:
    float32 [B].
  """
  t = valid.shape[1]
  last = t - 1 - jnp.argmax(valid[:, ::-1], axis=1)
  return jnp.take_along_axis(value.values(output), last[:, None], axis=1)[:, 0]
