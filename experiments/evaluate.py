"""Evaluates a policy on a task: pass@k, majority vote, greedy accuracy, length, truncation.

  python -m experiments.evaluate --config=experiments/configs/evaluate_gsm8k.py \\
      --config.policy_init_from=DIR --config.data_dir=DIR_OF_TRAIN_AND_TEST_JSONL

Configs: evaluate_gsm8k, evaluate_math, evaluate_countdown, evaluate_jsonl. Every response stands
in WORKDIR/responses.jsonl with its reward; running the same command again resumes where it
stopped, and ends with the same numbers.
"""

import contextlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments import components, evaluation_settings, launch, report
from jaxrl_llm.data import batching, model_files
from jaxrl_llm.evaluation import evaluator, majority, pass_at_k
from jaxrl_llm.rewards import rollout_rewards
from jaxrl_llm.sampling import decode
from jaxrl_llm.tasks import chat
from jaxrl_llm.training import fingerprint, loop, metrics, rng
from jaxrl_llm.types import Params, SampleFn, Task

Record = dict[str, Any]  # One problem: see `respond`.


def main(run: launch.Run) -> None:
  """Samples what is missing, then writes the table and results.json."""
  config: evaluation_settings.EvaluatePolicy = run.config
  with components.build(run) as parts:
    parts.task = _task(config, parts)
    encoded = _encode(parts)
    print(f'{run.experiment}: {parts.describe()}; writing to {run.workdir}', flush=True)
    params = parts.initial_params()
    provenance = metrics.plain({
        'task': parts.task.name, 'tokenizer': parts.task.tokenizer.fingerprint,
        'policy': fingerprint.of_params(params),
        'data': model_files.fingerprint(metrics.plain(encoded.examples)),
    })
    records = respond(run, parts, params, encoded, provenance)
  numbers = summarize(records, evaluation_settings.voting(config.task))
  tokens = {
      f'sampled_tokens/{name}': sum(sum(record[name]['lengths']) for record in records)
      for name in ('samples', 'greedy') if name in records[0]
  }
  table = _table(numbers)
  metrics.write_text_atomic(run.table_path, table + '\n')
  launch.write_results(run, {
      **{f'eval/{name}': value for name, value in numbers.items()}, **tokens,
      'eval/left_out': encoded.num_filtered, 'policy': provenance['policy'],
      'task': parts.task.name, 'note': config.note,
  })
  print(f'\n{table}\n\n{run.results_path}\n{run.workdir / "responses.jsonl"}')


def _task(config: evaluation_settings.EvaluatePolicy, parts: components.Components) -> Task:
  """The task with its evaluation problems alone, within the chat template."""
  own = getattr(config.task, 'tokenizer_dir', None)
  if own == '' and parts.origin.checkpoint and not parts.origin.tokenizer:
    raise ValueError(
        f'no tokenizer lies in {config.policy_init_from}: give --config.task.tokenizer_dir=DIR'
    )
  changes = {'demonstrations': [], 'train': []}
  if not hasattr(parts.task, 'num_filtered'):
    task = parts.task
