"""Evaluates a policy on a task: pass@k, majority vote, greedy accuracy, length and truncation.

  python -m experiments.evaluate --config=experiments/configs/evaluate_gsm8k.py \\
      --config.policy_init_from=DIR --config.data_dir=DIR_OF_TRAIN_AND_TEST_JSONL

Configs: evaluate_gsm8k, evaluate_math, evaluate_countdown, evaluate_jsonl, evaluate_words. Every
response is written to WORKDIR/responses.jsonl with its reward. Running the same command again
resumes where it stopped and gives the same numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.evaluate import config as evaluate_config
from jaxrl_llm.data import batching, model_files, tokenizers
from jaxrl_llm.evaluation import evaluator, majority, pass_at_k, statistics
from jaxrl_llm.rewards import response_text, rollout_rewards
from jaxrl_llm.runs import figures, launch, voting_rules
from jaxrl_llm.runs import records as records_lib
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import fingerprint, loop, metrics, rng
from jaxrl_llm.types import Example, Params, SampleFn, Task

# One problem: 'id', 'prompt' and 'answer'; under 'samples' and 'greedy', lists with one entry per
# response: 'responses', 'rewards', 'lengths', 'truncated', 'lenient' (rewards of the task's lenient
# verifier, if it has one) and 'votes' (`majority`).
Record = dict[str, Any]


def main(run: launch.Run) -> None:
  """Samples the missing responses, then writes the table and results.json."""
  config: evaluate_config.EvaluatePolicy = run.config
  with setup_lib.build(run) as setup:
    task = setup.task
    if config.shots_as_turns and 'prompt_ids' not in task.evaluation[0]:
      raise ValueError('config.shots_as_turns needs a chat template (config.chat_template)')
    encoded = setup.encode(task.evaluation)
    left_out = encoded.num_filtered + task.num_filtered.get('evaluation', 0)
    note = f' ({left_out} more have too long a prompt)' if left_out else ''
    print(
        f'{run.experiment}: {len(encoded)} problems of {task.name}{note}, policy '
        f'{setup.source.describe()}; writing to {run.workdir}', flush=True,
    )

    params = setup.initial_params()
    provenance = metrics.plain({
        'task': task.name, 'tokenizer': tokenizers.full_fingerprint(task.tokenizer),
        'policy': fingerprint.of_params(params),
        'data': model_files.fingerprint(metrics.plain(encoded.examples)),
    })
    records = respond(setup, params, encoded, {**provenance, 'run': run.identity})

  numbers = summarize(records)
  table = _table(numbers)
  metrics.write_text_atomic(run.table_path, table + '\n')
  launch.write_results(run, {
      **provenance, **{f'eval/{name}': value for name, value in numbers.items()},
      'eval/left_out': left_out, **_sampled_tokens(records), 'note': config.note,
  })
  print(f'\n{table}\n\nresponses: {run.workdir / "responses.jsonl"}\n{run.results_path}')


def respond(
    setup: setup_lib.Setup,
    params: Params,
    encoded: batching.EncodedExamples,
    provenance: Mapping[str, Any],
) -> list[Record]:
  """Samples the responses that are not yet in WORKDIR/responses.jsonl.

  Args:
    setup: the run's setup.
    params: parameters of the policy.
    encoded: the problems.
    provenance: everything the responses depend on in addition to the config; the file's first line.

  Returns:
    The records of all problems, in order.

  Raises:
    ValueError: if the workdir holds responses of something else.
    SystemExit: if Ctrl-C was pressed; the responses so far are saved.
  """
  config = setup.config
  batches = setup.prompt_batches(encoded, config.batch_size)
  samplers = _samplers(setup)
  voting = voting_rules.of_task(config.task)

  path = setup.run.workdir / 'responses.jsonl'
  with records_lib.open_records(
      path, provenance, batch=config.batch_size, total=len(encoded)
  ) as file:
    done = -(-len(file.records) // config.batch_size)
    with loop.progress(len(batches), 'evaluation', done) as bar:
      for prompts in batches[done:]:
        for record in _respond_to(prompts, params, setup, samplers, voting):
          file.append(record)

        right = np.array([record['samples']['rewards'] for record in file.records]) > 0
        bar.update(1, **{'pass@1': float(right.mean())})
        setup.run.save_clock()
        setup.stopper.check('stopped; the responses of complete batches are saved')
    return file.records


def _samplers(setup: setup_lib.Setup) -> dict[str, SampleFn]:
  """Makes jitted samplers by name. At temperature 0 the samples are the greedy responses."""
  config = setup.config
  tokenizer = setup.task.tokenizer

  def make(**options: Any) -> SampleFn:
    return jax.jit(decode.make_sampler(
        setup.policy, max_tokens=setup.task.max_response_tokens, stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        stop_sequences=response_text.stop_sequences(tokenizer, config.stops()), **options))

  samplers = {'samples': make(
      num_samples=config.num_samples, temperature=config.temperature, top_k=config.top_k,
      top_p=config.top_p)}
  if config.greedy and config.temperature > 0:
    samplers['greedy'] = make(num_samples=1, temperature=0.0)
  return samplers


def _respond_to(
    prompts: batching.PromptBatch,
    params: Params,
    setup: setup_lib.Setup,
    samplers: Mapping[str, SampleFn],
    voting: voting_rules.VotingRule,
) -> Iterator[Record]:
  """Yields the records of one batch."""
  key = rng.stream_key(setup.key, rng.Stream.SAMPLE_EVAL)
  scored = {}
  for name, sample in samplers.items():
    rollouts = sample(params, *prompts[:3], key)
    results = rollout_rewards.score_rollouts(
        evaluator.real_rows(rollouts, prompts), prompts.examples, tokenizer=setup.task.tokenizer,
        reward_fn=setup.task.reward_fn, stop_strings=setup.config.stops(),
    )
    scored[name] = {**results._asdict(), **_lenient(results, setup.task, prompts.examples)}

  for index, example in enumerate(prompts.examples):
    record = {name: example[name] for name in ('id', 'prompt', 'answer')}
    for name, of_all in scored.items():
      # Plain JSON values, so that a resumed run gives the same numbers.
      record[name] = {field: metrics.plain(values[index]) for field, values in of_all.items()}

    samples = record['samples']
    samples['votes'] = voting.group(samples['responses'], samples['truncated'])
    yield record


def _lenient(
    scored: rollout_rewards.Scored, task: Task, examples: Sequence[Example]
) -> dict[str, np.ndarray]:
  """Returns {'lenient': [P, K]}, rewards of the task's lenient verifier, if it has another one."""
  if task.lenient_reward_fn in (None, task.reward_fn):
    return {}
  num_samples = scored.rewards.shape[1]
  repeated = [example for example in examples for _ in range(num_samples)]
  rewards = task.lenient_reward_fn(
      [example['prompt'] for example in repeated],
      [text for texts in scored.responses for text in texts], scored.truncated.reshape(-1),
      repeated)
  return {'lenient': np.asarray(rewards).reshape(scored.rewards.shape)}


def summarize(records: Sequence[Record]) -> dict[str, float]:
  """Computes the metrics of an evaluation.

  Args:
    records: one record per problem; see `Record`.

  Returns:
    pass@k for all powers of two k < n and for k = n; maj@k for those k above 1 (a truncated
    response does not vote); greedy_accuracy if it was measured; lenient_accuracy and
    greedy_lenient_accuracy if the task has a lenient verifier; each with its standard error over
    problems (`_se`). Also length (tokens, stop token included) and truncated (fraction) of the
    samples, problems and samples.
  """
  def column(name: str, field: str) -> np.ndarray:
    return np.array([record[name][field] for record in records])

  right = column('samples', 'rewards') > 0
  num_samples = right.shape[1]
  sizes = [2**i for i in range((num_samples - 1).bit_length())] + [num_samples]
  values = {f'pass@{k}': pass_at_k.pass_at_k(num_samples, right.sum(axis=1), k=k) for k in sizes}

  votes = column('samples', 'votes')
  values |= {f'maj@{k}': majority.majority_at_k(votes, right, k=k) for k in sizes if k > 1}
  if 'greedy' in records[0]:
    values['greedy_accuracy'] = (column('greedy', 'rewards') > 0).mean(axis=1)
  for name, prefix in (('samples', ''), ('greedy', 'greedy_')):
    if all('lenient' in record.get(name, {}) for record in records):
      values[f'{prefix}lenient_accuracy'] = (column(name, 'lenient') > 0).mean(axis=1)

  numbers: dict[str, float] = {}
  for name, of_problems in values.items():
    numbers[name], numbers[f'{name}_se'] = statistics.mean_and_standard_error(of_problems)
  return numbers | {
      'length': float(column('samples', 'lengths').mean()),
      'truncated': float(column('samples', 'truncated').mean()),
      'problems': len(records), 'samples': num_samples,
  }


def _sampled_tokens(records: Sequence[Record]) -> dict[str, int]:
  return {
      f'sampled_tokens/{name}': sum(sum(record[name]['lengths']) for record in records)
      for name in ('samples', 'greedy') if name in records[0]
  }


def _table(numbers: Mapping[str, float]) -> str:
  """Final results table."""
  rows = [
      [f'{name} (%)', figures.percent(numbers, name)] for name in numbers
      if f'{name}_se' in numbers
  ]
  rows += [
      ['truncated (%)', figures.percent(numbers, 'truncated')],
      ['length (tokens)', f'{numbers["length"]:.1f}'],
      ['problems', numbers['problems']],
      ['samples per problem', numbers['samples']],
  ]
  return figures.markdown_table(['measure', 'value'], rows)


if __name__ == '__main__':
  launch.run(main, default_config='experiments/configs/evaluate_gsm8k.py')
