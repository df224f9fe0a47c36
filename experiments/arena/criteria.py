"""Criteria that test whether the papers' claims hold at the arena's scale.

Each criterion is a function of the outcomes by arm and seed. It is omitted if an arm that it
compares did not run.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from jaxrl_llm.evaluation import intervals, statistics
from jaxrl_llm.runs.criteria import Finding
from jaxrl_llm.tables import render

Outcomes = Mapping[str, Mapping[int, dict]]

_STEP_SIZES = ('eta_0_01', 'eta_0_03', 'eta_0_1', 'eta_0_3', 'eta_1_0', 'eta_3_0', 'eta_10_0')


def findings(task: str, outcomes: Outcomes) -> list[Finding]:
  """Returns the findings of a task's criteria that the outcomes can decide."""
  return [criterion(outcomes) for needed, criterion in _CRITERIA.get(task, ())
          if set(needed) <= set(outcomes)]


def _final(outcomes: Outcomes, arm: str, key: str) -> np.ndarray:
  """Final number of an arm for each seed."""
  return np.array([outcome['final'][key] for _, outcome in sorted(outcomes[arm].items())], float)


def _mean(values: np.ndarray, *, digits: int = 3, factor: float = 1.0) -> str:
  """Mean and standard error as text."""
  mean, error = statistics.mean_and_standard_error(factor * np.asarray(values, float))
  return render.with_error(mean, error if len(values) > 1 else None, f'.{digits}f')


def tokens_to(curve: Sequence[Mapping[str, float]], score: float, key: str) -> float:
  """Sampled tokens at which `key` first reaches `score`, interpolated linearly; inf if never."""
  return statistics.first_crossing(
      [point['sampled_tokens'] for point in curve], [point[key] for point in curve], level=score)


# --- Addition: A*-PO against the others.


def _as_accurate(outcomes: Outcomes) -> Finding:
  ours = _final(outcomes, 'a_star_po', 'greedy_score')
  others = {a: _final(outcomes, a, 'greedy_score') for a in ('ppo', 'grpo', 'rebel')}
  best = max(others, key=lambda a: others[a].mean())
  return Finding(
      'a', "A*-PO's greedy accuracy is at least that of the best of PPO, GRPO and REBEL less 2 "
      'points', ours.mean() >= others[best].mean() - 0.02,
      f'A*-PO {_mean(ours, digits=1, factor=100)} %, '
      f'{best} {_mean(others[best], digits=1, factor=100)} %')


def _fewer_tokens(outcomes: Outcomes) -> Finding:
  """Also reports GRPO's own share: every arm reaches a curve that is flat at its end early."""
  shares: dict[str, list[float]] = {'a_star_po': [], 'grpo': []}
  for seed, theirs in sorted(outcomes['grpo'].items()):
    target = 0.95 * theirs['final']['greedy_score']
    for arm, by_seed in shares.items():
      curve = outcomes[arm][seed]['curve']
      by_seed.append(
          tokens_to(curve, target, 'greedy_score') / theirs['final']['sampled_tokens'])
  ours, own = map(np.array, shares.values())
  reached = np.isfinite(ours)
  text = f'{_mean(ours[reached], digits=2)} of them' if reached.any() else 'never'
  return Finding(
      'b', "A*-PO reaches 95 % of GRPO's final greedy accuracy with at most 60 % of GRPO's sampled "
      'tokens, including its stage 1', bool(reached.all() and ours.mean() <= 0.6),
      f'{text}; reached on {reached.sum()} of {len(ours)} seeds; GRPO itself reached it with '
      f'{_mean(own, digits=2)}')


def _less_state(outcomes: Outcomes) -> Finding:
  ours, theirs = (_final(outcomes, a, 'state_bytes').mean() for a in ('a_star_po', 'ppo'))
  rows = {a: _final(outcomes, a, 'batch_completions').mean() for a in ('a_star_po', 'grpo')}
  share = rows['a_star_po'] / rows['grpo']
  return Finding(
      'c', "A*-PO's parameters and optimizer take at most 0.6 of PPO's bytes, and at most a "
      "fifth of GRPO's responses in a batch", bool(ours <= 0.6 * theirs and share <= 0.2),
      f'{ours / theirs:.2f} of the bytes; {share:.1f} of the responses: all arms of the arena '
      'have batches of one size, and those of A*-PO hold more prompts')


def _smaller_divergence(outcomes: Outcomes) -> Finding:
  arms = ('a_star_po', 'ppo', 'grpo')
  kl = {arm: _final(outcomes, arm, 'kl_to_reference') for arm in arms}
  ours = kl['a_star_po'].mean()
  return Finding(
      'd', "A*-PO's divergence from the reference is at most PPO's and GRPO's",
      all(ours <= kl[arm].mean() for arm in arms),
      ', '.join(f'{arm} {_mean(values, digits=2)} nats' for arm, values in kl.items()))


def _filtering(outcomes: Outcomes) -> Finding:
  plain = _final(outcomes, 'a_star_po', 'greedy_score')
  filtered = _final(outcomes, 'a_star_po_filtered', 'greedy_score')
  wrong = _final(outcomes, 'a_star_po_filtered', 'filtered_fraction')
  return Finding(
      'e', 'leaving out prompts whose samples all failed changes the accuracy by at most 2 '
      'points', abs(plain.mean() - filtered.mean()) <= 0.02,
      f'{_mean(wrong, digits=1, factor=100)} % of the prompts left out, and as many fewer steps '
      f'per epoch; {_mean(filtered, digits=1, factor=100)} % against '
      f'{_mean(plain, digits=1, factor=100)} %')


def _less_variance(outcomes: Outcomes) -> Finding:
  ratio = _final(outcomes, 'a_star_po', 'gradient_variance_ratio')
  return Finding(
      'g', 'the variance of the gradient of one response is lower with V* than with V = 0',
      bool((ratio < 1).all()), f'{_mean(ratio, digits=2)} times as large, at the reference')


# --- Summaries: REBEL against the others.


def _wins(outcomes: Outcomes) -> Finding:
  rates = {arm: _final(outcomes, arm, 'win_rate') for arm in ('rebel', 'sft', 'dpo')}
  over_sft, over_dpo = (rates['rebel'] - rates[arm] for arm in ('sft', 'dpo'))
  good = (over_sft >= 0.2) & (over_dpo >= 0)
  return Finding(
      'a', "REBEL's win rate is at least 20 points above SFT's and not below DPO's on every seed",
      bool(good.all()),
      ', '.join(f'{arm} {_mean(x, digits=1, factor=100)} %' for arm, x in rates.items())
      + f'; {good.sum()} of {len(good)} seeds')


def _as_good_as_ppo(outcomes: Outcomes) -> Finding:
  score = {arm: _final(outcomes, arm, 'score') for arm in ('rebel', 'ppo')}
  kl = {arm: _final(outcomes, arm, 'kl_to_reference') for arm in ('rebel', 'ppo')}
  error = statistics.pooled_error(score['rebel'], score['ppo'])
  better = score['rebel'].mean() >= score['ppo'].mean() - error
  return Finding(
      'b', "REBEL's score is at least PPO's less one standard error, at a divergence of at most "
      "1.2 of PPO's", bool(better and kl['rebel'].mean() <= 1.2 * kl['ppo'].mean()),
      f'score {_mean(score["rebel"])} and {_mean(score["ppo"])}; divergence '
      f'{_mean(kl["rebel"], digits=2)} and {_mean(kl["ppo"], digits=2)} nats')


def _faster_step(outcomes: Outcomes) -> Finding:
  times = {arm: np.median(_final(outcomes, arm, 'time/train')) for arm in ('rebel', 'ppo')}
  state = {arm: _final(outcomes, arm, 'state_bytes').mean() for arm in ('rebel', 'ppo')}
  ratio = times['rebel'] / times['ppo']
  return Finding(
      'c', "REBEL's step takes at most 0.8 of PPO's time, and has no critic",
      bool(ratio <= 0.8 and state['rebel'] < 0.6 * state['ppo']),
      f'{ratio:.2f} of the time (median, same completions per step), '
      f'{state["rebel"] / state["ppo"]:.2f} of the bytes of parameters and optimizer')


def _interior_step_size(outcomes: Outcomes) -> Finding:
  scores = [_final(outcomes, arm, 'score').mean() for arm in _STEP_SIZES]
  best = int(np.argmax(scores))
  rises, falls = np.diff(scores[: best + 1]), np.diff(scores[best:])
  return Finding(
      'd', 'the score rises and falls once with the step size; the best one is not at an end',
      bool(0 < best < len(scores) - 1 and (rises >= 0).all() and (falls <= 0).all()),
      ', '.join(f'{arm} {_mean(_final(outcomes, arm, "score"))}' for arm in _STEP_SIZES))


def _overoptimised(outcomes: Outcomes) -> Finding:
  """Compares the middle of the curve with its end (the mean of its last two points)."""
  changes: dict[str, list[float]] = {'score': [], 'reward': []}
  for outcome in outcomes['kl_0'].values():
    for key, by_seed in changes.items():
      curve = [point[key] for point in outcome['curve']]
      by_seed.append(np.mean(curve[-2:]) - curve[len(curve) // 2])
  gold, proxy = map(np.array, changes.values())
  return Finding(
      'e', "without a penalty the reward model's score rises over the second half of training, by "
      'more than two standard errors, and the gold score by no more than one',
      bool(proxy.mean() > 2 * statistics.pooled_error(proxy) and proxy.mean() > 0
           and gold.mean() <= statistics.pooled_error(gold)),
      f'gold {_mean(gold)}, reward model {_mean(proxy)}')


# --- Dialogue: REFUEL against arms that train only the last turn.


def _last_turn_arms(outcomes: Outcomes) -> list[str]:
  return [arm for arm in outcomes if arm.startswith('lt_')]


def _asks_first(outcomes: Outcomes) -> Finding:
  ours = _final(outcomes, 'refuel', 'score')
  others = {arm: _final(outcomes, arm, 'score') for arm in _last_turn_arms(outcomes)}
  best = max(others, key=lambda arm: others[arm].mean())
  are_disjoint = intervals.mean_interval(ours).low > intervals.mean_interval(others[best]).high
  return Finding(
      'a', "REFUEL's final dialogues are worth at least 0.15 more than those of the best arm that "
      'trains the last turn, and the 95 % confidence intervals are disjoint',
      bool(ours.mean() >= others[best].mean() + 0.15 and are_disjoint),
      f'refuel {_mean(ours)}, {best} {_mean(others[best])}')


def _learns_to_ask(outcomes: Outcomes) -> Finding:
  before = _final(outcomes, 'sft', 'ask_rate')
  changes = {
      arm: abs(_final(outcomes, arm, 'ask_rate') - before) for arm in _last_turn_arms(outcomes)}
  largest = max(changes, key=lambda arm: changes[arm].mean())
  ours = _final(outcomes, 'refuel', 'ask_rate')
  return Finding(
      'b', 'the probability of a question in the first turn changes by less than 0.05 if only '
      'the last turn is trained, and ends above 0.8 under REFUEL',
      bool(changes[largest].mean() < 0.05 and ours.mean() > 0.8),
      f'reference {_mean(before)}, refuel {_mean(ours)}; largest change {_mean(changes[largest])} '
      f'({largest})')


def _gap_grows(outcomes: Outcomes) -> Finding:
  arm, gaps = 'lt_offline_rebel', []
  turn = 1
  while f'turn_{turn}' in outcomes[arm][min(outcomes[arm])]['final']:
    key = f'turn_{turn}'
    gaps.append(_final(outcomes, 'refuel', key).mean() - _final(outcomes, arm, key).mean())
    turn += 1
  rank = float(stats.spearmanr(range(len(gaps)), gaps).statistic)
  return Finding(
      'c', f'the gap between REFUEL and {arm} grows with the turn (Spearman above 0.7)',
      rank > 0.7, f'{rank:.2f}; gaps ' + ', '.join(f'{gap:.3f}' for gap in gaps))


def _same_with_one_turn(outcomes: Outcomes) -> Finding:
  """REBEL arms must match exactly, the others within t-intervals corrected for their number."""
  ours = _final(outcomes, 'refuel', 'score')
  scores = {a: _final(outcomes, a, 'score') for a in outcomes if a not in ('sft', 'refuel')}
  same = [a for a in scores if a.endswith('rebel')]
  others = [a for a in scores if a not in same]
  exact = all(np.allclose(scores[arm], ours, atol=1e-6) for arm in same)

  outside = []
  for arm in others:
    differences = scores[arm] - ours
    count = len(differences)
    limit = stats.t.ppf(1 - 0.025 / len(others), count - 1) if count > 1 else 0.0
    if abs(differences.mean()) > limit * statistics.pooled_error(differences):
      outside.append(arm)

  return Finding(
      'd', 'with dialogues of one turn last-turn REBEL is REFUEL, and the other arms score equally '
      '(95 % intervals of the difference by seed, corrected for their number)',
      exact and not outside,
      f'REBEL is {"the same" if exact else "not the same"}; refuel {_mean(ours)}, '
      + ', '.join(f'{arm} {_mean(scores[arm])}' for arm in others)
      + f'; outside: {", ".join(outside) or "none"}')


_CRITERIA: dict[str, Sequence[tuple[tuple[str, ...], Callable[[Outcomes], Finding]]]] = {
    'arithmetic': (
        (('a_star_po', 'ppo', 'grpo', 'rebel'), _as_accurate),
        (('a_star_po', 'grpo'), _fewer_tokens),
        (('a_star_po', 'ppo', 'grpo'), _less_state),
        (('a_star_po', 'ppo', 'grpo'), _smaller_divergence),
        (('a_star_po', 'a_star_po_filtered'), _filtering),
        (('a_star_po',), _less_variance),
    ),
    'summarisation': (
        (('rebel', 'sft', 'dpo'), _wins),
        (('rebel', 'ppo'), _as_good_as_ppo),
        (('rebel', 'ppo'), _faster_step),
        (_STEP_SIZES, _interior_step_size),
        (('kl_0',), _overoptimised),
    ),
    'dialogue': (
        (('refuel', 'lt_online_rebel'), _asks_first),
        (('refuel', 'sft', 'lt_online_rebel'), _learns_to_ask),
        (('refuel', 'lt_offline_rebel'), _gap_grows),
    ),
    'dialogue_of_one_turn': ((('refuel', 'lt_online_rebel'), _same_with_one_turn),),
}
