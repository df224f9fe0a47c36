"""A*-PO on GSM8K: a CPU-size default, and the released hyperparameters as named variants.

  python -m experiments.a_star_po --config=experiments/configs/a_star_po_gsm8k.py \\
      --config.data_dir=DIR_OF_TRAIN_AND_TEST_JSONL

runs the whole pipeline on the real problems with the real Qwen2 tokenizer (from
DATA_DIR/../tokenizers/qwen2), in under ten minutes on two CPU cores. The decoder has about a
million parameters and starts from scratch. Such a model learns the form of a solution and almost
no arithmetic, so its score is not comparable with any published one.

The variants `:qwen2.5_1.5b`, `:qwen2.5_3b` and `:qwen2.5_7b` use the hyperparameters of the paper's
released scripts (Brantley et al., 2025, arXiv 2505.20686; repository ZhaolinGao/A-PO). They need
--config.policy_init_from=DIR and an accelerator, and have not been run here. Departures: no entropy
bonus; one reward for both stages; our own wording of the instruction; the answer is the number
after the last `####` (not the first), and only in a response that stopped; batches cross epoch
boundaries (only their number matches).
"""

from experiments.a_star_po import config as a_star_po_config
from jaxrl_llm.algorithms import a_star_po, sft
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.tasks import gsm8k
from jaxrl_llm.training import optim

_PUBLISHED = {
    'qwen2.5_1.5b': configs.qwen2_5_1_5b,
    'qwen2.5_3b': configs.qwen2_5_3b,
    'qwen2.5_7b': configs.qwen2_5_7b,
}
_EPOCHS, _BATCH_SIZE, _TRAIN_PROBLEMS = 25, 256, 7_473


def get_config(variant: str = '') -> a_star_po_config.AStarPo:
  if not variant:
    return _cpu_size()
  if variant not in _PUBLISHED:
    raise ValueError(f'variant must be one of {", ".join(_PUBLISHED)} or none, got {variant!r}')
  return _published(variant)


def _published(variant: str) -> a_star_po_config.AStarPo:
  # Files in the repository ZhaolinGao/A-PO: S = scripts/apo_gsm8k.sh,
  # Y = verl/trainer/config/apo_trainer.yaml, W = verl/workers/fsdp_workers_apo.py.
  task = gsm8k.Config(
      max_prompt_tokens=256,  # S: longer prompts are filtered.
      max_response_tokens=1_024,  # S.
  )
  algorithm = a_star_po.Config(
      samples_per_prompt=8,  # S and Y: num_gen_to_use.
      beta1=0.5,  # S.
      beta2=1e-3,  # S.
      filter_all_wrong=False,  # Y and S: filter_incorrect is off.
      stage1_reward='identical',  # Their stage 1 scored leniently: 'lenient'.
      entropy_coefficient=0.0,  # Not in the objective; Y leaves 1e-3 active.
      temperature=1.0,  # Y: with top_p 1, top_k off.
      num_minibatches=2,  # S: 256 prompts in mini-batches of 128.
      num_micro_batches=16,  # Ours: affects memory only, not the update.
  )

  return a_star_po_config.AStarPo(
      task=task,
      chat_template='none',  # S: the prompt is the question and the instruction, as raw text.
      model=_PUBLISHED[variant](),  # Qwen2.5 base models of three sizes.
      sft=config_lib.SftConfig(steps=0),  # S: starts from the base model.
      algorithm=algorithm,
      optimizer=optim.OptimizerConfig(
          name='adamw', learning_rate=1e-6, schedule='constant',  # S.
          b1=0.9, b2=0.999, weight_decay=1e-2,  # W: the defaults of its AdamW.
          max_grad_norm=1.0,  # Y: grad_clip.
      ),
      steps=_EPOCHS * (_TRAIN_PROBLEMS // _BATCH_SIZE),  # S: 25 epochs, last batches dropped.
      batch_size=_BATCH_SIZE,  # S.
      stage1_batch_size=64,
      evaluation=a_star_po_config.Evaluation(
          num_samples=1, batch_size=64, diagnosed_prompts=0
      ),
      eval_every=50,  # S: test_freq, and before the first step.
      save_every=50,
      note='Hyperparameters of the released scripts of arXiv 2505.20686; departures in the config',
  )


def _cpu_size() -> a_star_po_config.AStarPo:
  task = gsm8k.Config(
      num_train=256, num_evaluation=128, max_prompt_tokens=160, max_response_tokens=160,
      vocabulary='auto', max_vocabulary=2_048,
  )
  model = configs.TransformerConfig(
      num_layers=4, width=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_width=384,
      max_length=320,
  )

  return a_star_po_config.AStarPo(
      task=task,
      model=model,
      sft=config_lib.SftConfig(
          steps=300, batch_size=16, save_every=100, algorithm=sft.Config(head_chunk=0),
          optimizer=optim.OptimizerConfig(
              learning_rate=3e-3, schedule='cosine', warmup_steps=30, weight_decay=0.01
          ),
      ),
      algorithm=a_star_po.Config(samples_per_prompt=4, head_chunk=0),
      optimizer=optim.OptimizerConfig(name='adam', learning_rate=1e-4),
      steps=20,
      batch_size=32,
      stage1_batch_size=32,
      save_every=5,
      eval_every=10,
      evaluation=a_star_po_config.Evaluation(
          num_samples=2, batch_size=64, diagnosed_prompts=32, diagnosed_samples=8, head_chunk=0
      ),
      scale_note=(
          'Scaled for a CPU: a decoder of about 1M parameters from scratch (published: Qwen2.5 of '
          '1.5B to 7B), 256 of 7,473 training and 128 of 1,319 test problems, 2,048 of the '
          'tokenizer\'s ids, responses of at most 160 tokens (published: 1,024), N = 4 (8), '
          'batches of 32 (256), 20 of them (725), learning rate 1e-4 (1e-6)'
      ),
  )
