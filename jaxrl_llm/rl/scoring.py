"""Log-probs of rollouts under a network: the trainer's, the reference's, the old policy's.

The one file of rl/ that calls a network, through `ModelFns`. Every algorithm scores with
this function, at its sampling temperature, so that the ratio of a policy to itself is 1:
to 1e-5 in float32, and in bfloat16 as far as two compiled programs agree in float32
between two roundings (exactly on CPU).
"""

from jaxrl_llm.rl import log_probs, masking
from jaxrl_llm.types import Array, ModelFns, Params, Rollouts


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
