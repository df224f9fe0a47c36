"""Evaluates a policy on the 1,319 test problems of GSM8K.

  python -m experiments.evaluate --config=experiments/configs/evaluate_gsm8k.py \\
      --config.policy_init_from=DIR --config.data_dir=DIR_OF_TRAIN_AND_TEST_JSONL

The answer is the number after the last `####` of a response that stopped. DIR is a Hugging Face
checkpoint with its tokenizer, or a run's output (WORKDIR/params, WORKDIR/trained). A policy trained
from scratch by `a_star_po_gsm8k` needs --config.task.vocabulary=compact and
--config.task.max_vocabulary=2048 for its tokens, and --config.model.max_length=2048 for room.
Prompts are in the checkpoint's chat template, if it has one; --config.chat_template=none gives the
plain text that base models are evaluated on. On accelerators:
--config.model.compute_dtype=bfloat16 --config.model.scan_unroll=1.

The variant `:five_shot` has the prompts, the stop string, the length and the greedy decoding of
lm-evaluation-harness's task gsm8k, for numbers that can be compared with published ones;
docs/evaluation.md lists the differences that remain.
"""

from experiments.evaluate import config as evaluate_config
from jaxrl_llm.tasks import gsm8k


def get_config(variant: str = '') -> evaluate_config.EvaluatePolicy:
  if variant not in ('', 'five_shot'):
    raise ValueError(f"variant must be 'five_shot' or none, got {variant!r}")
  if not variant:
    return evaluate_config.EvaluatePolicy(task=gsm8k.Config(max_prompt_tokens=512))

  # H: lm_eval/tasks/gsm8k/gsm8k.yaml of EleutherAI/lm-evaluation-harness, version 3.0.
  return evaluate_config.EvaluatePolicy(
      task=gsm8k.Config(
          instruction='', annotations='keep',  # H: the published question and solution.
          max_prompt_tokens=3_072,
          max_response_tokens=256,  # lm_eval/models/huggingface.py: max_gen_toks.
      ),
      chat_template='none',
      prompt_format='question_answer', num_shots=5, stop_strings='Question:',  # H.
      num_samples=1, temperature=0.0,  # H: greedy.
      batch_size=32,
  )
