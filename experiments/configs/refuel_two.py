"""REFUEL with the questions of data (setting two): the released hyperparameters, and a demo.

  python -m experiments.reward_model --config.data_dir=DIR_OF_dpo_en_demo.json
  python -m experiments.refuel --config.data_dir=DIR_OF_dpo_en_demo.json \\
      --config.reward_init_from=runs/reward_model_demo/params

is the demo, on the conversations of the file with more than one user turn: a decoder of 1.3M
parameters is fine-tuned, then its last block, norm and head are trained, within two minutes on two
CPU cores. With --config.policy_init_from=DIR it starts from that policy, and can use questions
without replies, such as MT-bench's:

  ... --config.policy_init_from=DIR --config.data_dir=DIR_OF_question.jsonl \\
      --config.task.files=question.jsonl --config.task.key=turns

Variants `:hh` and `:ultrainteract` use the hyperparameters of setting two (Gao et al., 2024, arXiv
2410.04612; ZhaolinGao/REFUEL: D = the command in its documentation, which is what the paper
reports, H = setting_two/anthropic_hh/, U = setting_two/ultrainteract/). They need accelerators and
have not been run here. DIR holds train.jsonl and test.jsonl, as JSON lines, of
trl-internal-testing/hh-rlhf-trl-style, or train.jsonl of openbmb/UltraInteract_pair; or the
released scripts' output for them (GitBag/REFUEL-*), whose rows still have the conversation.
Policy: Meta-Llama-3-8B-Instruct. Reward model: sfairXC/FsfairX-LLaMA3-RM-v0.1, which loads.

Departures: a reply that did not stop stays as it was sampled (the released code overwrites its last
token with a stop token); the reward model sees the start token (the released code masks it); the
learning rate decays per optimizer step, not per batch. Of rows with the same user turns one is
used, in H too. No source that we could confirm has scores by method.
"""

import dataclasses

from experiments.configs import rebel_tldr, reward_model_demo
from experiments.refuel import config as refuel_config
from experiments.refuel import dialogues as refuel_dialogues
from jaxrl_llm.algorithms import refuel
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import reward_config
from jaxrl_llm.training import optim

VARIANTS = ('demo', 'hh', 'ultrainteract')


def get_config(variant: str = 'demo') -> refuel_config.Refuel:
  if variant not in VARIANTS:
    raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
  return _demo() if variant == 'demo' else _published(variant)


def _published(variant: str) -> refuel_config.Refuel:
  harmless = variant == 'hh'
  algorithm = refuel.Config(
      eta=1.0, kl_coefficient=0.05 if harmless else 0.0, temperature=1.0,  # D.
      num_epochs=4, num_minibatches=1,  # D: 4 steps on the whole batch.
      num_micro_batches=4,  # Ours: memory only.
  )

  return refuel_config.Refuel(
      seed=555_134,  # H, U.
      task=_hh() if harmless else _ultrainteract(),
      model=configs.TransformerConfig(compute_dtype='bfloat16', remat='full', scan_unroll=1),
      sft=config_lib.SftConfig(steps=0),  # Starts from the chat model.
      train_last_layers=4,  # H, U: with the last norm and the head.
      algorithm=algorithm,
      reward=reward_config.RewardConfig(
          template='same',  # H, U: it reads the policy's ids.
          missing_stop_penalty=-10.0 if harmless else -4.0,  # D; H and U by default: -2.
      ),
      optimizer=optim.OptimizerConfig(
          name='adamw', learning_rate=3e-7,  # D; H and U by default: 1e-7.
          schedule='linear', b1=0.9, b2=0.95,  # H, U.
          eps=1e-8, weight_decay=1e-6,  # D.
          max_grad_norm=0.0,  # Unconfirmed: no clipping.
      ),
      law='two',
      steps=1_000_000 // 32,  # H, U: their default of episodes, which are prompts.
      batch_size=32,  # D: 1 x 4 accumulated x 8 GPUs.
      evaluation=reward_config.RebelEvaluation(temperature=0.01, batch_size=32),  # H, U.
      eval_every=200,  # H, U.
      save_every=50,
      note=f'Hyperparameters of arXiv 2410.04612, setting two ({variant}); not run here',
  )


def _hh() -> refuel_dialogues.Config:
  return refuel_dialogues.Config(
      files='train.jsonl', evaluation_files='test.jsonl', key='chosen',
      num_evaluation=500,  # Ours.
      num_turns=5, max_prompt_tokens=128, max_message_tokens=128, filter_replies=True,  # H.
      max_response_tokens=512,  # D, and H's limit for replies of the data.
  )


def _ultrainteract() -> refuel_dialogues.Config:
  return refuel_dialogues.Config(
      files='train.jsonl', key='trajectory',
      num_evaluation=500, num_turns=5, filter_replies=True,  # U.
      max_prompt_tokens=1_024, max_message_tokens=768, max_response_tokens=1_024,
      limits='1=1024:1024, 2=768:768, 3=512:512, 4=256:512, 5=128:512',  # U.
  )


def demo_task(**options) -> refuel_dialogues.Config:
  """The dialogues of the demos, in the tokens of `reward_model_demo`."""
  return refuel_dialogues.Config(
      files=reward_model_demo.FILE, template='chatml', num_evaluation=12, num_turns=3,
      max_prompt_tokens=96, max_response_tokens=24, vocabulary='auto',
      max_vocabulary=reward_model_demo.MAX_VOCABULARY, **options)


def demo(**options) -> refuel_config.Refuel:
  """Common part of the demos of settings one and two."""
  model = dataclasses.replace(
      rebel_tldr.demo_model(tie_embeddings=False), max_length=320)

  return refuel_config.Refuel(
      model=model,
      # User turns are trained on too: in setting one the model plays the user.
      sft=dataclasses.replace(rebel_tldr.demo_fine_tuning(), loss_on='all'),
      train_last_layers=1,
      optimizer=optim.OptimizerConfig(
          name='adamw', learning_rate=3e-4, schedule='linear', b2=0.95, weight_decay=1e-6,
          max_grad_norm=0.0),
      steps=12,
      batch_size=16,
      eval_every=6,
      save_every=3,
      evaluation=reward_config.RebelEvaluation(batch_size=16, num_shown=2, head_chunk=0),
      scale_note=(
          'Scaled for a CPU: a decoder of 1.3M parameters from scratch (published: 8B), 4,096 of '
          "the tokenizer's ids, 3 turns (5), replies of 24 tokens (512 to 1,024), batches of 16 "
          '(32 and more), one block trained (4 to all), learning rate 3e-4 (3e-7)'
      ),
      **options,
  )


def _demo() -> refuel_config.Refuel:
  return demo(
      task=demo_task(min_turns=2, max_message_tokens=64), algorithm=refuel.Config(head_chunk=0),
      reward=reward_config.RewardConfig(missing_stop_penalty=-4.0), law='two')
