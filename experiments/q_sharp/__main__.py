"""Q#: trains a value model on a reference's responses, and decodes the reference guided by it.

  python -m experiments.q_sharp [--config=experiments/configs/q_sharp_gsm8k.py ...]

The reference is fine-tuned on the task's demonstrations, or loaded from
--config.policy_init_from=DIR, and never trained. In each round the guided policy begins responses
(in the first round the reference itself), the reference continues them from a random token on, and
the value model is trained from scratch on all responses so far. The evaluation compares the guided
policy with controlled decoding by the same value model, at several weights η of the KL penalty.
Running the same command again resumes where it stopped.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.q_sharp import baselines, evaluation, report
from experiments.q_sharp import config as q_sharp_config
from jaxrl_llm.algorithms import q_sharp
from jaxrl_llm.runs import arms as arms_lib
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import launch, references, supervised, value_data, value_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import metrics, rng
from jaxrl_llm.types import Array, Params


class Trained(NamedTuple):
  """The value model of the last round.

  Attributes:
    params: its parameters.
    data: the responses it was trained and validated on.
    sampled_tokens: tokens sampled for them.
    metadata: saved with the parameters; see `value_models.train`.
  """

  params: Params
  data: value_data.ValueData
  sampled_tokens: int
  metadata: dict[str, Any]


def train(
    setup: setup_lib.Setup, reference: references.Reference, model: value_models.ValueModel,
    writer: metrics.MetricsWriter,
) -> Trained:
  """Collects responses and trains the value model, round after round.

  Args:
    setup: the run's setup.
    reference: π_ref.
    model: the value model.
    writer: writes the metrics of training.

  Returns:
    `Trained`.
  """
  config, guidance = setup.config, setup.config.guidance
  plain = setup.plain(reference.params)
  collect = value_data.Collector(
      setup, reference, num_samples=config.samples_per_prompt, batch_size=config.batch_size,
      temperature=guidance.temperature, top_p=guidance.top_p)
  sample = jax.jit(evaluation.make_sampler(
      setup, model, config.algorithm.make_head(), 'q_sharp',
      num_samples=config.samples_per_prompt))

  roll_in, made_from = collect.roll_in_by(reference.params), {'guide': ''}
  collected, params = [], None
  metadata = {'steps': reference.steps, 'metrics_position': reference.metrics_position}
  for index in range(config.rounds):
    key = rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, index)
    collected.append(collect(
        f'responses_{index + 1}', roll_in, cut, key, made_from=made_from))
    data = value_data.join(collected)
    _check_rewards(config, data)
    if config.drop_constant:
      data = data.without_constant_prompts()

    params, metadata = value_models.train(
        setup, model, config.value, data, plain, writer, name=f'value_{index + 1}',
        make_algorithm=functools.partial(q_sharp.make, config.algorithm), previous=metadata)
    setup.run.mark(f'round_{index + 1}')
    roles = {'policy': reference.params, model.role: params}

    def roll_in(prompts, key: Array, roles=roles):
      return sample(roles, *prompts[:3], key, np.float32(1 / guidance.eta)).rollouts

    made_from = {'guide': metadata['fingerprint'], 'eta': guidance.eta,
                 'num_candidates': guidance.num_candidates, 'tail': guidance.tail,
                 'order': guidance.order}
  return Trained(params, data, sum(part.sampled_tokens for part in collected), metadata)


def _check_rewards(config: q_sharp_config.QSharp, data: value_data.ValueData) -> None:
  """Raises ValueError for rewards that are not probabilities, unless the head has a range."""
  low, high = data.targets.min(), data.targets.max()
  if config.algorithm.head != 'histogram' and not 0 <= low <= high <= 1:
    raise ValueError(
        f'rewards must be in [0, 1] with config.algorithm.head={config.algorithm.head!r}, got '
        f"{low:g} to {high:g}: use 'histogram' with config.algorithm.low and high")


def train_on_pairs(
    setup: setup_lib.Setup, reference: references.Reference, model: value_models.ValueModel,
    wrong: value_data.ValueData, writer: metrics.MetricsWriter,
) -> Trained:
  """Trains the value model on right responses and wrong samples; see `train`."""
  config, data = setup.config, baselines.as_value_data(setup, wrong)
  params, metadata = value_models.train(
      setup, model, config.value, data, setup.plain(reference.params), writer, name='value_1',
      make_algorithm=functools.partial(q_sharp.make, config.algorithm),
      previous={'steps': reference.steps, 'metrics_position': reference.metrics_position})
  return Trained(params, data, wrong.sampled_tokens, metadata)


def cut(lengths: np.ndarray, random: np.random.Generator) -> value_data.Cuts:
  """Draws the last token of the roll-in, which is the first one in the loss."""
  last = value_data.cut_at_random(lengths, random)
  return value_data.Cuts(given=last + 1, first=last)


def evaluate(
    setup: setup_lib.Setup, model: value_models.ValueModel, params: dict[str, Params],
    policies: dict[str, Params], made_from: dict[str, str],
) -> dict[str, dict[str, float]]:
  """Evaluates all policies; finished arms are read from disk.

  Args:
    setup: the run's setup.
    model: the value model.
    params: parameters by role, see `evaluation.Evaluation.guided`.
    policies: parameters of the trained baselines by name.
    made_from: fingerprints of all parameters.

  Returns:
    Numbers by arm: 'reference', 'control' (the reference at another temperature), the baselines,
    and 'RULE/eta_ETA'.
  """
  run, config = setup.run, setup.config
  measure = evaluation.Evaluation(setup, model, config.algorithm.make_head())
  control = setup.sampler(
      num_samples=config.evaluation.num_samples,
      temperature=config.evaluation.control_temperature)
  make = {
      'reference': functools.partial(measure.guided, config.rules.split(',')[0], params, 0.0),
      'control': functools.partial(measure.sampled, control, params['policy'])}
  sample = evaluation.reference_sampler(setup) if policies else None
  make |= {name: functools.partial(measure.sampled, sample, trained)
           for name, trained in policies.items()}
  make |= {
      f'{rule}/eta_{eta:g}': functools.partial(measure.guided, rule, params, 1 / eta)
      for rule in config.rules.split(',') for eta in config.swept()}

  arms = {}
  for arm, measured in make.items():
    arms[arm] = arms_lib.finished(
        run.workdir / 'evaluation' / f'{arm.replace("/", "_")}.json',
        arms_lib.identity_of('q_sharp', config, arm=arm, **made_from),
        functools.partial(measured, title=arm), commit=run.commit)
    setup.stopper.check('stopped in the evaluation; finished arms are saved')
  return arms


def main(run: launch.Run) -> None:
  """Trains, evaluates, and writes the table, the figures and results.json."""
  config = run.config
  config_lib.check_overrides(run)

  with (
      setup_lib.build(run, lora=config.lora, last_layers=config.train_last_layers) as setup,
      run.open_metrics() as writer,
  ):
    print(f'{run.experiment}: {setup.describe()}; writing to {run.workdir}', flush=True)
    head = config.algorithm.make_head()
    model = value_models.build(
        setup, config.value, role=config.algorithm.function, num_outputs=head.num_outputs)
    reference = references.make_reference(
        setup, functools.partial(supervised.finetune, setup, writer))
    run.mark('reference')
    names = config.baselines.names.split(',') if config.baselines.names else []
    wrong = None
    if config.data == 'pairs' or {'dpo', 'rpo'} & set(names):
      wrong = baselines.wrong_samples(setup, reference)
    if config.data == 'pairs':
      trained = train_on_pairs(setup, reference, model, wrong, writer)
    else:
      trained = train(setup, reference, model, writer)

    policies, metadata = {}, trained.metadata
    made_from = {'reference': reference.fingerprint, 'value': metadata['fingerprint']}
    for name in names:
      policies[name], metadata = baselines.train(
          setup, name, reference, None if name == 'reinforce' else wrong, writer,
          previous=metadata)
      made_from[name] = metadata['fingerprint']
      run.mark(name)

    arms = evaluate(
        setup, model, {'policy': reference.params, model.role: trained.params},
        {name: setup.finetuning.frozen(params) for name, params in policies.items()}, made_from)
    quality = value_models.quality(setup, model, head, trained.params, trained.data)
    report.write(setup, arms, quality, tokens=trained.sampled_tokens)


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/q_sharp_noisy_sum.py')
