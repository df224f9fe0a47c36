"""Value-guided search: trains a value model on roll-outs, and searches for responses with it.

  python -m experiments.vgs [--config=experiments/configs/vgs_math.py ...]

The reference is fine-tuned on the task's demonstrations, or loaded from
--config.policy_init_from=DIR, and never trained. Responses of several policies are cut at random,
the reference continues them, and the value model classifies the outcome after each token. Beam
search over blocks of tokens, by its values, is compared with best-of-N and with votes of as many
independent samples. Running the same command again resumes where it stopped.
"""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from experiments.vgs import evaluation, report
from jaxrl_llm.algorithms import vgs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import launch, references, supervised, value_data, value_models
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import fingerprint, metrics, rng
from jaxrl_llm.types import Params


class Trained(NamedTuple):
  """The value model.

  Attributes:
    params: its parameters.
    fingerprint: their fingerprint.
    data: the responses it was trained and validated on, with rewards as targets.
  """

  params: Params
  fingerprint: str
  data: value_data.ValueData


def collect(
    setup: setup_lib.Setup, reference: references.Reference
) -> value_data.ValueData:
  """Collects roll-outs of the reference from cut responses of all roll-in policies."""
  config, part = setup.config, setup.config.collection
  collector = value_data.Collector(
      setup, reference, num_samples=part.responses, batch_size=part.batch_size,
      temperature=config.temperature, top_p=config.top_p, num_cuts=part.cuts)

  roll_ins = {
      f'temperature_{x:g}': collector.roll_in_by(reference.params, temperature=x)
      for x in part.temperatures}
  made_from = dict.fromkeys(roll_ins, reference.fingerprint)
  for index, directory in enumerate(filter(None, part.init_from.split(','))):
    plain = setup.load_same_model(directory, 'config.collection.init_from')
    name = f'policy_{index + 1}'
    roll_ins[name] = collector.roll_in_by(setup.finetuning.frozen(plain))
    made_from[name] = fingerprint.of_params(plain)

  def cut(lengths: np.ndarray, random: np.random.Generator) -> value_data.Cuts:
    cuts = value_data.cut_at_random(lengths, random, power=part.cut_power)
    return value_data.Cuts(given=cuts, first=cuts)

  parts = []
  for index, (name, roll_in) in enumerate(roll_ins.items()):
    parts.append(collector(
        f'responses_{name}', roll_in, cut,
        rng.stream_key(setup.key, rng.Stream.SAMPLE_TRAIN, index),
        made_from={'roll_in': name, 'policy': made_from[name], 'cut_power': part.cut_power}))
  data = value_data.join(parts)
  return data.of_solved_prompts() if part.drop_unsolved else data


def train(
    setup: setup_lib.Setup, reference: references.Reference, model: value_models.ValueModel,
    writer: metrics.MetricsWriter,
) -> Trained:
  """Collects the responses and trains the value model on their classes."""
  config, data = setup.config, collect(setup, reference)
  setup.run.mark('responses')
  loss = config.algorithm.loss
  targets = {'outcome': data.classes, 'bernoulli': lambda: data,
             'bradley_terry': lambda: value_data.pair(data, seed=setup.run.seed)}[loss]()
  params, metadata = value_models.train(
      setup, model, config.value, targets, setup.plain(reference.params), writer, name='value',
      make_algorithm=functools.partial(vgs.make, config.algorithm),
      previous={'steps': reference.steps, 'metrics_position': reference.metrics_position})
  setup.run.mark('value')
  return Trained(params, metadata['fingerprint'], data)


def main(run: launch.Run) -> None:
  """Trains, searches, and writes the table, the figure and results.json."""
  config = run.config
  config_lib.check_overrides(run)

  with (
      setup_lib.build(run, lora=config.lora, last_layers=config.train_last_layers) as setup,
      run.open_metrics() as writer,
  ):
    print(f'{run.experiment}: {setup.describe()}; writing to {run.workdir}', flush=True)
    head = vgs.HEADS[config.algorithm.loss]
    model = value_models.build(
        setup, config.value, role='value', num_outputs=head.num_outputs)
    reference = references.make_reference(
        setup, functools.partial(supervised.finetune, setup, writer))
    run.mark('reference')
    trained = train(setup, reference, model, writer)
    quality = value_models.quality(setup, model, head, trained.params, trained.data)
    arms = evaluation.search_all(setup, reference, model, trained.params, made_from={
        'reference': reference.fingerprint, 'value': trained.fingerprint})
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract))
    report.write(
        setup, arms, quality, value_weights=weights, tokens=trained.data.sampled_tokens)


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/vgs_noisy_sum.py')
