"""Evaluates a policy on any file of JSON objects with a prompt and an answer.

  python -m experiments.evaluate --config=experiments/configs/evaluate_jsonl.py \\
      --config.policy_init_from=DIR --config.task=FILE.jsonl

--config.task.prompt_field and answer_field name the keys. --config.task.reward selects what is
graded: 'math' (an answer found in the response, compared as mathematics), 'math_strict' (a marked
answer), 'gsm8k' (the number after ####), 'exact' (the whole response), 'countdown' or a function of
your own (docs/adding_a_task.md).
"""

from experiments.evaluate import config as evaluate_config


def get_config() -> evaluate_config.EvaluatePolicy:
  return evaluate_config.EvaluatePolicy()
