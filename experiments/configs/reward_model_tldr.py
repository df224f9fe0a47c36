"""The reward model of TL;DR summarisation, with the hyperparameters of REBEL's released script.

  python -m experiments.reward_model --config=experiments/configs/reward_model_tldr.py \\
      --config.data_dir=DIR --config.policy_init_from=SFT_CHECKPOINT

Sources: R = src/tldr/rm.py, S = src/tldr/sft.py of ZhaolinGao/REBEL (Gao et al., 2024, arXiv
2404.16767). DIR holds, as JSON lines,
  train.jsonl, validation.jsonl  of vwxyzjn/summarize_from_feedback_oai_preprocessing_1706381144
  references.jsonl               of cleanrl/summarize_from_feedback_tldr_3_filtered_oai_
                                 preprocessing_1704563162 (its validation split)
whose rows contain Pythia's token ids: [PAD] is an id that the tokenizer lacks, and is removed. The
policy is a Pythia fine-tuned on the references (see rebel_tldr.py). The config needs an
accelerator, and has not been run here. The choice of references for centring is ours: the released
script's split is not confirmed.
"""

from experiments.reward_model import config as reward_model_config
from jaxrl_llm.algorithms import reward_model
from jaxrl_llm.models import configs
from jaxrl_llm.tasks import preferences
from jaxrl_llm.training import optim


def get_config() -> reward_model_config.RewardModel:
  task = preferences.Config(
      files='train.jsonl', evaluation_files='validation.jsonl', schema='tldr_pairs',
      template='none',
      num_train=92_832,  # R: the first rows.
      num_evaluation=0,  # R: all of the split.
      max_prompt_tokens=512, max_response_tokens=53,  # S: query and reference.
  )

  return reward_model_config.RewardModel(
      seed=66_613,  # R.
      task=task,
      model=configs.TransformerConfig(compute_dtype='bfloat16', remat='full', scan_unroll=1),
      head_init='normal',  # R: N(0, 1/sqrt(d + 1)), bias 0.
      algorithm=reward_model.Config(num_micro_batches=4),  # Ours: memory only.
      optimizer=optim.OptimizerConfig(
          name='adamw', learning_rate=3e-6, schedule='cosine', warmup_steps=0, eps=1e-5,  # R, S.
          weight_decay=0.01,  # The default of torch's AdamW; unconfirmed for R.
          max_grad_norm=0.0,  # R: no clipping.
      ),
      steps=0,  # R: one epoch.
      batch_size=64,  # R.
      evaluation_batch_size=64,
      centre=True,  # R: the mean score of reference summaries is subtracted.
      centring_file='references.jsonl', centring_schema='tldr',
      eval_every=200,
      save_every=200,
      note='Hyperparameters of src/tldr/rm.py, released with arXiv 2404.16767; not run here',
  )
