"""Q# on GSM8K with the paper's hyperparameters, for local checkpoints.

  python -m experiments.q_sharp --config=experiments/configs/q_sharp_gsm8k.py \\
      --config.policy_init_from=DIR --config.value.init_from=DIR_OF_A_SMALLER_MODEL \\
      --config.data_dir=DIR_OF_TRAIN_AND_TEST_JSONL

The reference (paper: Llama 3 8B Instruct, Qwen2.5 7B Instruct) and the trunk of the value model
(Llama 3.2 1B, Qwen2.5 1.5B) must share a tokenizer. Published for Llama 3 8B (Zhou et al., 2025,
Q#, arXiv 2502.20548): pass@1 of the reference 69.1 %, controlled decoding 77.8 %, Q# 78.4 %.

Not run here with checkpoints of these sizes. Departures: our wording of the instruction, and the
answer is read after ####; the temperature comes before the guidance (config.guidance.order='after'
as released); all problems are trained on (config.drop_constant=True drops, as released, those whose
responses agree).
"""

from experiments.q_sharp import config as q_sharp_config
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import value_models
from jaxrl_llm.tasks import gsm8k
from jaxrl_llm.training import optim


def get_config() -> q_sharp_config.QSharp:
  compute = configs.TransformerConfig(compute_dtype='bfloat16', scan_unroll=1)
  return q_sharp_config.QSharp(
      task=gsm8k.Config(max_response_tokens=1_024),
      model=compute,
      sft=config_lib.SftConfig(steps=0),
      value=value_models.ValueConfig(
          model=compute, epochs=5, batch_size=32,
          optimizer=optim.OptimizerConfig(
              learning_rate=2e-5, schedule='constant', weight_decay=0.01, max_grad_norm=5.0)),
      guidance=q_sharp_config.Guidance(
          eta=0.1, num_candidates=20, temperature=0.8, top_p=0.9),
      rounds=2, samples_per_prompt=16, batch_size=8,
      evaluation=config_lib.EvaluationConfig(num_samples=8, batch_size=16),
  )
