"""REBEL on TL;DR summarisation (Pythia): the released hyperparameters, and a CPU-size demo.

  python -m experiments.reward_model --config.data_dir=DIR_OF_dpo_en_demo.json
  python -m experiments.rebel --config=experiments/configs/rebel_tldr.py \\
      --config.data_dir=DIR_OF_dpo_en_demo.json \\
      --config.reward_init_from=runs/reward_model_demo/params

is the demo: adapters, four optimizer steps per batch and temperature 0.7 as published, with a
decoder of 0.8M parameters that is fine-tuned first, on chat data instead of Reddit posts, within
two minutes on two CPU cores. With --config.policy_init_from=DIR it starts from that policy.

Variants `:pythia_1.4b`, `:pythia_2.8b` and `:pythia_6.9b` use the hyperparameters of the released
scripts (Gao et al., 2024, arXiv 2404.16767; ZhaolinGao/REBEL); `:sft` uses those of the policy that
they start from (python -m experiments.sft), reward_model_tldr.py those of the reward model. They
need an accelerator and have not been run here. DIR holds train.jsonl and validation.jsonl of
cleanrl/summarize_from_feedback_tldr_3_filtered_oai_preprocessing_1704563162 as JSON lines, whose
rows contain Pythia's token ids. No source that we could confirm has published scores by size.
Departures: the learning rate decays per optimizer step, not per batch; there is no evaluation at
every batch; the divergence excludes padding.
"""

from experiments.configs import reward_model_demo
from experiments.rebel import config as rebel_config
from jaxrl_llm.algorithms import rebel, sft
from jaxrl_llm.models import configs, lora
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import reward_config
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import optim

# Micro-batches of 512 prompts: ours, memory only.
_MICRO_BATCHES = {'pythia_1.4b': 8, 'pythia_2.8b': 16, 'pythia_6.9b': 32}
_EPISODES, _BATCH_SIZE, _TRAIN_PROMPTS = 1_000_000, 512, 116_722


def get_config(variant: str = 'demo') -> config_lib.PolicyConfig:
  if variant == 'demo':
    return _demo()
  if variant == 'sft':
    return _sft()
  if variant not in _MICRO_BATCHES:
    names = ', '.join(('demo', 'sft', *_MICRO_BATCHES))
    raise ValueError(f'variant must be one of {names}, got {variant!r}')
  return _published(variant)


def _task() -> preferences.Config:
  # Files in ZhaolinGao/REBEL: R = src/tldr/rebel.py, S = src/tldr/sft.py.
  return preferences.Config(
      files='train.jsonl', evaluation_files='validation.jsonl', schema='tldr', template='none',
      num_evaluation=0, max_prompt_tokens=512, max_response_tokens=53,  # S.
  )


def _published(variant: str) -> rebel_config.Online:
  algorithm = rebel.Config(
      eta=1.0, kl_coefficient=0.05, temperature=0.7,  # R.
      num_epochs=4, num_minibatches=1,  # R: each epoch is one step on the whole batch.
      num_micro_batches=_MICRO_BATCHES[variant],
  )
  optimizer = optim.OptimizerConfig(
      name='adamw', learning_rate=3e-6, schedule='linear', eps=1e-5,  # R.
      b1=0.9, b2=0.999, weight_decay=0.01,  # R: torch's defaults.
      max_grad_norm=0.0,  # R: no clipping.
  )

  return rebel_config.Online(
      seed=555_134,  # R.
      task=_task(),
      model=configs.TransformerConfig(compute_dtype='bfloat16', remat='full', scan_unroll=1),
      sft=config_lib.SftConfig(steps=0),  # Starts from the fine-tuned policy (:sft).
      lora=lora.LoraConfig(
          rank=1_024, alpha=2_048.0,  # R; dropout 0, no biases.
          # Unconfirmed: which projections. PEFT adapts these in GPT-NeoX by default.
          targets='attention/(query|key|value)',
      ),
      algorithm=algorithm,
      reward=reward_config.RewardConfig(
          missing_stop_penalty=-1.0,  # R.
          eos_check='eos',  # R: 'pad', which fails a response that stops at the last slot.
      ),
      optimizer=optimizer,
      steps=_EPISODES // _BATCH_SIZE,  # R: episodes are prompts.
      batch_size=_BATCH_SIZE,  # R: 8 x 8 accumulated x 8 GPUs.
      evaluation=reward_config.RebelEvaluation(temperature=0.01, batch_size=64),  # R.
      eval_every=100,  # R: the full evaluation.
      save_every=50,
      note='Hyperparameters of src/tldr/rebel.py, released with arXiv 2404.16767; not run here',
  )


def _sft() -> config_lib.PolicyConfig:
  optimizer = optim.OptimizerConfig(
      name='adamw', learning_rate=3e-6, schedule='cosine', eps=1e-5,  # S.
      weight_decay=0.01, max_grad_norm=0.0,  # Unconfirmed: torch's default, no clipping.
  )

  return config_lib.PolicyConfig(
      task=_task(),
      model=configs.TransformerConfig(compute_dtype='bfloat16', remat='full', scan_unroll=1),
      sft=config_lib.SftConfig(
          steps=_TRAIN_PROMPTS // 64,  # S: one epoch; the number of rows is unconfirmed.
          batch_size=64,  # S.
          loss_on='all',  # S: the loss includes prompts.
          algorithm=sft.Config(num_micro_batches=4),
          optimizer=optimizer,
      ),
      evaluation=config_lib.EvaluationConfig(batch_size=64),
      note='Hyperparameters of src/tldr/sft.py, released with arXiv 2404.16767; not run here',
  )


def demo_task(max_response_tokens: int = 48) -> preferences.Config:
  """The prompts of the demos, in the tokens of `reward_model_demo`."""
  return preferences.Config(
      files=reward_model_demo.FILE, template='chatml', num_evaluation=60, max_prompt_tokens=192,
      max_response_tokens=max_response_tokens, vocabulary='auto',
      max_vocabulary=reward_model_demo.MAX_VOCABULARY,
  )


def demo_fine_tuning() -> config_lib.SftConfig:
  """Fine-tuning that makes the policy of the demos if none is loaded."""
  return config_lib.SftConfig(
      steps=30, batch_size=8, save_every=15, algorithm=sft.Config(head_chunk=0),
      optimizer=optim.OptimizerConfig(
          learning_rate=3e-3, schedule='cosine', warmup_steps=10, weight_decay=0.01),
  )


def demo_model(**options) -> configs.TransformerConfig:
  """The policy of the demos."""
  return configs.TransformerConfig(
      num_layers=2, width=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_width=256,
      max_length=256, **options)


def _demo() -> rebel_config.Online:
  optimizer = optim.OptimizerConfig(
      name='adamw', learning_rate=1e-3, schedule='linear', eps=1e-5, weight_decay=0.01,
      max_grad_norm=0.0)

  return rebel_config.Online(
      task=demo_task(),
      model=demo_model(),
      sft=demo_fine_tuning(),
      lora=lora.LoraConfig(rank=16, alpha=32.0, targets='attention/(query|key|value)'),
      algorithm=rebel.Config(head_chunk=0),
      optimizer=optimizer,
      steps=20,
      batch_size=16,
      eval_every=10,
      save_every=5,
      evaluation=reward_config.RebelEvaluation(batch_size=16, head_chunk=0),
      scale_note=(
          'Scaled for a CPU: chat prompts and a decoder of 0.8M parameters from scratch '
          "(published: TL;DR, Pythia of 1.4B to 6.9B), 4,096 of the tokenizer's ids, batches of 16 "
          '(512), 20 of them (1,953), rank 16 (1,024), learning rate 1e-3 (3e-6)'
      ),
  )
