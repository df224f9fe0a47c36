"""The workloads in this project."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments.bench_transformers.workload import Sizes, Workload
from jaxrl_llm.algorithms import sft
from jaxrl_llm.data import sft_batches
from jaxrl_llm.models import lora, policy
from jaxrl_llm.runs import checkpoint_sources, finetuning
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim, rng
from jaxrl_llm.training import step as step_lib

PROJECTIONS = 'attention/(query|key|value|output)|mlp/(gate|up|down)'


class Model:
  """A checkpoint on the first device.

  Attributes:
    vocab_size: rows of its embedding.
  """

  def __init__(self, directory: str, sizes: Sizes):
    """Loads it; raises ValueError with one line if it cannot be used."""
    self._sizes = sizes
    source = checkpoint_sources.read(directory, field='--checkpoint')
    config = dataclasses.replace(
        source.model, param_dtype=sizes.dtype, compute_dtype=sizes.dtype)
    longest = max(sizes.prompt_tokens + sizes.new_tokens, sizes.sequence_tokens)
    if longest > config.max_length:
      raise ValueError(
          f'sequences must have at most {config.max_length} tokens for this model, got {longest} '
          '(--prompt_tokens, --new_tokens, --sequence_tokens)')
    self.vocab_size = config.vocab_size
    self._network = policy.make(config)
    self._params = jax.block_until_ready(source.load_on_one_device(self._network))

  def logits(self, tokens: np.ndarray) -> np.ndarray:
    """Returns the logits [B, V] after the last of `tokens` [B, T]."""
    rows, length = tokens.shape

    def last(params):
      output = self._network.apply(
          params, tokens, positions=np.tile(np.arange(length), (rows, 1)),
          valid=np.ones(tokens.shape, bool))
      return output.hidden[:, -1].astype('float32') @ output.head.kernel.T.astype('float32')

    return np.asarray(jax.jit(last)(self._params))

  def sampling(self, batch: int) -> Workload:
    """Sampling at temperature 1, one response per prompt."""
    sizes = self._sizes
    sampler = jax.jit(decode.make_sampler(
        self._network, num_samples=1, max_tokens=sizes.new_tokens, pad_id=0,
        stop_ids=(self.vocab_size,)))  # Outside the vocabulary: it is never sampled.
    inputs = (
        sizes.prompts(batch, self.vocab_size), np.full(batch, sizes.prompt_tokens, np.int32),
        np.arange(batch, dtype=np.int32), rng.base_key(sizes.seed))
    call = sampler.lower(self._params, *inputs).compile()

    def run():
      return float(call(self._params, *inputs).log_probs.mean())

    return Workload(run, batch * sizes.new_tokens, _peak_bytes(call))

  def training(self, kind: str) -> Workload:
    """An AdamW step on random tokens: of adapters ('lora') or of all parameters ('full')."""
    sizes = self._sizes
    adapters = lora.LoraConfig()
    if kind == 'lora':
      adapters = lora.LoraConfig(rank=sizes.rank, alpha=2.0 * sizes.rank, targets=PROJECTIONS)
    method = finetuning.make(
        self._network, jax.eval_shape(lambda: self._params), lora=adapters, last_layers=0)
    optimizer = optim.make_optimizer(
        optim.OptimizerConfig(learning_rate=1e-4), trainable=method.trainable)
    algorithm = sft.make(
        sft.Config(num_micro_batches=sizes.micro_batches), method.policy, optimizer)

    def init(params):
      trained = method.start(params, rng.base_key(sizes.seed))
      return algorithm.init(rng.base_key(sizes.seed), {'policy': trained})

    holder: dict[str, Any] = {'state': jax.jit(init)(self._params)}
    batch = self._batch()
    call = step_lib.jit_train_step(algorithm.train_step).lower(holder['state'], batch).compile()

    def run():
      holder['state'], metrics = jax.block_until_ready(call(holder['state'], batch))
      return float(metrics['train/loss'].value())

    return Workload(run, sizes.rows * sizes.sequence_tokens, _peak_bytes(call))

  def _batch(self) -> sft_batches.SftBatch:
    rows, length = self._sizes.rows, self._sizes.sequence_tokens
    tokens = self._sizes.sequences(self.vocab_size)
    return jax.device_put(sft_batches.SftBatch(
        tokens=tokens[:, :-1], targets=tokens[:, 1:], valid=np.ones((rows, length), bool),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        loss_mask=np.ones((rows, length), np.float32), weight=np.ones(rows, np.float32)))


def _peak_bytes(call: Any) -> int:
  memory = call.memory_analysis()
  return (memory.argument_size_in_bytes + memory.temp_size_in_bytes
          + memory.output_size_in_bytes - memory.alias_size_in_bytes)
