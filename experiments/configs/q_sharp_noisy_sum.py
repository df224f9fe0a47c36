"""Q# on copied digits by a reference whose mistakes shift what follows, from scratch.

This reproduces no table of the paper: it measures the method where everything has a closed form.
The reference is right with probability p₀ = 0.85^8 = 0.272; with the exact values the guided policy
is right with probability σ(logit p₀ + 1/η), at the least possible KL divergence. (The running sums
of `tasks.noisy_sum` have the same closed forms, but a value model of this size did not learn to see
their mistakes: on 64,000 responses it ranked no better than chance.)

Departures from the paper: the value model has the size of the reference and is drawn at random
(there is no smaller pretrained one here).

Cost: about six minutes on two CPU cores (results/q_sharp/noisy_sum).
Command: python -m experiments.q_sharp [--config.seed=N]
"""

from experiments.q_sharp import config as q_sharp_config
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_models
from jaxrl_llm.tasks import noisy_sum
from jaxrl_llm.training import optim


def get_config() -> q_sharp_config.QSharp:
  model = configs.TransformerConfig(
      num_layers=2, width=64, num_heads=4, num_kv_heads=4, head_dim=16, mlp_width=128,
      max_length=32, positions='learned',
  )
  optimizer = optim.OptimizerConfig(
      learning_rate=2e-3, schedule='cosine', warmup_steps=50, weight_decay=0.01)

  return q_sharp_config.QSharp(
      task=noisy_sum.Config(of='digits', num_train=1_000),
      model=model,
      sft=config_lib.SftConfig(steps=900, batch_size=128, save_every=300, optimizer=optimizer),
      value=value_models.ValueConfig(
          model=model, epochs=6, batch_size=128, save_every=500, optimizer=optimizer),
      guidance=q_sharp_config.Guidance(eta=0.1, num_candidates=20),
      batch_size=50,
      evaluation=config_lib.EvaluationConfig(num_samples=16, batch_size=100),
  )
