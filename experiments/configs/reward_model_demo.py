"""A reward model on 300 chat preferences, from scratch: the scorer of REBEL's demos.

  python -m experiments.reward_model --config.data_dir=DIR_OF_dpo_en_demo.json

This is not a table of the paper. A decoder of 0.8M parameters reads the real pairs with the real
Qwen2 tokenizer (from DIR/../tokenizers/qwen2, reduced to 4,096 ids) in its ChatML form. From a few
dozen pairs such a model learns little that generalises: the demo shows the pipeline. With
--config.policy_init_from=DIR it starts from a policy instead, with that policy's tokenizer.

Cost: about two minutes on two CPU cores.
"""

from experiments.reward_model import config as reward_model_config
from jaxrl_llm.models import configs
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import optim

FILE, MAX_VOCABULARY = 'dpo_en_demo.json', 4_096


def get_config() -> reward_model_config.RewardModel:
  task = preferences.Config(
      files=FILE, template='chatml', num_evaluation=60, max_prompt_tokens=256,
      max_response_tokens=384, vocabulary='auto', max_vocabulary=MAX_VOCABULARY,
  )
  model = configs.TransformerConfig(
      num_layers=2, width=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_width=256,
      max_length=640,
  )

  return reward_model_config.RewardModel(
      task=task,
      model=model,
      optimizer=optim.OptimizerConfig(
          learning_rate=1e-4, schedule='cosine', warmup_steps=5, weight_decay=0.01),
      steps=30,
      batch_size=8,
      evaluation_batch_size=8,
      eval_every=10,
      save_every=10,
      log_every=5,
      scale_note=(
          'Scaled for a CPU: a decoder of 0.8M parameters from scratch (published: Pythia of 1.4B '
          "to 6.9B, Llama-3 of 8B), a few dozen pairs (92,832), 4,096 of the tokenizer's ids"
      ),
  )
