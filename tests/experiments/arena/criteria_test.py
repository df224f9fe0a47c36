"""The criteria of the arena: each can hold and fail."""

import pytest

from experiments.arena import criteria as arena_criteria
from jaxrl_llm.runs import criteria


def _outcome(**final):
  return {'curve': [{'sampled_tokens': 0, 'greedy_score': 0.0},
                    {'sampled_tokens': 100, 'greedy_score': final.get('greedy_score', 0.0)}],
          'final': {'sampled_tokens': 100, **final}}


def test_tokens_are_counted_to_the_first_crossing():
  curve = [{'sampled_tokens': t, 'score': s} for t, s in ((0, 0.2), (10, 0.4), (20, 0.3), (30, 1))]
  assert arena_criteria.tokens_to(curve, 0.3, 'score') == pytest.approx(5)
  assert arena_criteria.tokens_to(curve, 0.1, 'score') == 0
  assert arena_criteria.tokens_to(curve, 2, 'score') == float('inf')


@pytest.mark.parametrize('ours, holds', [(0.95, True), (0.8, False)])
def test_a_criterion_can_hold_and_fail(ours, holds):
  arms = {'a_star_po': ours, 'ppo': 0.9, 'grpo': 0.96, 'rebel': 0.7}
  outcomes = {
      name: {seed: _outcome(greedy_score=score + 0.001 * seed, kl_to_reference=1.0,
                            state_bytes=1.0, batch_completions=128, gradient_variance_ratio=0.4)
             for seed in (0, 1, 2)} for name, score in arms.items()}
  findings = {f.name: f for f in arena_criteria.findings('arithmetic', outcomes)}
  assert findings['a'].holds == holds and 'grpo 96.1' in findings['a'].measured
  assert findings['g'].holds and not findings['c'].holds
  text = criteria.markdown(list(findings.values()))
  assert ('**holds**' in text) and ('**does not hold**' in text)


@pytest.mark.parametrize('ours, asks, holds', [(0.9, 0.95, True), (0.3, 0.2, False)])
def test_criteria_of_dialogue_can_hold_and_fail(ours, asks, holds):
  turns = lambda best: {f'turn_{i + 1}': 0.2 + (best - 0.2) * i / 4 for i in range(5)}
  arms = {'sft': (0.25, 0.15), 'refuel': (ours, asks), 'lt_online_rebel': (0.28, 0.16),
          'lt_offline_rebel': (0.25, 0.14 if holds else 0.3)}
  outcomes = {
      name: {seed: _outcome(score=score + 0.001 * seed, ask_rate=rate, **turns(score))
             for seed in range(5)} for name, (score, rate) in arms.items()}
  findings = {f.name: f for f in arena_criteria.findings('dialogue', outcomes)}
  assert [findings[name].holds for name in 'ab'] == [holds, holds]
  assert findings['c'].holds  # 0.3 is more than 0.25 too.


@pytest.mark.parametrize('rebel, dpo, holds', [
    (0.9, 0.89, True), (0.9001, 0.89, False), (0.9, 0.8, False)])
def test_with_one_turn_rebel_is_refuel_and_the_others_score_equally(rebel, dpo, holds):
  noise = (0.0, 0.02, -0.02, 0.01, -0.01)
  arms = {'sft': (0.2, 0), 'refuel': (0.9, 0), 'lt_online_rebel': (rebel, 0),
          'lt_online_dpo': (dpo, 1), 'lt_online_rloo': (0.9, -1)}
  outcomes = {
      name: {seed: _outcome(score=score + sign * noise[seed]) for seed in range(5)}
      for name, (score, sign) in arms.items()}
  (finding,) = arena_criteria.findings('dialogue_of_one_turn', outcomes)
  assert finding.holds == holds and 'sft' not in finding.measured


@pytest.mark.parametrize('gold, proxy, holds', [
    ((0.1, 0.5, 0.7, 0.7, 0.7), (0.1, 0.5, 0.7, 0.8, 0.9), True),
    ((0.1, 0.5, 0.6, 0.7, 0.8), (0.1, 0.5, 0.7, 0.8, 0.9), False),  # The gold score still rises.
    ((0.1, 0.5, 0.7, 0.6, 0.5), (0.1, 0.5, 0.7, 0.7, 0.7), False),  # Nothing is over-optimised.
])
def test_overoptimisation_is_a_rising_reward_model_on_a_flat_gold_score(gold, proxy, holds):
  curve = [{'score': g, 'reward': r} for g, r in zip(gold, proxy)]
  outcomes = {'kl_0': {seed: {'curve': [
      {key: value + 1e-3 * (seed - 2) * i for key, value in point.items()}
      for i, point in enumerate(curve)], 'final': {}} for seed in range(5)}}
  (finding,) = [f for f in arena_criteria.findings('summarisation', outcomes) if f.name == 'e']
  assert finding.holds == holds
