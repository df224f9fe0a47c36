"""Cost of one iteration of each algorithm at the sizes of the A*-PO paper.

  python -m experiments.cost [--sizes=qwen2.5_1.5b,...] [--algorithms=a_star_po,grpo,...]

compiles 42 programs for fake devices in a few minutes, and compares them with the time and memory
columns of Brantley et al. (2025), arXiv 2505.20686 (repository ZhaolinGao/A-PO,
assets/evaluations.png).

Confirmed in that repository (S = scripts/apo_math.sh, Y = verl/trainer/config/apo_trainer.yaml):
the batch, the mini-batch, both lengths, one sample per prompt and N = 8, 25 epochs, four GPUs, one
pass over each batch, one sequence per GPU and micro-batch, no gradient checkpointing. Not
confirmed: the baselines' hyperparameters. Here they get the same batch, lengths and passes. REBEL
and DPO get the two samples that their losses are defined on, PPO and REINFORCE one, GRPO and RLOO
four. All of them get a reference, because each has a KL term by default. Every response has the
maximum length.
"""

import dataclasses

from experiments.cost import model as cost_model
from jaxrl_llm.algorithms import a_star_po, dpo, grpo, ppo, rebel, reinforce, rloo
from jaxrl_llm.models import configs

_GROUP = 4  # Ours: K of GRPO and RLOO; the published K is not confirmed.


def get_config(variant: str = '') -> cost_model.Study:
  if variant == 'tiny':
    return _tiny()
  if variant:
    raise ValueError(f'variant must be tiny or none, got {variant!r}')

  return cost_model.Study(
      name='a_star_po_paper',
      models={
          'qwen2.5_1.5b': configs.qwen2_5_1_5b(),
          'qwen2.5_3b': configs.qwen2_5_3b(),
          'qwen2.5_7b': configs.qwen2_5_7b(),
      },
      workload=cost_model.Workload(
          prompts=256,  # S: batch_size.
          minibatch_prompts=128,  # S: mini_batch_size.
          prompt_tokens=256,  # S: MAX_PROMPT_LENGTH.
          response_tokens=1_024,  # S: MAX_RESPONSE_LENGTH.
          stage1_epochs=25,  # S: EPOCH.
          devices=4,  # S: GPUS_PER_NODE.
      ),
      layouts=_layouts(_GROUP),
      recipes=_recipes(_GROUP),
      note='Sizes and lengths of the released scripts of arXiv 2505.20686; group sizes are ours',
  )


def _layouts(sequences: int) -> dict[str, cost_model.Layout]:
  return {
      'equal_rows': cost_model.Layout(
          f'{sequences} sequences a device and micro-batch, full rematerialisation',
          remat='full', sequences=sequences,
      ),
      # S: MICRO_BATCH_SIZE_PER_DEVICE; Y: enable_gradient_checkpointing.
      'one_prompt': cost_model.Layout(
          'one prompt a device and micro-batch with all of its samples, no rematerialisation',
          remat='none', sequences=0,
      ),
  }


def _recipes(group: int) -> dict[str, cost_model.Recipe]:
  once = {'num_epochs': 1, 'temperature': 1.0}  # Y: ppo_epochs, temperature.
  recipe = cost_model.Recipe
  return {
      'a_star_po': recipe(
          'A*-PO', a_star_po, {'temperature': 1.0}, 1, published='A*-PO', old=False,
          aux=('values',), stage1_samples=8,  # S: num_gen_to_use.
      ),
      'ppo': recipe('PPO', ppo, once, 1, published='PPO', critic=True),
      'grpo': recipe('GRPO', grpo, once, group, published='GRPO'),
      'rebel': recipe('REBEL', rebel, once, 2, published='REBEL'),
      'rloo': recipe('RLOO', rloo, once, group),
      'reinforce': recipe('REINFORCE', reinforce, {'temperature': 1.0}, 1),
      'dpo': recipe('online DPO', dpo, once, 2, old=False),
  }


def _tiny() -> cost_model.Study:
  """Test-size study: runs in seconds on two devices."""
  model = configs.TransformerConfig(
      vocab_size=64, num_layers=2, width=16, num_heads=2, num_kv_heads=1, head_dim=8,
      mlp_width=24, max_length=32, attention_bias=True, scan_unroll=1, attention_block=8,
  )
  return dataclasses.replace(
      get_config(), name='tiny', models={'tiny': model},
      workload=cost_model.Workload(
          prompts=8, minibatch_prompts=4, prompt_tokens=4, response_tokens=8, stage1_epochs=5,
          devices=2,
      ),
      layouts=_layouts(2), recipes=_recipes(2), note='A model for tests',
  )
