"""Loads reward models and scores samples with them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.data import preference_rows, tokenizers
from jaxrl_llm.models import configs
from jaxrl_llm.models import lora as lora_lib
from jaxrl_llm.models import reward as reward_lib
from jaxrl_llm.rewards import model_reward, rollout_rewards
from jaxrl_llm.rl import batches, masking, sequence_scores
from jaxrl_llm.runs import checkpoint_sources, reward_config
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.runs.checkpoint_sources import CheckpointSource
from jaxrl_llm.tasks import chat
from jaxrl_llm.training import checkpoints, fingerprint, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Example, ModelFns, Params, RewardFn, Rollouts, Tokenizer

ROLE = 'reward'  # In the metadata written by experiments/reward_model/.
_FIELD = 'config.reward_init_from'


class Scored(NamedTuple):
  """Scores and rewards of P prompts with K responses.

  Attributes:
    scores: float32 [P, K], raw scores; NaN where the reward model failed.
    rewards: float32 [P, K], scores over the scale, then replaced where no stop token was chosen.
    lengths: int32 [P, K], tokens.
    truncated: bool [P, K].
  """

  scores: np.ndarray
  rewards: np.ndarray
  lengths: np.ndarray
  truncated: np.ndarray


@dataclasses.dataclass
class RewardModel:
  """A frozen reward model.

  Attributes:
    config: config of the conversion from scores to rewards.
    params: parameters, on the mesh.
    score: (rollouts, examples, number of micro-batches) -> scores [P, K].
    fingerprint: fingerprint of the parameters.
    description: one phrase for the terminal.
  """

  config: reward_config.RewardConfig
  params: Params
  score: Callable[[Rollouts, Sequence[Example], int], np.ndarray]
  fingerprint: str
  description: str

  def check(self, other: str) -> None:
    """Raises ValueError unless the fingerprint in a checkpoint is that of this model."""
    if other != self.fingerprint:
      raise ValueError(
          f'the checkpoint was trained with the reward model {other}, this run has '
          f'{self.fingerprint}; give another --workdir'
      )

  def __call__(
      self, rollouts: Rollouts, examples: Sequence[Example], *, num_micro_batches: int = 1
  ) -> Scored:
    """Scores rollouts; `examples` has one example per prompt."""
    scores = np.asarray(self.score(rollouts, examples, num_micro_batches), np.float32)
    # Before scaling hides it: released code writes this sentinel where a reward model failed.
    scores = np.where(scores > batches.SENTINEL, scores, np.float32(np.nan))

    lengths, reasons = np.asarray(rollouts.lengths), np.asarray(rollouts.stop_reason)
    rewards = scores / np.float32(self.config.scale)
    if self.config.eos_check != 'off':
      rewards = np.asarray(masking.replace_scores_without_stop(
          jnp.asarray(rewards), jnp.asarray(lengths), jnp.asarray(reasons),
          penalty=self.config.missing_stop_penalty, slots=rollouts.tokens.shape[-1],
          eos_check=self.config.eos_check,
      ))
    return Scored(scores, rewards, lengths, reasons == 0)


def load(setup: setup_lib.Setup) -> RewardModel:
  """Loads the reward model of `config.reward_init_from` onto the mesh.

  Args:
    setup: setup of the run whose samples are scored; its config is a
      `reward_config.LearnedReward`.

  Returns:
    The reward model.

  Raises:
    ValueError: if the directory holds no reward model, its tokenizer or length does not fit, or
      the template is missing.
  """
  config = setup.config
  source = checkpoint_sources.read(config.reward_init_from, field=_FIELD)
  _check_role(source)

  reads_ids = config.reward.template == 'same'
  longest = setup.task.max_prompt_tokens + setup.task.max_response_tokens
  model = shape(source, config.model, config.reward.max_tokens or longest)
  if reads_ids:
    _check_tokens(source, model, setup.task.tokenizer)

  network = reward_lib.make(model)
  params = source.load(setup_lib.abstract_params(network, setup.mesh))
  if reads_ids:
    read = id_scorer(model)

    def score(rollouts, examples, num_parts):
      del examples  # Read from the ids of the roll-outs.
      return read(params, rollouts, num_parts)
  else:
    score = _text_scorer(setup, source, network, params)

  return RewardModel(
      config.reward, params, score, fingerprint.of_params(params), source.describe())


def is_reward_model(source: CheckpointSource) -> bool:
  """Returns whether a directory holds a network with a score head, not a policy."""
  if source.checkpoint:
    return source.checkpoint.role == 'value'
  role = checkpoints.read_metadata(source.directory).get('role')
  return role == ROLE or source.hugging_face.get('role') == 'value'


def shape(
    source: CheckpointSource, computed: configs.TransformerConfig, longest: int
) -> configs.TransformerConfig:
  """Returns the network's shape with the policy's compute fields and room for `longest` tokens."""
  model = dataclasses.replace(
      source.model, **{name: getattr(computed, name) for name in configs.COMPUTE_FIELDS})
  if model.num_layers % (model.scan_unroll or model.num_layers):
    model.scan_unroll = 1  # The policy has another depth.

  if model.max_length < longest:
    if model.positions != 'rope':
      raise ValueError(
          f'the model in {source.directory} reads at most {model.max_length} tokens, and {longest} '
          f'are needed ({source.field})'
      )
    model.max_length = longest
  return model


def initial_params(
    setup: setup_lib.Setup, network: ModelFns, abstract: Params, *, head_init: str
) -> Params:
  """Makes the initial parameters of a reward model: a policy with a score head.

  If the checkpoint source has no score head, it is drawn from N(0, 1 / (D + 1)) with bias 0, or set
  to 0 (REBEL, arXiv 2404.16767, released code src/tldr/rm.py: normal).

  Args:
    setup: the setup; its `source` is a policy, a reward model, or None (all parameters are drawn).
    network: the reward model.
    abstract: shapes of its parameters, with shardings.
    head_init: 'normal' or 'zero'.

  Returns:
    Parameters on the mesh.
  """
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

  def draw(key):
    params = network.init(key)
    kernel = params['value_head']['kernel']
    if head_init == 'normal':
      noise = jax.random.normal(jax.random.fold_in(key, 1), kernel.shape)
      kernel = (noise * (kernel.shape[-1] + 1) ** -0.5).astype(kernel.dtype)
    return {**params, 'value_head': {**params['value_head'], 'kernel': kernel}}

  source, key = setup.source, rng.stream_key(setup.key, rng.Stream.INIT)
  if source and is_reward_model(source):
    _check_role(source)
    return source.load(abstract)

  if source is None:
    return jax.jit(draw, out_shardings=shardings)(key)
  head = jax.jit(
      lambda key: draw(key)['value_head'], out_shardings=shardings['value_head'])(key)
  trunk = {name: leaf for name, leaf in setup.initial_params().items() if name != 'head'}
  return {**trunk, 'value_head': head}


def _check_role(source: CheckpointSource) -> None:
  """Raises a one-line ValueError unless `source` is a reward model with one score."""
  if not is_reward_model(source):
    what = source.checkpoint.architecture if source.checkpoint else 'a policy'
    raise ValueError(
        f'{source.field} must hold a reward model (a *ForSequenceClassification checkpoint with '
        'one label, or WORKDIR/params of experiments.reward_model), got '
        f'{what or "a language model"} in {source.directory}'
    )
  outputs = source.hugging_face.get('num_outputs', 1)
  if outputs != 1:
    raise ValueError(
        f'{source.field} must hold a reward model with one score, got {outputs} labels in '
        f'{source.directory}'
    )


def _check_tokens(
    source: CheckpointSource, model: configs.TransformerConfig, tokenizer: Tokenizer
) -> None:
  """Raises a one-line ValueError unless policy and reward model share the meaning of ids."""
  if source.tokenizer and not tokenizers.is_same(tokenizer, source.tokenizer):
    raise ValueError(
        f'the tokenizer of {source.directory} ({source.tokenizer}) is not that of the policy '
        f'({tokenizer.fingerprint}), whose ids it would be given: let it read text with its own, '
        f'--config.reward.template=auto and --config.reward.max_tokens=N ({source.field})'
    )
  if model.vocab_size < tokenizer.vocab_size:
    raise ValueError(
        f'the tokenizer has {tokenizer.vocab_size} ids and the embedding in {source.directory} '
        f'only {model.vocab_size} rows ({source.field})'
    )


def id_scorer(model: configs.TransformerConfig, lora: lora_lib.LoraConfig | None = None):
  """Makes a jitted (params, rollouts, number of micro-batches) -> scores [P, K] of the ids.

  With `lora`, the parameters are those of a network with adapters.
  """
  network = lora_lib.make(reward_lib.make(model), lora or lora_lib.LoraConfig())

  @functools.partial(jax.jit, static_argnums=2)
  def score(params, rollouts, num_parts):
    def read(rollouts):
      return sequence_scores.sequence_scores(network, params, rollouts)

    return step_lib.map_micro_batches(read, rollouts, num_micro_batches=num_parts)

  return score


def _text_scorer(
    setup: setup_lib.Setup, source: CheckpointSource, network: ModelFns, params: Params
):
  """Makes a scorer of the samples' text, for a reward model with its own tokenizer."""
  config = setup.config
  if not source.tokenizer_dir:
    raise ValueError(
        f'{source.directory} ({source.field}) has no tokenizer, which config.reward.template='
        f'{config.reward.template!r} needs'
    )

  own = tokenizers.load_tokenizer(source.tokenizer_dir)
  template = config.reward.template
  template = None if template == 'none' else chat.load_template(template, source.tokenizer_dir)

  @jax.jit
  def read(params, tokens, lengths):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    valid = positions < lengths[:, None]
    output = network.apply(params, tokens, positions=positions, valid=valid)
    return reward_lib.rewards(output, valid)

  reward_fn = model_reward.make(
      lambda tokens, lengths: read(params, *setup.put((tokens, lengths))),
      functools.partial(encode_texts, own, template),
      batch_size=config.evaluation.batch_size, max_tokens=config.reward.max_tokens,
      overlong=config.reward.overlong, pad_id=own.pad_id,
  )

  return lambda rollouts, examples, num_parts: _score_texts(
      rollouts, examples, setup.task.tokenizer, reward_fn)


def _score_texts(
    rollouts: Rollouts, examples: Sequence[Example], tokenizer: Tokenizer, reward_fn: RewardFn
) -> np.ndarray:
  """Scores decoded responses [P, K]. A failed score is not an error: the prompt is dropped."""
  def finite_scores(*arguments):
    scores = reward_fn(*arguments)
    return np.where(np.isfinite(scores), scores, batches.SENTINEL)

  return rollout_rewards.score_rollouts(
      rollouts, examples, tokenizer=tokenizer, reward_fn=finite_scores).rewards


def encode_texts(
    tokenizer: Tokenizer, template: Any, prompts: list[str], responses: list[str],
    truncated: np.ndarray, examples: list[Example],
) -> list[list[int]]:
  """Encodes prompts with responses for a reward model (`model_reward.EncodeFn`).

  Args:
    tokenizer: the reward model's tokenizer.
    template: its chat template; None for plain text.
    prompts: n prompts as the policy read them.
    responses: n responses.
    truncated: bool [n]; without a template, a response that stopped gets a stop token.
    examples: n examples, with 'messages' for a template; without one, 'reward_prompt_ids' replace
      the prompt's text.

  Returns:
    n lists of ids.

  Raises:
    ValueError: if there is a template but no conversation to put into it.
  """
  if template is not None:
    if any('messages' not in example for example in examples):
      raise ValueError(
          'config.reward.template needs conversations, and the data holds ids or plain texts: '
          "give 'same' or 'none'"
      )

    texts = template.render_many([
        [*example['messages'], {'role': 'assistant', 'content': response}]
        for example, response in zip(examples, responses)
    ])
    return [tokenizer.encode(text) for text in texts]

  rows = []
  for prompt, response, cut, example in zip(prompts, responses, truncated, examples):
    if 'reward_prompt_ids' in example:
      row = preference_rows.strip_padding(
          example['reward_prompt_ids'], tokenizer.vocab_size, tokenizer.pad_id)
      row = [*row, *tokenizer.encode_continuation(response)]
    else:
      row = [*tokenizer.start_ids, *tokenizer.encode(prompt + response)]
    rows.append(row if cut else [*row, tokenizer.stop_ids[0]])
  return rows
