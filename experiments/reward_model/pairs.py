"""Pairs of responses as batches, and the accuracy of a reward model on them."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.data import batching, response_batches
from jaxrl_llm.evaluation import statistics
from jaxrl_llm.models import reward as reward_lib
from jaxrl_llm.rl import preference_losses
from jaxrl_llm.runs import finetuning as finetuning_lib
from jaxrl_llm.runs import reward_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.sharding import rules
from jaxrl_llm.tasks import config as task_config
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, Batch, Example, Params, Rollouts, TrainState


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Preferences as arrays on the host.

  Attributes:
    rollouts: the chosen and the rejected response of each prompt, in this order.
    sources: the file of each pair.
  """

  rollouts: Rollouts
  sources: np.ndarray

  def __len__(self) -> int:
    return len(self.sources)

  def batch(self, size: int, *, seed: int, step: int) -> Batch:
    """The batch of step `step`, from 0."""
    indices = batching.batch_indices(len(self), size, seed=seed, step=step)
    rollouts = response_batches.take(self.rollouts, indices)
    rewards = np.broadcast_to(np.array([1.0, 0.0], np.float32), (size, 2))
    return Batch(rollouts, rewards, None, {}, np.ones(size, np.float32))


def make(task: preferences.PreferenceTask, examples: list[Example], kind: str) -> Pairs:
  """Makes pairs from examples; prints how many are left out because a response does not fit.

  Raises:
    ValueError: if there are no pairs.
  """
  usable = task.pairs(examples)
  limit = task.max_response_tokens
  if not usable:
    raise ValueError(
        f'none of {len(examples)} {kind} examples has a chosen and a rejected response of at most '
        f'{limit} tokens (config.task.max_response_tokens, config.task.schema)'
    )
  if len(usable) < len(examples):
    print(f'{len(examples) - len(usable)} of {len(examples)} {kind} examples have no two responses '
          f'of at most {limit} tokens and were left out', flush=True)
  return Pairs(
      _rollouts(task, usable, ('chosen_ids', 'rejected_ids')),
      np.array([example['source'] for example in usable]),
  )


def references(setup: setup_lib.Setup) -> Pairs | None:
  """Reference responses (K = 1), on which the scores are centred; None without centring."""
  config, task = setup.config, setup.task
  if not config.centre:
    return None

  examples = task.train
  if config.centring_file:
    other = dataclasses.replace(
        config.task, files=config.centring_file, evaluation_files='', num_train=0,
        num_evaluation=1, schema=config.centring_schema or config.task.schema,
        fields='' if config.centring_schema else config.task.fields,
    )

    policy = setup.source.policy_tokenizer() if setup.source else task_config.FROM_SCRATCH
    other_task = other.make(config.seed, config.data_dir, policy)
    if other_task.tokenizer.fingerprint != task.tokenizer.fingerprint:
      raise ValueError(
          "config.centring_file needs config.task.vocabulary='full': a compact vocabulary of other "
          f'texts has other ids, got {config.centring_file!r}'
      )

    examples = other_task.train + other_task.evaluation

  fits = [e for e in examples if 0 < len(e.get('chosen_ids', ())) <= task.max_response_tokens]
  if not fits:
    raise ValueError(
        f'no reference response of {len(examples)} has at most {task.max_response_tokens} tokens '
        '(config.centre, config.centring_file)'
    )
  return Pairs(_rollouts(task, fits, ('chosen_ids',)), np.array([e['source'] for e in fits]))


def _rollouts(
    task: preferences.PreferenceTask, examples: Sequence[Example], names: tuple[str, ...]
) -> Rollouts:
  return response_batches.rollouts(
      [example['prompt_ids'] for example in examples],
      [[example[name] for name in names] for example in examples], task.tokenizer,
      max_prompt_tokens=task.max_prompt_tokens, max_response_tokens=task.max_response_tokens,
  )


class Measure:
  """Measures the accuracy of a reward model on held-out pairs.

  Attributes:
    network: the reward model on plain parameters.
    abstract: shapes of its plain parameters, with shardings.
    finetuning: the network, and which of its parameters are trained.
  """

  def __init__(self, setup: setup_lib.Setup, held_out: Pairs):
    self.network = reward_lib.make(setup.model)
    self.abstract = setup_lib.abstract_params(self.network, setup.mesh)
    self.finetuning = finetuning_lib.make(
        self.network, self.abstract, lora=setup.config.lora,
        last_layers=setup.config.train_last_layers)
    self._setup, self._held_out = setup, held_out
    self._score = reward_models.id_scorer(setup.model, self.finetuning.lora)

  def scores(self, params: Params, pairs: Pairs) -> np.ndarray:
    """Scores [P, K] of all `pairs`; `params` are in the form of `finetuning.policy`."""
    size, scores = self._setup.config.evaluation_batch_size, []
    for chunk in batching.sequential_chunks(len(pairs), size):
      rollouts = self._setup.put(response_batches.take(pairs.rollouts, chunk.indices))
      scores.append(np.asarray(self._score(params, rollouts, 1))[: int(chunk.weight.sum())])
    return np.concatenate(scores)

  def __call__(self, params: Params) -> dict[str, float]:
    """Accuracy with its standard error, loss and margin on the held-out pairs.

    With several files, also the accuracy on each. A tie counts as an error.
    """
    scores = self.scores(params, self._held_out)
    right = (scores[:, 0] > scores[:, 1]).astype(np.float64)
    accuracy, error = statistics.mean_and_standard_error(right)
    loss = preference_losses.bradley_terry_loss(*jnp.asarray(scores).T)

    sources = self._held_out.sources
    names = sorted(set(sources.tolist()))
    return {
        'accuracy': accuracy, 'accuracy_se': error, 'loss': float(jnp.mean(loss)),
        'margin': float(np.mean(scores[:, 0] - scores[:, 1])),
        **({f'accuracy/{name}': float(right[sources == name].mean()) for name in names}
           if len(names) > 1 else {}),
    }


def start(
    setup: setup_lib.Setup, finetuning: finetuning_lib.Finetuning, algorithm: Algorithm,
    params: Params,
) -> tuple[TrainState, step_lib.CountedJit]:
  """Like `Setup.start`, for the reward model's plain parameters."""
  key = rng.stream_key(setup.key, rng.Stream.ADAPTERS)

  def init(params):
    return algorithm.init(
        rng.base_key(setup.config.seed), {'reward': finetuning.start(params, key)})

  shardings = rules.shardings(setup.mesh, jax.eval_shape(init, params))
  train_step = step_lib.jit_train_step(
      algorithm.train_step, state_shardings=shardings, batch_shardings=setup.batch_sharding)
  return jax.jit(init, out_shardings=shardings)(params), train_step
