"""Evaluates a policy on the 256 published three-number Countdown problems.

  python -m experiments.evaluate --config=experiments/configs/evaluate_countdown.py \\
      --config.policy_init_from=WORKDIR/trained --config.data_dir=DIR_OF_countdown_cd3_test.jsonl

The policy is a character-level one, as trained by `a_star_po_countdown`, or one with a tokenizer,
such as a Hugging Face checkpoint, which is prompted in words.
"""

from experiments.evaluate import config as evaluate_config
from jaxrl_llm.tasks import countdown


def get_config() -> evaluate_config.EvaluatePolicy:
  return evaluate_config.EvaluatePolicy(
      task=countdown.Config(num_demonstrations=0, num_train=0), num_samples=16,
      batch_size=256,
  )
