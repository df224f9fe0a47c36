"""Supervised fine-tuning on the worked solutions of GSM8K.

  python -m experiments.sft --config=experiments/configs/sft_gsm8k.py \\
      --config.data_dir=DIR_OF_TRAIN_AND_TEST_JSONL

runs the first stage of `a_star_po_gsm8k` alone: a decoder of about a million parameters from
scratch, in a few minutes on two CPU cores. That run can start from the output (WORKDIR/params)
with --config.policy_init_from. The variant `:pretrained` fine-tunes a Hugging Face checkpoint
(--config.policy_init_from=CHECKPOINT) with its own tokenizer on packed rows. Its hyperparameters
are our own typical, untuned choices, and it needs an accelerator.
"""

from experiments.configs import a_star_po_gsm8k
from jaxrl_llm.algorithms import sft
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import gsm8k
from jaxrl_llm.training import optim


def get_config(variant: str = '') -> config_lib.PolicyConfig:
  if variant not in ('', 'pretrained'):
    raise ValueError(f"variant must be 'pretrained' or none, got {variant!r}")
  return _pretrained() if variant else _cpu_size()


def _cpu_size() -> config_lib.PolicyConfig:
  full = a_star_po_gsm8k.get_config()
  return config_lib.PolicyConfig(
      task=full.task, model=full.model, sft=full.sft, evaluation=full.evaluation,
      scale_note=(
          'Scaled for a CPU: a decoder of about 1M parameters from scratch, 128 of 1,319 test '
          "problems, 2,048 of the tokenizer's ids, responses of at most 160 tokens"
      ),
  )


def _pretrained() -> config_lib.PolicyConfig:
  model = configs.TransformerConfig(
      compute_dtype='bfloat16', remat='full', scan_unroll=1
  )

  return config_lib.PolicyConfig(
      task=gsm8k.Config(max_prompt_tokens=256, max_response_tokens=512),
      model=model,
      sft=config_lib.SftConfig(
          # 7,473 problems of about 200 tokens: nearly two epochs.
          steps=200, batch_size=16, packed_length=1_024, save_every=50,
          algorithm=sft.Config(num_micro_batches=4),
          optimizer=optim.OptimizerConfig(
              learning_rate=1e-5, schedule='cosine', warmup_steps=20, weight_decay=0.0
          ),
      ),
      evaluation=config_lib.EvaluationConfig(num_samples=1, batch_size=64),
      note='Hyperparameters of our own, not tuned',
  )
