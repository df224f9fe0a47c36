"""Supervised fine-tuning on conversations, with the loss on the assistant's messages.

  python -m experiments.sft --config=experiments/configs/sft_chat.py --config.data_dir=DIR

trains on DIR/alpaca_en_demo.json in ChatML format, with the real Qwen2 tokenizer (from
DIR/../tokenizers/qwen2, reduced to 4,096 ids), in a few minutes on two CPU cores. The decoder has
about 1.3 million parameters and starts from scratch. Such a model learns what English looks like,
not how to answer. The metric is the loss on 100 held-out conversations.

The variant `:pretrained` fine-tunes a Hugging Face checkpoint with its own chat template:

  ... --config=experiments/configs/sft_chat.py:pretrained --config.data_dir=DIR \\
      --config.policy_init_from=CHECKPOINT --config.task.files=a.json,b.jsonl \\
      --config.sft.mixture=a.json=3,b.jsonl=1

Its hyperparameters are our own typical, untuned choices. It needs an accelerator. `:laptop` is its
size for a checkpoint of about 135M parameters on two CPU cores: adapters, short conversations and
few steps.
"""

from jaxrl_llm.algorithms import sft
from jaxrl_llm.models import configs, lora
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import chat
from jaxrl_llm.training import optim

_FILE = 'alpaca_en_demo.json'


def get_config(variant: str = '') -> config_lib.PolicyConfig:
  variants = {'': _cpu_size, 'pretrained': _pretrained, 'laptop': _laptop}
  if variant not in variants:
    raise ValueError(f"variant must be 'pretrained', 'laptop' or none, got {variant!r}")
  return variants[variant]()


def _cpu_size() -> config_lib.PolicyConfig:
  task = chat.Config(
      files=_FILE, template='chatml', num_evaluation=100, max_prompt_tokens=256,
      max_response_tokens=384, vocabulary='auto', max_vocabulary=4_096,
  )
  model = configs.TransformerConfig(
      num_layers=4, width=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_width=384,
      max_length=640,
  )

  return config_lib.PolicyConfig(
      task=task,
      model=model,
      sft=config_lib.SftConfig(
          steps=200, batch_size=4, packed_length=640, save_every=50,
          algorithm=sft.Config(head_chunk=0),
          optimizer=optim.OptimizerConfig(
              learning_rate=3e-3, schedule='cosine', warmup_steps=30, weight_decay=0.01
          ),
      ),
      evaluation=config_lib.EvaluationConfig(batch_size=4, head_chunk=0),
      scale_note=(
          'Scaled for a CPU: a decoder of about 1.3M parameters from scratch, 4,096 of the '
          "tokenizer's ids"
      ),
  )


def _pretrained() -> config_lib.PolicyConfig:
  task = chat.Config(
      files=_FILE, template='auto', num_evaluation=100, max_prompt_tokens=1_024,
      max_response_tokens=1_024,
  )
  model = configs.TransformerConfig(
      compute_dtype='bfloat16', remat='full', scan_unroll=1
  )

  return config_lib.PolicyConfig(
      task=task,
      model=model,
      sft=config_lib.SftConfig(
          steps=500, batch_size=16, packed_length=2_048, save_every=100,
          algorithm=sft.Config(num_micro_batches=4),
          optimizer=optim.OptimizerConfig(
              learning_rate=1e-5, schedule='cosine', warmup_steps=25, weight_decay=0.0
          ),
      ),
      evaluation=config_lib.EvaluationConfig(batch_size=16),
      note='Hyperparameters of our own, not tuned',
  )


def _laptop() -> config_lib.PolicyConfig:
  config = _pretrained()
  config.task = chat.Config(
      files=_FILE, template='auto', num_evaluation=16, max_prompt_tokens=128,
      max_response_tokens=128)
  config.model = configs.TransformerConfig()
  config.lora = lora.LoraConfig(rank=8)

  config.sft.steps, config.sft.batch_size, config.sft.packed_length = 40, 4, 256
  config.sft.algorithm.num_micro_batches, config.sft.save_every = 2, 10
  config.sft.optimizer = optim.OptimizerConfig(
      learning_rate=2e-4, schedule='cosine', warmup_steps=4, weight_decay=0.0)
  config.evaluation.batch_size = 4
  return config
