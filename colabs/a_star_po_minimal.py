r"""A*-PO (Brantley et al., 2025, arXiv 2505.20686) in one file: a small decoder learns to add.

About a minute on a CPU. The optimal policy of KL-regularised RL satisfies, for every response y,

  β ln π*(y|x) / π_ref(y|x) = r(x, y) − V*(x),   V*(x) = β ln E_{y ~ π_ref} exp(r(x, y) / β)

Stage 1 estimates V* once from N samples of the reference; stage 2 draws one sample per prompt from
the policy and fits the left side to the right. For large models: algorithms/a_star_po.py.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_llm.data import batching, sft_batches
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.rl import scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.tasks import arithmetic
from jaxrl_llm.training import rng

FAST = os.environ.get('JAXRL_LLM_FAST') == '1'  # For tests: everything runs, nothing is learned.
SFT_STEPS, STEPS, SCALE = (10, 4, 50) if FAST else (700, 80, 500)
N, BETA1, BETA2, BATCH, SEED = 8, 0.5, 1e-3, 128, 0

# The task, and a decoder drawn at random.
task = arithmetic.Config(
    digits=2, num_demonstrations=8 * SCALE, num_train=2 * SCALE, num_evaluation=SCALE).make(SEED)
model = policy.make(configs.TransformerConfig(
    vocab_size=task.tokenizer.vocab_size, num_layers=2, width=96, num_heads=4, num_kv_heads=4,
    head_dim=24, mlp_width=192, max_length=16))
key = rng.base_key(SEED)
encode = lambda examples: batching.encode_examples(examples, task.tokenizer, max_prompt_tokens=6)
train = encode(task.train)
held_out = batching.prompt_batch(encode(task.evaluation), np.arange(SCALE))


def sampler(num_samples, temperature=1.0):
  """(params, prompts, prompt_lengths, example_ids, key) -> rollouts."""
  return jax.jit(decode.make_sampler(
      model, num_samples=num_samples, max_tokens=task.max_response_tokens, temperature=temperature,
      stop_ids=task.tokenizer.stop_ids, pad_id=task.tokenizer.pad_id))


def trainer(loss, optimizer):
  """A jitted step (params, opt_state, batch) -> (params, opt_state, loss)."""
  @jax.jit
  def step(params, opt_state, batch):
    value, gradients = jax.value_and_grad(loss)(params, batch)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value

  return step


def log_probs(params, rollouts):
  """ln π(y|x) [P, K]: the sum over the tokens that the policy chose."""
  return jnp.sum(scoring.score(model, params, rollouts)[0] * rollouts.mask, axis=-1)


def roll_out(sample, params, prompts, noise):
  """Rollouts and their rewards [P, K] by the verifier."""
  rollouts = sample(params, prompts.prompts, prompts.prompt_lengths, prompts.example_ids, noise)
  return rollouts, rollout_rewards.score_rollouts(
      rollouts, prompts.examples, tokenizer=task.tokenizer, reward_fn=task.reward_fn).rewards


def accuracy(params):
  """The fraction of held-out problems that greedy decoding solves."""
  return roll_out(sampler(1, temperature=0.0), params, held_out, key)[1].mean()


def sft_loss(params, batch):
  """The cross-entropy of the demonstrations' tokens."""
  output = model.apply(params, batch.tokens, positions=batch.positions, valid=batch.valid)
  logits = output.hidden @ output.head.kernel.T
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
  return jnp.sum(losses * batch.loss_mask) / jnp.sum(batch.loss_mask)


def a_star_po_loss(params, batch):
  """(β₂ ln π/π_ref − (r − V*))², the mean over prompts."""
  rollouts, rewards, reference_log_probs, values = batch
  log_ratio = log_probs(params, rollouts) - reference_log_probs
  return jnp.mean((BETA2 * log_ratio[:, 0] - (rewards[:, 0] - values))**2)


# The reference: supervised fine-tuning on demonstrations that are wrong half of the time.
params = jax.jit(model.init)(rng.stream_key(key, rng.Stream.INIT))
optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, SFT_STEPS))
step, opt_state = trainer(sft_loss, optimizer), optimizer.init(params)
demonstrations = sft_batches.encode_demonstrations(task)
for i in range(SFT_STEPS):
  indices = batching.batch_indices(len(demonstrations), BATCH, seed=SEED, step=i)
  params, opt_state, _ = step(params, opt_state, sft_batches.sft_batch(demonstrations, indices))
reference, before = params, accuracy(params)

# Stage 1: V* of every training prompt from N samples of the reference.
prompts = batching.prompt_batch(train, np.arange(len(train)))
noise = rng.stream_key(key, rng.Stream.SAMPLE_STAGE1)
_, rewards = roll_out(sampler(N), reference, prompts, noise)
values = BETA1 * (jax.nn.logsumexp(rewards / BETA1, axis=1) - np.log(N))
print(f'stage 1: success rate {rewards.mean():.3f}, mean V* {values.mean():.3f}')

# Stage 2: one sample a prompt, least squares on the advantage.
optimizer, sample, score = optax.adam(3e-4), sampler(1), jax.jit(log_probs)
step, opt_state = trainer(a_star_po_loss, optimizer), optimizer.init(params)
for i in range(STEPS):
  indices = batching.batch_indices(len(train), BATCH, seed=SEED, step=i)
  prompts = batching.prompt_batch(train, indices)
  noise = rng.stream_key(key, rng.Stream.SAMPLE_TRAIN, i)
  rollouts, rewards = roll_out(sample, params, prompts, noise)
  batch = (rollouts, rewards, score(reference, rollouts), values[indices])
  params, opt_state, loss = step(params, opt_state, batch)

print(f'held-out greedy accuracy: reference {before:.3f}, trained {accuracy(params):.3f}')
