"""REBEL on general chat, online: the released hyperparameters, and a CPU-size demo.

  python -m experiments.reward_model --config.data_dir=DIR_OF_dpo_en_demo.json
  python -m experiments.rebel --config.data_dir=DIR_OF_dpo_en_demo.json \\
      --config.reward_init_from=runs/reward_model_demo/params

is the demo: a decoder of 1.3M parameters is fine-tuned, then its last block, norm and head are
trained on samples for real prompts, within two minutes on two CPU cores. With
--config.policy_init_from=DIR it starts from that policy, whose head must not be tied
(--config.model.tie_embeddings=False unties it).

Variants `:nectar_openchat` and `:ultrafeedback_llama3` use the hyperparameters of the released
scripts (Gao et al., 2024, arXiv 2404.16767; ZhaolinGao/REBEL: N = src/nectar/rebel.py, U =
src/ultrafeedback/rebel.py). They need accelerators and have not been run here. DIR holds
train.jsonl, as JSON lines, of jdchang/nectar_openchat_preprocess or
GitBag/ultrafeedback_llama3_eurus. Policies: openchat/openchat_3.5, Meta-Llama-3-8B-Instruct.

Reward models: sequence classifiers with one label load, such as FsfairX-LLaMA3-RM-v0.1, which the
README and the model card name for UltraFeedback. U's default is another one, Eurus-RM-7b with its
score divided by 1,000 (--config.reward.scale=1000). Eurus and N's Starling-RM-7B-alpha have model
classes of their own, which are rejected by name. The published number of batches is not confirmed:
ours is our choice.
"""

from experiments.configs import rebel_tldr
from experiments.rebel import config as rebel_config
from jaxrl_llm.algorithms import rebel
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import reward_config
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import optim

VARIANTS = ('demo', 'nectar_openchat', 'ultrafeedback_llama3')


def get_config(variant: str = 'demo') -> rebel_config.Online:
  if variant not in VARIANTS:
    raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
  return _demo() if variant == 'demo' else _published(variant)


def _published(variant: str) -> rebel_config.Online:
  nectar = variant == 'nectar_openchat'
  task = preferences.Config(
      files='train.jsonl', schema='nectar' if nectar else 'ultrafeedback',
      num_evaluation=500,  # Ours.
      max_prompt_tokens=1_024, max_response_tokens=1_024,  # N, U.
  )
  algorithm = rebel.Config(
      eta=1.0, kl_coefficient=0.05, temperature=0.5,  # N, U.
      num_epochs=4, num_minibatches=1,  # N, U: 4 steps on the whole batch.
      num_micro_batches=4,  # Ours: memory only.
  )

  return rebel_config.Online(
      task=task,
      model=configs.TransformerConfig(compute_dtype='bfloat16', remat='full', scan_unroll=1),
      sft=config_lib.SftConfig(steps=0),  # N, U: start from the chat model.
      train_last_layers=4,  # N, U: with the last norm and the head.
      algorithm=algorithm,
      reward=reward_config.RewardConfig(
          # N: the file's rm_tokens and the response's text; U: the reward model's own template.
          template='none' if nectar else 'auto',
          max_tokens=2_048, overlong='left',  # N: cut from the left; for U unconfirmed.
          missing_stop_penalty=-4.0,  # N, U: after the scale.
      ),
      optimizer=optim.OptimizerConfig(
          name='adamw', learning_rate=1e-7, schedule='linear', eps=1e-8, weight_decay=1e-6,  # N, U.
          max_grad_norm=0.0,  # N, U: no clipping.
      ),
      steps=1_000,  # Ours.
      batch_size=32,  # N, U: 2 x 2 accumulated x 8 GPUs.
      evaluation=reward_config.RebelEvaluation(temperature=0.01, batch_size=32),  # N, U.
      eval_every=100,
      save_every=50,
      note=(
          f'Hyperparameters of src/{"nectar" if nectar else "ultrafeedback"}/rebel.py, released '
          'with arXiv 2404.16767; not run here'
      ),
  )


def _demo() -> rebel_config.Online:
  optimizer = optim.OptimizerConfig(
      name='adamw', learning_rate=3e-4, schedule='linear', weight_decay=1e-6,
      max_grad_norm=0.0)

  return rebel_config.Online(
      task=rebel_tldr.demo_task(),
      model=rebel_tldr.demo_model(tie_embeddings=False),
      sft=rebel_tldr.demo_fine_tuning(),
      train_last_layers=1,
      algorithm=rebel.Config(temperature=0.5, head_chunk=0),
      reward=reward_config.RewardConfig(missing_stop_penalty=-4.0),
      optimizer=optimizer,
      steps=20,
      batch_size=16,
      eval_every=10,
      save_every=5,
      evaluation=reward_config.RebelEvaluation(batch_size=16, head_chunk=0),
      scale_note=(
          'Scaled for a CPU: a decoder of 1.3M parameters from scratch (published: 7B and 8B), '
          "4,096 of the tokenizer's ids, responses of 48 tokens (1,024), batches of 16 (32), one "
          'block trained (4), learning rate 3e-4 (1e-7)'
      ),
  )
