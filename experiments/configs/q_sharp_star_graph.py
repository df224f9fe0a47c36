"""Q# on paths in star graphs, where next-token prediction guesses the first edge.

The paper's experiment at CPU size: a graph G(2, 4) with ten labels in place of G(2, 5), G(5, 5) and
G(3, 8) with fifty; a decoder of 0.8M parameters from scratch in place of GPT-2; the value model
starts from the reference's trunk (the paper: from GPT-2) and learns from the reference's own
responses. Pre-training follows edges and guesses the branch, so that half of the paths are right;
policies trained from there by REINFORCE, DPO and RPO are compared with guidance.

Variants:
  (none)   on-policy responses, a random switch, two rounds
  pairs    the right path and a wrong sample for each graph, as in the released code
  gpt2     the paper's sizes on a local GPT-2 directory (--config.policy_init_from=DIR,
           --config.value.init_from=DIR), with the numbers of the paper's appendix; not run here

Command: python -m experiments.q_sharp --config=experiments/configs/q_sharp_star_graph.py
"""

from experiments.q_sharp import baselines
from experiments.q_sharp import config as q_sharp_config
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_models
from jaxrl_llm.tasks import star_graph
from jaxrl_llm.training import optim

VARIANTS = ('pairs', 'gpt2')


def get_config(variant: str = '') -> q_sharp_config.QSharp:
  if variant not in ('', *VARIANTS):
    raise ValueError(f'variant must be {" or ".join(VARIANTS)} or none, got {variant!r}')
  config = _gpt2() if variant == 'gpt2' else _small()
  if variant:
    config.data, config.rounds = 'pairs', 1
  return config


def _small() -> q_sharp_config.QSharp:
  model = configs.TransformerConfig(
      num_layers=4, width=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_width=512,
      max_length=24, positions='learned', activation='gelu', norm='layer')

  def optimizer(learning_rate: float) -> optim.OptimizerConfig:
    return optim.OptimizerConfig(
        learning_rate=learning_rate, schedule='cosine', warmup_steps=100, weight_decay=0.1)

  return q_sharp_config.QSharp(
      task=star_graph.Config(num_demonstrations=60_000, num_train=20_000),
      model=model,
      sft=config_lib.SftConfig(
          steps=800, batch_size=128, save_every=400, optimizer=optimizer(1e-3)),
      value=value_models.ValueConfig(
          reference_layers=4, epochs=10, batch_size=128, save_every=500,
          optimizer=optimizer(5e-4)),
      guidance=q_sharp_config.Guidance(num_candidates=10, tail='truncate'),
      samples_per_prompt=2, batch_size=500,
      baselines=baselines.Baselines(names='reinforce,dpo,rpo', steps=1_000, batch_size=64),
      evaluation=config_lib.EvaluationConfig(num_samples=1, batch_size=250),
  )


def _gpt2() -> q_sharp_config.QSharp:
  optimizer = optim.OptimizerConfig(
      learning_rate=2.5e-4, schedule='cosine', warmup_steps=100, weight_decay=0.1)
  return q_sharp_config.QSharp(
      task=star_graph.Config(
          degree=2, length=5, num_labels=50, separators=True, num_demonstrations=200_000,
          num_train=200_000, num_evaluation=20_000),
      sft=config_lib.SftConfig(steps=23_430, batch_size=256, optimizer=optimizer),
      value=value_models.ValueConfig(epochs=10, batch_size=512, optimizer=optimizer),
      guidance=q_sharp_config.Guidance(num_candidates=10, tail='truncate'),
      samples_per_prompt=1, batch_size=256,
      baselines=baselines.Baselines(names='reinforce,dpo,rpo', steps=7_810, batch_size=256),
      evaluation=config_lib.EvaluationConfig(num_samples=1, batch_size=256),
  )
