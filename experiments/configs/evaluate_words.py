"""Evaluates a pretrained model on word problems: short sums and differences in sentences.

  make models
  python -m experiments.evaluate --config=experiments/configs/evaluate_words.py

The policy is the SmolLM2-135M-Instruct of `make models`; --config.policy_init_from=WORKDIR/trained
evaluates what a_star_po_words.py or online_rl_words.py made of it, on the same problems.
"""

from experiments.configs import a_star_po_words
from experiments.evaluate import config as evaluate_config
from jaxrl_llm.tasks import word_problems


def get_config() -> evaluate_config.EvaluatePolicy:
  return evaluate_config.EvaluatePolicy(
      policy_init_from=a_star_po_words.MODEL,
      chat_template=a_star_po_words.TEMPLATE,
      task=word_problems.Config(
          num_demonstrations=0, num_train=0, max_prompt_tokens=64, max_response_tokens=48),
      num_samples=2, batch_size=64)
