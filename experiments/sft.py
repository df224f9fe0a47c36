"""Supervised fine-tuning of a policy on a task's demonstrations.

Run alone, it writes WORKDIR/params, which other runs can start from (policy_init_from).
experiments/a_star_po/ makes its reference with the same `finetune`.
"""

import dataclasses
from typing import Any

from jaxrl_llm.data import sft_batches
from jaxrl_llm.evaluation import perplexity
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import figures, launch, supervised
from jaxrl_llm.runs import setup as setup_lib
from jaxrl_llm.training import loop, metrics
from jaxrl_llm.types import Params


def evaluate(setup: setup_lib.Setup, params: Params) -> dict[str, float]:
  """Scores answers on the held-out examples, or measures the loss if the task has no verifier."""
  frozen = setup.finetuning.frozen(params)
  if setup.task.reward_fn is not None:
    numbers = setup.evaluator(frozen, frozen).numbers
    # SFT has no reference policy.
    return {name: x for name, x in numbers.items() if not name.startswith('kl_to_reference')}

  config = setup.config
  held_out = dataclasses.replace(setup.task, demonstrations=setup.task.evaluation)
  sequences = sft_batches.encode_demonstrations(held_out, loss_on=config.sft.loss_on)
  batches = sft_batches.Batches(
      sequences, batch_size=config.evaluation.batch_size, seed=config.seed
  )
  return perplexity.HeldOutLoss(
      setup.policy, loop.Tracked([setup.put(batch) for batch in batches.in_order()], 'evaluation'),
      chunk_size=config.evaluation.head_chunk,
  )(frozen)


def _table(before: dict[str, float], after: dict[str, float], seconds: float) -> str:
  """Final results table."""
  if 'loss' not in after:
    rows = [[
        'fine-tuned', figures.percent(after, 'pass@1'), figures.percent(after, 'greedy_accuracy'),
        f'{seconds:.0f}',
    ]]
    return figures.markdown_table(['policy', 'pass@1 (%)', 'greedy (%)', 'seconds'], rows)

  def row(name, numbers, time):
    return [name, f'{numbers["loss"]:.4f}', f'{numbers["perplexity"]:.4g}', time]

  return figures.markdown_table(
      ['policy', 'held-out loss (nats a token)', 'perplexity', 'seconds'],
      [row('initial', before, '-'), row('fine-tuned', after, f'{seconds:.0f}')],
  )


def main(run: launch.Run) -> None:
  """Fine-tunes, evaluates on the held-out examples, and writes results.json."""
  config = run.config
  with (
      setup_lib.build(
          run, lora=config.lora, last_layers=config.train_last_layers, fine_tunes=True) as setup,
      run.open_metrics() as writer,
  ):
    params, metadata = supervised.finetune(setup, writer)
    writer.truncate(metadata['metrics_position'])  # Verifies the log of an earlier process.
    after, before = evaluate(setup, params), {}
    if setup.task.reward_fn is None:  # A final loss means little without the initial one.
      before = evaluate(setup, setup.initial_params())

  table = _table(before, after, metadata['seconds'])
  metrics.write_text_atomic(run.table_path, table + '\n')

  numbers: dict[str, Any] = {f'eval/trained/{name}': value for name, value in after.items()}
  numbers |= {f'eval/initial/{name}': value for name, value in before.items()}
  launch.write_results(run, {
      **numbers, 'fingerprint': metadata['fingerprint'],
      'sampled_tokens': 0,  # Fine-tuning samples nothing; no run counts evaluation samples.
  })

  print(f'\n{table}\n\nparameters: {run.workdir / "params"}')


if __name__ == '__main__':
  launch.run(
      main, default_config='experiments/configs/sft_arithmetic.py',
      config_types=(config_lib.PolicyConfig,))
