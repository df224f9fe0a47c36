"""Programs at sizes of a few seconds, and what two runs of one of them must agree on."""

import json
import pathlib
from typing import Any, NamedTuple

from jaxrl_llm.training import metrics


class Target(NamedTuple):
  """A program with a tiny config.

  Attributes:
    name: name of the target.
    program: the program, as in `python -m experiments.PROGRAM`.
    config: the config file in experiments/configs, with a variant.
    overrides: config fields; `{inputs}` is the directory of `inputs.write`.
    weight: share of the cases among the targets.
    unused: regular expression of config fields that these overrides leave unused.
  """

  name: str
  program: str
  config: str
  overrides: dict[str, Any]
  weight: int = 1
  unused: str = '(?!)'

  def arguments(self, inputs: pathlib.Path) -> list[str]:
    """Returns the command line, without the workdir."""
    return [f'--config=experiments/configs/{self.config}', *(
        f'--config.{name}={str(value).replace("{inputs}", str(inputs))}'
        for name, value in self.overrides.items())]


def _fields(prefix: str, **values: Any) -> dict[str, Any]:
  return {f'{prefix}.{name}': value for name, value in values.items()}


_TINY_MODEL = dict(
    num_layers=1, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=32)
_ADDITION = {
    **_fields('task', digits=1, num_demonstrations=32, num_train=32, num_evaluation=10,
              carry_free_fraction=0.5, carry_drop_rate=0.3, padding='none'),
    **_fields('model', max_length=8, **_TINY_MODEL),
    **_fields('sft', steps=40, batch_size=8, save_every=10, log_every=3),
    **_fields('sft.optimizer', learning_rate=2e-2, warmup_steps=0, weight_decay=0.0,
              schedule='constant'),
    **_fields('evaluation', num_samples=4, batch_size=8, num_shown=2),
}
_A_STAR_PO = {
    **_ADDITION, **_fields('evaluation', diagnosed_prompts=8, diagnosed_samples=4),
    'algorithm.samples_per_prompt': 4, 'optimizer.learning_rate': 1e-2, 'steps': 10,
    'batch_size': 8, 'stage1_batch_size': 8, 'save_every': 3, 'eval_every': 4,
}
_ONLINE_RL = {
    **_ADDITION, 'optimizer.learning_rate': 1e-2, 'steps': 6, 'batch_size': 16, 'save_every': 2,
    'eval_every': 3,
}

_ARENA = {
    'algorithms': 'sft,best_of_n,a_star_po,rebel,dpo', 'num_seeds': 2,
    **_fields('arithmetic.model', **{**_TINY_MODEL, 'num_kv_heads': 2, 'mlp_width': 16}),
    **_fields('arithmetic.sft', steps=2, batch_size=8),
    'arithmetic.sft.optimizer.warmup_steps': 0,
    **_fields('arithmetic', completions=64, batch_completions=16, num_evaluations=3,
              eval_samples=1, best_of=4),
    **_fields('arithmetic.task', num_demonstrations=32, num_train=6, num_evaluation=10),
}

_BLOCKS = {
    'steps': 25, 'num_splits': 2, 'refinement_ratios': '(0.0,0.2)', 'width': 4,
    'labels_per_class': '(1,3)', 'backbones': 'gcn,lp', 'heads': 'softmax,cos',
    **_fields('blocks', nodes_per_class=12, num_words=48, words_per_node=6),
}

_CHAT = {
    'data_dir': '{inputs}', 'policy_init_from': '{inputs}/policy',
    'train_last_layers': 0, 'task.tokenizer_dir': '', 'task.template': 'auto',
    'task.vocabulary': 'full', 'task.max_vocabulary': 0,
}
_REWARD = {
    **_CHAT, 'reward_init_from': '{inputs}/reward', 'batch_size': 8, 'save_every': 2,
    **_fields('evaluation', num_samples=1, temperature=1.0, batch_size=8, num_shown=2),
}
_PAIRS = _fields('task', files='pairs.json', num_evaluation=8, max_prompt_tokens=64,
                 max_response_tokens=16)

_HMM = {
    **_fields('model', num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8,
              mlp_width=16, max_length=16),
    'optimizer.warmup_steps': 0, 'num_states': 3, 'num_symbols': 3, 'length': 16, 'steps': 4,
    'batch_size': 4, 'results_file': '', 'num_evaluation': 64, 'baum_welch_sequences': 3,
    'baum_welch_restarts': 2, 'baum_welch_steps': 5, 'log_every': 1, 'save_every': 2,
}
_MICE = {
    'data_dir': '', 'num_folds': 2, 'num_simulated': 1, 'simulated_sessions': 2, 'num_cohort': 3,
    'num_trials': 8, 'short_trials': 8, 'short_fraction': 0, 'steps': 4, 'further_steps': 4,
    'save_every': 2, 'log_every': 1, 'batch_size': 2, 'restarts': 1, 'em_steps': 2,
    'num_states': '(2,)', 'optimizer.warmup_steps': 2, 'model.num_layers': 1,
}

_FEW_SHOT = {
    **_fields('generated', num_classes=6, per_class=20, width=8), 'way': 3, 'shots': '(1,)',
    'queries': 4, 'episodes': 8, 'batch_size': 4, 'neighbours': 3, 'steps': 5, 'width': 4,
}
_EVALUATE = {
    'policy_init_from': '{inputs}/policy', 'num_samples': 2, 'batch_size': 3,
    **_fields('task', files='{inputs}/sums.jsonl', max_prompt_tokens=64, max_response_tokens=4),
}

_NOISY = {
    **_fields('task', num_sums=2, error_rate=0.3, num_demonstrations=60, num_train=24,
              num_evaluation=8),
    **_fields('model', max_length=24, **_TINY_MODEL),
    **_fields('sft', steps=20, batch_size=8, save_every=10, log_every=3),
    **_fields('sft.optimizer', warmup_steps=0, schedule='constant'),
    **_fields('value', epochs=1, batch_size=8, save_every=2, log_every=2, validation_fraction=0.25),
    **_fields('value.model', max_length=24, **_TINY_MODEL),
    **_fields('value.optimizer', warmup_steps=0, schedule='constant'),
    **_fields('evaluation', num_samples=2, batch_size=8),
}
_Q_SHARP = {**_NOISY, 'samples_per_prompt': 2, 'batch_size': 8, 'etas': '(0.1,)'}
_VGS = {
    **_NOISY, **_fields('collection', temperatures='(1.0,)', responses=2, cuts=2, batch_size=8),
    'budgets': '(2,)', 'block_tokens': 2, 'trees': 1, 'scorers': 'value',
}

TARGETS = (
    Target('a_star_po', 'a_star_po', 'a_star_po_arithmetic.py', _A_STAR_PO, weight=4),
    Target('sft', 'sft', 'sft_arithmetic.py', _ADDITION),
    Target('online_rl', 'online_rl', 'online_rl_arithmetic.py:ppo', _ONLINE_RL),
    Target('arena', 'arena', 'arena.py', _ARENA, weight=3,
           unused=r'summarisation\.|dialogue\.|arithmetic\.arms\.(?!(a_star_po|rebel|dpo)\.)'),
    Target('shoestring', 'shoestring', 'shoestring_blocks.py', _BLOCKS, weight=3),
    Target('rebel_games', 'rebel_games', 'rebel_games.py',
           {'steps': 20, 'num_seeds': 2, 'batch_size': 8}, weight=2),
    Target('rebel_gaussian', 'rebel_gaussian', 'rebel_gaussian.py',
           {'steps': 8, 'num_seeds': 2, 'num_tuning_seeds': 1, 'evaluation_samples': 16}),
    Target('rebel', 'rebel', 'rebel_chat.py:demo', {
        **_REWARD, **_PAIRS, 'steps': 4, 'eval_every': 2, 'algorithm.temperature': 1.0}),
    Target('refuel', 'refuel', 'refuel_two.py:demo', {
        **_REWARD, 'steps': 3, 'eval_every': 2, 'widths': 'fixed', 'algorithm.temperature': 1.0,
        **_fields('task', files='talks.json', num_evaluation=4, num_turns=3, max_prompt_tokens=48,
                  max_message_tokens=28, max_response_tokens=6)}),
    Target('reward_model', 'reward_model', 'reward_model_demo.py', {
        **{name: value for name, value in _CHAT.items() if name != 'train_last_layers'},
        **_PAIRS, 'steps': 6, 'batch_size': 4, 'evaluation_batch_size': 4, 'eval_every': 2,
        'save_every': 2, 'log_every': 1}),
    Target('rebel_largebatch', 'rebel', 'rebel_largebatch.py:demo', {
        **_REWARD, **_PAIRS, 'rounds': 2, 'generation_batch_size': 8, 'keep_truncated': 'true',
        'eval_every': 2, 'algorithm.samples_per_prompt': 3, 'algorithm.temperature': 1.0}),
    Target('shoestring_few_shot', 'shoestring_few_shot', 'shoestring_few_shot.py', _FEW_SHOT),
    Target('evaluate', 'evaluate', 'evaluate_jsonl.py', _EVALUATE),
    Target('q_sharp', 'q_sharp', 'q_sharp_noisy_sum.py', _Q_SHARP, unused=r'baselines\.'),
    Target('vgs', 'vgs', 'vgs_noisy_sum.py', _VGS),
    Target('icl_hmm', 'icl_hmm', 'icl_hmm.py', _HMM),
    Target('icl_hmm_mice', 'icl_hmm', 'icl_hmm_mice.py', _MICE),
)

# Files of a workdir that no number depends on, or that a resumed run writes again unread.
_UNREAD = frozenset({
    '.lock', 'tensorboard', 'figures', 'v_star.json', 'trained', 'adapters',
    'pairs.jsonl', 'animals.csv', 'accuracy_by_split.csv'})


def kept_files(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files that a resumed run may read, sorted."""
  return sorted(
      path for path in workdir.rglob('*')
      if path.is_file() and not is_unread(path.relative_to(workdir)))


def is_unread(path: pathlib.Path) -> bool:
  """Returns whether a path, relative to a workdir, is never read by a resumed run."""
  return bool(_UNREAD & set(path.parts))


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns everything on which two runs must agree: all numbers, apart from times."""
  def timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in record.items()
        if name not in ('wall_seconds', 'commit', 'sha256')
        and not name.startswith(('time/', 'memory/'))}

  numbers = {'results.json': timeless(json.loads((workdir / 'results.json').read_text()))}
  for path in sorted(workdir.rglob('*.jsonl')):
    lines = [timeless(record) for record in metrics.read_jsonl(path)]
    numbers[str(path.relative_to(workdir))] = lines
  for path in sorted(workdir.rglob('*.csv')):
    numbers[str(path.relative_to(workdir))] = path.read_text()
  return numbers
