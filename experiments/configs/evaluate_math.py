r"""Evaluates a policy on a file in MATH's format: 'problem', and 'answer' or a boxed 'solution'.

  python -m experiments.evaluate --config=experiments/configs/evaluate_math.py \
      --config.policy_init_from=DIR --config.task=FILE.jsonl

The answer is read from \boxed{} (or after ####) in a response that stopped, and compared as
mathematics. --config.chat_template=none turns off the checkpoint's chat template. On accelerators:
--config.model.compute_dtype=bfloat16 --config.model.scan_unroll=1.
"""

from experiments.evaluate import config as evaluate_config
from jaxrl_llm.tasks import jsonl


def get_config() -> evaluate_config.EvaluatePolicy:
  return evaluate_config.EvaluatePolicy(task=jsonl.math_config(max_response_tokens=2048))
