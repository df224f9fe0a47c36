"""Value models: networks that predict the return of the reference, and their training."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxrl_llm import checks
from jaxrl_llm.data import batching
from jaxrl_llm.evaluation import calibration
from jaxrl_llm.models import configs, q_function, value
from jaxrl_llm.models import policy as policy_lib
from jaxrl_llm.rl import return_heads, sequence_scores
from jaxrl_llm.runs import checkpoint_sources, launch, memory, reward_models, training_loop
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.runs.value_data import Pairs, ValueData
from jaxrl_llm.sharding import rules
from jaxrl_llm.training import checkpoints, fingerprint, loop, metrics, optim, rng
from jaxrl_llm.training import step as step_lib
from jaxrl_llm.types import Algorithm, ModelFns, Params

_NETWORKS = {'value': value.make, 'q_function': q_function.make}


@dataclasses.dataclass
class ValueConfig:
  """A value model and its training.

  Attributes:
    model: shape of a model that is drawn at random; a `vocab_size` of 0 is filled in.
    init_from: as `policy_init_from`, for the trunk; it decides the shape.
    reference_layers: if positive, the trunk starts as this many first blocks of the reference.
    epochs: passes over the responses.
    batch_size: responses per step.
    validation_fraction: fraction of the problems whose responses are not trained on.
    save_every: steps between checkpoints.
    log_every: steps between lines in metrics.jsonl.
    optimizer: config of the optimizer.
  """

  model: configs.TransformerConfig = dataclasses.field(default_factory=configs.TransformerConfig)
  init_from: str = ''
  reference_layers: int = 0
  epochs: int = 5
  batch_size: int = 32
  validation_fraction: float = 0.1
  save_every: int = 500
  log_every: int = 20
  optimizer: optim.OptimizerConfig = dataclasses.field(default_factory=optim.OptimizerConfig)

  def validate(self, prefix: str) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, prefix, reference_layers=0, epochs=1, batch_size=1, save_every=1, log_every=1)
    checks.interval(self, prefix, '[0, 1)', 'validation_fraction')
    checks.model_directory(self, prefix, 'init_from')
    if self.reference_layers:
      checks.fixed(self, prefix, 'if reference_layers is positive', init_from='')
    with checks.within(f'{prefix}.model'):
      dataclasses.replace(self.model, vocab_size=self.model.vocab_size or 1).validate()
    self.optimizer.validate(f'{prefix}.optimizer')

  def memory(self) -> dict[str, int]:
    """Returns the bytes that are needed at least, by what needs them; see `runs.memory`."""
    if self.init_from or self.reference_layers:
      return {}
    return {'the value model and its moments (config.value.model)':
            3 * 4 * memory.num_weights(self.model)}


class ValueModel(NamedTuple):
  """A network that can be trained.

  Attributes:
    network: the network.
    role: name of its parameters: 'value' or 'q_function'.
    abstract: shapes of its parameters, with shardings.
    initial: plain parameters of the reference -> its initial parameters; heads start at zero.
    identity: what its parameters are for, saved with them and compared on load.
  """

  network: ModelFns
  role: str
  abstract: Params
  initial: Callable[[Params], Params]
  identity: dict[str, Any]


def build(
    setup: setup_lib.Setup, config: ValueConfig, *, role: str, num_outputs: int
) -> ValueModel:
  """Builds the network of a value model.

  Args:
    setup: the run's setup; the tokenizer of the value model is that of its task.
    config: shape, or where it comes from.
    role: 'value' or 'q_function'.
    num_outputs: outputs of the head, for a Q-function for each token.

  Returns:
    The network.

  Raises:
    ValueError: the ids of `init_from` mean something else than the reference's, the reference has
      fewer blocks, or the model is too short for the task.
  """
  task, source = setup.task, None
  if config.init_from:
    source = checkpoint_sources.read(config.init_from, field='config.value.init_from')
    source.check_tokenizer(task.tokenizer, of=task.name)
    longest = task.max_prompt_tokens + task.max_response_tokens
    model = reward_models.shape(source, config.model, longest)
  elif config.reference_layers:
    model = first_layers(setup.model, config.reference_layers)
  else:
    with checks.within('config.value.model'):
      model = setup_lib.model_for(task, config.model)

  network = _NETWORKS[role](model, num_outputs=num_outputs)
  abstract = setup_lib.abstract_params(network, setup.mesh)
  shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  draw = jax.jit(network.init, out_shardings=shardings)

  def initial(reference: Params) -> Params:
    params = draw(rng.stream_key(setup.key, rng.Stream.CRITIC))
    if source:
      trunk = setup_lib.abstract_params(policy_lib.make(model), setup.mesh)
      return value.with_trunk(params, source.load(trunk))
    if config.reference_layers:
      trunk = value.with_trunk(params, reference)
      return trunk | {'layers': jax.tree.map(
          lambda leaf: leaf[: config.reference_layers], reference['layers'])}
    return params

  identity = checkpoint_sources.identity(task.tokenizer.fingerprint, model)
  return ValueModel(network, role, abstract, initial, {
      **identity, 'role': role, 'num_outputs': num_outputs})


def first_layers(model: configs.TransformerConfig, count: int) -> configs.TransformerConfig:
  """Returns the shape of the first blocks of a model; raises ValueError if it has fewer."""
  if count > model.num_layers:
    raise ValueError(
        f'config.value.reference_layers must be at most the {model.num_layers} of the reference, '
        f'got {count}')
  changed = dataclasses.replace(model, num_layers=count)
  if count % (model.scan_unroll or count):
    changed.scan_unroll = 1
  return changed


def train(
    setup: setup_lib.Setup, model: ValueModel, config: ValueConfig, data: ValueData | Pairs,
    reference: Params, writer: metrics.MetricsWriter, *, name: str,
    make_algorithm: Callable[[ModelFns, optax.GradientTransformation], Algorithm],
    previous: dict[str, Any],
) -> tuple[Params, dict[str, Any]]:
  """Trains a value model from its initial parameters, or resumes training; saves WORKDIR/NAME.

  Args:
    setup: the run's setup.
    model: the network.
    config: its training.
    data: responses, of which those of the last problems are for validation.
    reference: plain parameters of the reference, for the initial ones.
    writer: writes metrics; the steps continue those of `previous`.
    name: name of the checkpoints, and of the folder of the parameters.
    make_algorithm: (network, optimizer) -> algorithm.
    previous: metadata of the stage before: 'steps', 'metrics_position'.

  Returns:
    Parameters on the mesh, and the metadata saved with them: 'steps', 'metrics_position',
    'fingerprint'.
  """
  path = setup.run.workdir / name
  made_from = {
      'seed': setup.run.seed, 'data': data.fingerprint, 'value': launch.computing_config(config)}
  if path.exists():
    return checkpoints.load_params(
        path, model.abstract, expected={**model.identity, 'made_from': made_from})

  training_data, held_out = data.split(config.validation_fraction)
  if not len(training_data):
    raise ValueError(
        f'{name}: no responses to train on (those of problems that always have the same reward, or '
        'that are never solved, may have been dropped)')
  steps = max(config.epochs * len(training_data) // config.batch_size, 1)
  optimizer_config = optim.for_run(config.optimizer, steps)
  algorithm = make_algorithm(model.network, optim.make_optimizer(optimizer_config))

  def init(params):
    return algorithm.init(rng.base_key(setup.run.seed), {model.role: params})

  shardings = rules.shardings(setup.mesh, jax.eval_shape(init, model.abstract))
  state = jax.jit(init, out_shardings=shardings)(model.initial(reference))
  train_step = step_lib.jit_train_step(
      algorithm.train_step, state_shardings=shardings, batch_shardings=setup.batch_sharding)

  with training_loop.start(
      setup, name, state, files={'metrics': writer}, total=steps, save_every=config.save_every,
      description=name, offset=previous['steps'], frozen={'data': data},
      base_positions={'metrics': previous['metrics_position']},
      costs=('value.epochs', 'value.batch_size', 'samples_per_prompt'),
  ) as training:
    shown = {}
    pending = loop.PendingCheck(learning_rate='config.value.optimizer.learning_rate')
    for step in training.steps():
      index = batching.batch_indices(
          len(training_data), config.batch_size, seed=setup.run.seed, step=step)
      training.state, update = train_step(training.state, setup.put(training_data.batch(index)))
      pending.add(step, update)
      if loop.should(config.log_every, step) or step == steps - 1:
        values = training.log(step, {
            **update, 'train/learning_rate': optim.learning_rate_at(optimizer_config, step)})
        shown = {'loss': values['train/loss']}
      if loop.should(config.save_every, step + 1) or setup.stopper.requested:
        pending.check()
      training.end_step(step, **shown)

  params = training.state.params[model.role]
  metadata = {
      'steps': previous['steps'] + steps, 'metrics_position': writer.position(),
      'fingerprint': fingerprint.of_params(params), 'made_from': made_from, **model.identity}
  checkpoints.save_params(path, params, metadata)
  return params, metadata


def predict(
    setup: setup_lib.Setup, model: ValueModel, head: return_heads.ReturnHead, params: Params,
    data: ValueData, *, batch_size: int,
) -> np.ndarray:
  """Predicts the expected return after each token in the loss.

  Args:
    setup: the run's setup.
    model: the network.
    head: its head.
    params: its parameters.
    data: N responses.
    batch_size: responses at a time.

  Returns:
    float32 [N, T]; NaN where the token is not in the loss.
  """
  @jax.jit
  def expectations(params, rollouts):
    if model.role == 'value':
      outputs = sequence_scores.outputs_after(model.network, params, rollouts)
    else:
      outputs = sequence_scores.outputs_of_choices(
          model.network, params, rollouts, num_outputs=head.num_outputs)
    return head.expectation(outputs)[:, 0]

  parts = []
  for chunk in batching.sequential_chunks(len(data), batch_size):
    batch = data.batch(chunk.indices)
    values = np.asarray(expectations(params, setup.put(batch.rollouts)))
    values = np.where(batch.rollouts.mask[:, 0] > 0, values, np.nan)
    parts.append(values[: int(chunk.weight.sum())])
  return np.concatenate(parts) if parts else np.zeros((0, data.tokens.shape[1]), np.float32)


def quality(
    setup: setup_lib.Setup, model: ValueModel, head: return_heads.ReturnHead, params: Params,
    data: ValueData,
) -> dict[str, float]:
  """Measures a value model on the responses to its validation problems.

  Args:
    setup: the run's setup; its `config.value` names the validation problems.
    model: the network.
    head: its head.
    params: its parameters.
    data: the responses to all problems, with rewards of 0 or 1 as targets.

  Returns:
    'calibration_error' over all tokens in the loss; 'auc_first' and 'auc_middle', the probability
    that a right response is ranked above a wrong one at the first token in the loss, and at the
    first one in the second half of the response; {} without validation problems or for other
    rewards.
  """
  config = setup.config.value
  _, held_out = data.split(config.validation_fraction)
  right = held_out.targets
  if not len(held_out) or not np.isin(right, (0, 1)).all():
    return {}

  values = predict(setup, model, head, params, held_out, batch_size=config.batch_size)
  inside = ~np.isnan(values)
  repeated = np.broadcast_to(right[:, None], values.shape)
  rows, middle = np.arange(len(values)), np.maximum(held_out.first, held_out.lengths // 2)
  return {
      'calibration_error': calibration.expected_calibration_error(
          values[inside], repeated[inside]),
      'auc_first': calibration.area_under_curve(values[rows, held_out.first], right),
      'auc_middle': calibration.area_under_curve(values[rows, middle], right),
      'validation_responses': len(held_out)}
