"""Log-probs under a network: of rollouts (trainer's, reference's, old policy's), of given texts.

The one file of rl/ that calls a network, through `ModelFns`. Every algorithm scores with
`score`, at its sampling temperature, so that the ratio of a policy to itself is 1:
to 1e-5 in float32, and in bfloat16 as far as two compiled programs agree in float32
between two roundings (exactly on CPU).
"""

from typing import Protocol

from jaxrl_llm.rl import log_probs, masking
from jaxrl_llm.types import Array, ModelFns, Params, Rollouts, WeightedMean


class Sequences(Protocol):
  """Arrays [B, T], with targets[b, t] the token after tokens[b, t].

  `weight` [B] is 0 for the rows that pad a batch. `segments` separates the sequences of packed
  rows; None where each row holds one.
  """

  tokens: Array
  positions: Array
  valid: Array
  targets: Array
  loss_mask: Array
  weight: Array
  segments: Array | None


def score(
    model: ModelFns,
    params: Params,
    rollouts: Rollouts,
    *,
    temperature: float = 1.0,
    chunk_size: int = 0,
) -> tuple[Array, Array]:
  """Log-prob and entropy at each token that the policy chose.

    log π(y_t | x, y_<t) and H(π(· | x, y_<t)), of softmax(logits / temperature).

  Args:
    model: a policy.
    params: parameters of the policy.
    rollouts: prompts [P, L] and responses [P, K, T].
    temperature: sampling temperature of the responses.
    chunk_size: positions per chunk of the head; 0 takes all at once.

  Returns:
    (log_probs, entropy), float32 [P, K, T], nats; 0 where `rollouts.mask` is 0.
  """
  sequences = masking.concatenate_prompt_response(rollouts)
  output = model.apply(
      params, sequences.tokens, positions=sequences.positions, valid=sequences.valid
  )
  return log_probs.response_log_probs_and_entropy(
      output.hidden, output.head, rollouts, temperature=temperature, chunk_size=chunk_size
  )


def sequence_loss(
    model: ModelFns, params: Params, batch: Sequences, *, chunk_size: int = 0
) -> WeightedMean:
  """Loss −Σ m ln π(target) / Σ m over the unmasked tokens, nats per token.

  Args:
    model: a policy.
    params: parameters of the policy.
    batch: sequences; `loss_mask` and `weight` select the tokens.
    chunk_size: positions per chunk of the head; 0 takes all at once.

  Returns:
    The mean as total and weight.
  """
  output = model.apply(
      params, batch.tokens, positions=batch.positions, valid=batch.valid, segments=batch.segments
  )
  mask = batch.loss_mask * batch.weight[:, None]
  return log_probs.cross_entropy(
      output.hidden, output.head, batch.targets, mask, chunk_size=chunk_size
  )
