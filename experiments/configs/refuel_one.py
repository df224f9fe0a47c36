"""REFUEL with a simulated user (setting one): the released hyperparameters, and a demo.

  python -m experiments.reward_model --config.data_dir=DIR_OF_dpo_en_demo.json
  python -m experiments.refuel --config=experiments/configs/refuel_one.py \\
      --config.data_dir=DIR_OF_dpo_en_demo.json \\
      --config.reward_init_from=runs/reward_model_demo/params

is the demo: a decoder of 1.3M parameters is fine-tuned on both sides of real conversations. Frozen,
it is the reference and plays the user; its last block, norm and head are trained as the policy,
within two minutes on two CPU cores.

The user may also be another model with the same tokenizer, --config.user.kind=model
--config.user.init_from=DIR, or one on a server, --config.user.kind=endpoint
--config.user.url=http://HOST:PORT/v1 --config.user.model=NAME; either may be asked to give its
reasons first, and its message after a mark (--config.user.mark=Question:).

Variant `:ultrainteract` uses the hyperparameters of setting one (Gao et al., 2024, arXiv
2410.04612; ZhaolinGao/REFUEL: D = the command in its documentation; in setting_one/, G =
generate.py, F = tokenize_mask.py, R = refuel.py). It needs accelerators and has not been run here.
DIR holds train.jsonl, as JSON lines, of openbmb/UltraInteract_pair. Policy:
Meta-Llama-3-8B-Instruct. User: Llama-3.1-70B-Instruct. The published reward model, ArmoRM, has a
model class of its own and is rejected by name: another one changes the scale that η = 1000 suits.

A run is one of the paper's two iterations. The second one starts from the result of the first:

  ... --config.policy_init_from=runs/refuel_one_ultrainteract/trained --workdir=ANOTHER

Departures: the released code generates all 64,000 pairs from the policy at the start of the
iteration; here they come in ten batches, each from the current policy, so that a run can resume and
needs less memory. (--config.steps=1 --config.batch_size=64000
--config.algorithm.num_minibatches=500 is the released order.) A dialogue is not continued after the
turn at which it is judged: the filter looks at its length up to there. Of rows with the same user
turns one is used (released: of rows with the same whole trajectory). The wording of the user's
instruction is ours.
"""

from experiments.configs import refuel_two
from experiments.refuel import config as refuel_config
from experiments.refuel import dialogues as refuel_dialogues
from jaxrl_llm.algorithms import refuel
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import reward_config
from jaxrl_llm.training import optim

VARIANTS = ('demo', 'ultrainteract')
_UPDATES, _PAIRS, _BATCHES = 500, 128, 10


def get_config(variant: str = 'demo') -> refuel_config.Refuel:
  if variant not in VARIANTS:
    raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}')
  return _demo() if variant == 'demo' else _published()


def _published() -> refuel_config.Refuel:
  task = refuel_dialogues.Config(
      files='train.jsonl', key='trajectory', first_only=True,
      num_evaluation=500, num_turns=5, max_response_tokens=1_024,  # G, F.
      # Ours, so that five turns fit into 8,192 tokens.
      max_prompt_tokens=1_024, max_message_tokens=511,
  )
  algorithm = refuel.Config(
      eta=1e3, kl_coefficient=0.0, temperature=0.8,  # D.
      num_epochs=1, num_minibatches=_UPDATES // _BATCHES,  # D: 500 updates of 128 pairs.
      num_micro_batches=16,  # D: 16 accumulated.
  )

  return refuel_config.Refuel(
      seed=555_134,  # R.
      task=task,
      model=configs.TransformerConfig(compute_dtype='bfloat16', remat='full', scan_unroll=1),
      sft=config_lib.SftConfig(steps=0),  # Starts from the chat model.
      user=refuel_config.UserConfig(
          kind='endpoint', temperature=0.8, max_tokens=1_024, mark='Question:'),  # G.
      algorithm=algorithm,
      reward=reward_config.RewardConfig(
          template='auto', max_tokens=8_192,  # Ours: whole dialogues, in the model's own template.
          eos_check='off', missing_stop_penalty=0.0,  # F: there is none.
      ),
      optimizer=optim.OptimizerConfig(
          name='adamw', learning_rate=3e-7, schedule='cosine', warmup_steps=_UPDATES // 10,  # R.
          b1=0.9, b2=0.95, eps=1e-8, weight_decay=1e-6,  # R.
          max_grad_norm=0.0,  # Unconfirmed: no clipping.
      ),
      law='one',
      max_tokens=2_048,  # F.
      steps=_BATCHES,
      batch_size=_UPDATES * _PAIRS // _BATCHES,
      rollout_batch_size=128,  # Ours: memory only.
      evaluation=reward_config.RebelEvaluation(temperature=0.8, batch_size=128),  # Ours.
      eval_every=5,
      save_every=1,
      note='Hyperparameters of arXiv 2410.04612, setting one; not run here',
  )


def _demo() -> refuel_config.Refuel:
  return refuel_two.demo(
      task=refuel_two.demo_task(first_only=True, max_message_tokens=40),
      user=refuel_config.UserConfig(kind='model', max_tokens=24),
      algorithm=refuel.Config(temperature=0.8, kl_coefficient=0.0, head_chunk=0),
      reward=reward_config.RewardConfig(eos_check='off', missing_stop_penalty=0.0),
      law='one',
  )
