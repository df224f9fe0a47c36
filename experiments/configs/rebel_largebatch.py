"""REBEL in large batches, iterated: the released hyperparameters, and a CPU-size demo.

  python -m experiments.reward_model --config.data_dir=DIR_OF_dpo_en_demo.json
  python -m experiments.rebel --config=experiments/configs/rebel_largebatch.py \\
      --config.data_dir=DIR_OF_dpo_en_demo.json \\
      --config.reward_init_from=runs/reward_model_demo/params

is the demo: two rounds of generating five responses per prompt, keeping the best and the worst, and
one pass, with a decoder of 0.8M parameters that is fine-tuned first, within two minutes on two CPU
cores. With --config.policy_init_from=DIR it starts from that policy.

Variant `:ultrafeedback_llama3` uses the hyperparameters of the released scripts (Gao et al., 2024,
arXiv 2404.16767; ZhaolinGao/REBEL: L = src/ultrafeedback_largebatch/). It needs accelerators and
has not been run here. DIR holds train.jsonl of allenai/ultrafeedback_binarized_cleaned_train as
JSON lines; the policy is Meta-Llama-3-8B-Instruct. The published reward model,
ArmoRM-Llama3-8B-v0.1, gates several objectives in a model class of its own, which is rejected by
name; any sequence classifier with one label loads. η = 1e6 suits the scale of ArmoRM, whose
differences are about 1e-2: choose it again for another reward model.

Published (table of the repository's README, rows REBEL-Llama-3-Armo-iter_1 to iter_3): AlpacaEval 2
length-controlled win rate 48.3, 50.0, 49.7; MT-Bench 8.13, 8.07, 8.01.
"""

from experiments.configs import rebel_tldr
from experiments.rebel import config as rebel_config
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import reward_config
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import optim

VARIANTS = ('demo', 'ultrafeedback_llama3')
_EPISODES, _BATCH_SIZE = 60_000, 128


def get_config(variant: str = 'demo') -> rebel_config.LargeBatch:
  if variant not in VARIANTS:
    raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
  return _demo() if variant == 'demo' else _published()


def _algorithm(**options) -> rebel.Config:
  return rebel.Config(
      samples_per_prompt=5, pairs='best_worst', temperature=0.8,  # L.
      kl_coefficient=0.0,  # L: no shaping.
      num_epochs=1, **options,  # L: one pass.
  )


def _published() -> rebel_config.LargeBatch:
  steps = _EPISODES // _BATCH_SIZE
  task = preferences.Config(
      files='train.jsonl', schema='ultrafeedback_prompts',
      num_evaluation=1_000,  # L: the test split.
      max_prompt_tokens=1_024, max_response_tokens=2_048,  # L.
  )

  return rebel_config.LargeBatch(
      task=task,
      model=configs.TransformerConfig(compute_dtype='bfloat16', remat='full', scan_unroll=1),
      sft=config_lib.SftConfig(steps=0),  # L: starts from the chat model.
      algorithm=_algorithm(eta=1e6, num_micro_batches=16),  # L; micro-batches are ours.
      reward=reward_config.RewardConfig(
          template='auto', max_tokens=4_096, overlong='right',  # L: truncated at 4,096.
          eos_check='off', missing_stop_penalty=0.0,  # L: no penalty.
      ),
      optimizer=optim.OptimizerConfig(
          name='adamw', learning_rate=3e-7, schedule='cosine', warmup_steps=steps // 10,  # L.
          b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-6,  # L.
          max_grad_norm=0.0,  # L: no clipping.
      ),
      rounds=3,  # L.
      top_p=0.9,  # L; log-probs are under the whole distribution.
      keep_truncated=False,  # L: a response that is too long drops its prompt.
      generation_batch_size=64,
      steps=steps,
      batch_size=_BATCH_SIZE,  # L: 1 x 16 accumulated x 8 GPUs.
      evaluation=reward_config.RebelEvaluation(batch_size=64),
      eval_every=50,
      save_every=50,
      note=(
          'Hyperparameters of src/ultrafeedback_largebatch, released with arXiv 2404.16767; not '
          'run here'
      ),
  )


def _demo() -> rebel_config.LargeBatch:
  optimizer = optim.OptimizerConfig(
      name='adamw', learning_rate=1e-4, schedule='cosine', b2=0.95, weight_decay=1e-6,
      max_grad_norm=0.0)

  return rebel_config.LargeBatch(
      task=rebel_tldr.demo_task(max_response_tokens=40),
      model=rebel_tldr.demo_model(),
      sft=rebel_tldr.demo_fine_tuning(),
      algorithm=_algorithm(eta=1.0, head_chunk=0),
      reward=reward_config.RewardConfig(eos_check='off', missing_stop_penalty=0.0),
      optimizer=optimizer,
      rounds=2,
      keep_truncated=True,  # Such a small model hardly ever stops.
      generation_batch_size=16,
      batch_size=8,
      evaluation=reward_config.RebelEvaluation(batch_size=16, head_chunk=0),
      eval_every=6,
      save_every=6,
      scale_note=(
          'Scaled for a CPU: a decoder of 0.8M parameters from scratch (published: 8B), 4,096 of '
          "the tokenizer's ids, responses of 40 tokens (2,048), batches of 8 (128), two rounds "
          '(three), eta 1 (1e6, at another scale of rewards), learning rate 1e-4 (3e-7)'
      ),
  )
