"""Config of the study of mice."""

import dataclasses

from jaxrl_llm import checks
from jaxrl_llm.hmm import in_context
from jaxrl_llm.models import configs
from jaxrl_llm.runs import config as config_lib
from jaxrl_llm.runs import memory
from jaxrl_llm.training import optim


@dataclasses.dataclass
class IclHmmMice:
  """Study of mice's choices (`experiments.icl_hmm.mice`).

  Attributes:
    seed: seed of meta-training, folds, simulated mice and restarts.
    data_dir: a directory of animals (`hmm.animals`); '' for simulated ones only.
    num_folds: folds of whole sessions, drawn by seed for each animal.
    num_simulated: simulated mice that are treated like animals.
    simulated_sessions: sessions per simulated mouse, 90 trials each.
    num_cohort: further simulated mice, one window each, to measure the loss to the best prediction.
    num_trials: W, trials per window: a trial is predicted from at most W - 1 earlier ones.
    model: the predictor; its vocabulary is filled in.
    steps: meta-training steps in the first layout; each draws fresh mice.
    further_steps: steps in each later layout, which starts from the parameters of the one before.
    batch_size: mice per step.
    short_trials: trials per window in the first steps: more mice, as many trials in total, less to
      compute.
    short_fraction: fraction of each layout's steps with these short windows.
    optimizer: optimizer of meta-training.
    save_every: steps between checkpoints.
    log_every: steps between lines in metrics.jsonl.
    num_states: numbers of states of the GLM-HMMs to fit.
    ridge: precision of the prior of GLM weights.
    pseudo_count: pseudo-count of the prior of transitions.
    restarts: restarts of EM.
    em_steps: EM steps per restart.
    checkpoint: a directory of a language model's parameters (Hugging Face's, or this project's with
      a known tokenizer), which then predicts as well; '' for none.
    tokenisation: tokenisation for the checkpoint: 'abc', '123' or 'random'.
    checkpoint_trials: W of the checkpoint.
    checkpoint_batch_size: windows per forward pass of the checkpoint.
    note: comment that is printed with the results.
  """

  seed: int = 0
  data_dir: str = ''
  num_folds: int = 5
  num_simulated: int = 2
  simulated_sessions: int = 40
  num_cohort: int = 256
  num_trials: int = 192
  model: configs.TransformerConfig = dataclasses.field(
      default_factory=lambda: configs.TransformerConfig(
          num_layers=3, width=64, num_heads=2, num_kv_heads=2, head_dim=32, mlp_width=128,
          max_length=1024, tie_embeddings=False, attention_block=1024))
  steps: int = 3_000
  further_steps: int = 800
  batch_size: int = 4
  short_trials: int = 48
  short_fraction: float = 0.2
  optimizer: optim.OptimizerConfig = dataclasses.field(
      default_factory=lambda: optim.OptimizerConfig(
          learning_rate=4e-3, schedule='cosine', warmup_steps=50, b2=0.98))
  save_every: int = 500
  log_every: int = 25
  num_states: tuple[int, ...] = (2, 3)
  ridge: float = 0.1
  pseudo_count: float = 0.1
  restarts: int = 3
  em_steps: int = 60
  checkpoint: str = ''
  tokenisation: str = 'abc'
  checkpoint_trials: int = 192
  checkpoint_batch_size: int = 4
  note: str = ''

  def validate(self) -> None:
    """Raises a one-line ValueError for the first field that is out of range."""
    checks.at_least(
        self, 'config', seed=0, num_folds=2, num_simulated=0, simulated_sessions=self.num_folds,
        num_cohort=2, num_trials=4, steps=1, further_steps=1, batch_size=1, short_trials=4,
        save_every=1, log_every=1, restarts=1, em_steps=1, checkpoint_trials=4,
        checkpoint_batch_size=1)

    checks.positive(self, 'config', 'ridge', 'pseudo_count')
    checks.fraction(self, 'config', 'short_fraction')
    checks.one_of(self, 'config', tokenisation=in_context.KINDS)
    checks.fixed(
        self.model, 'config.model', 'because the symbols determine the vocabulary', vocab_size=0)

    if not self.num_states or min(self.num_states) < 1:
      raise ValueError(f'config.num_states must all be at least 1, got {self.num_states}')
    if self.short_trials > self.num_trials:
      raise ValueError('config.short_trials must be at most config.num_trials '
                       f'({self.num_trials}), got {self.short_trials}')
    if not self.data_dir and not self.num_simulated:
      raise ValueError('config.num_simulated must be at least 1 without config.data_dir, got 0')

    checks.at_most(self, 'config', steps=2**31 - 1, further_steps=2**31 - 1)
    self.optimizer.validate()
    config_lib.check_schedule(
        self.optimizer, min(self.steps, self.further_steps), 'config.optimizer')

    dataclasses.replace(self.model, vocab_size=1).validate()
    needed = 1 + 3 * self.num_trials
    if self.model.max_length < needed:
      raise ValueError(
          f'config.model.max_length must be at least 1 + 3 * config.num_trials ({needed}), got '
          f'{self.model.max_length}')

  def memory(self) -> dict[str, int]:
    """Returns the bytes that a run needs at least, by what needs them; see `runs.memory`."""
    animals = self.num_simulated * self.simulated_sessions + self.num_cohort
    slots = 1 + 3 * self.num_trials
    return {
        'the networks with their optimizer (config.model)': 3 * 4 * memory.num_weights(self.model),
        'a batch of sessions (config.batch_size)': 4 * self.batch_size * slots,
        'the parameters of a GLM-HMM (config.num_states)': 4 * max(self.num_states) ** 2,
        'a batch of the checkpoint (config.checkpoint_batch_size)':
            4 * self.checkpoint_batch_size * self.checkpoint_trials,
        'the simulated mice (config.num_simulated, config.num_cohort)': 4 * animals * slots,
    }
