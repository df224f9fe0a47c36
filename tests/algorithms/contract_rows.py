"""The algorithms that the contract checks. A new algorithm adds one row to ROWS."""


import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.algorithms import (
  a_star_po,
  dpo,
  grpo,
  icl_hmm,
  ppo,
  q_sharp,
  rebel,
  refuel,
  reinforce,
  reward_model,
  rloo,
  sft,
  vgs,
)
from jaxrl_llm.data import sft_batches
from tests.algorithms import groups

NAN, INFINITY = float('nan'), float('inf')


class Row(NamedTuple):
  """An algorithm, and how to check it.

  Attributes:
    module: the algorithm.
    options: its config, with one optimizer step per train step and temperature 1.
    effects: field -> a value that changes the train step, or (other changes, value) if the field
      has an effect only together with other changes.
    refused: (changes of the config, message of the error), for every field.
    data: makes a batch of 4 prompts.
    roles: roles of its networks, in the order of `make`.
    on_policy: changes under which `train/initial_log_ratio` is the ratio to the sampling policy.
    elsewhere: field without an entry in `effects` -> the test that covers it, as file::test.
    without: names of the checks that do not apply.
  """

  module: types.ModuleType
  options: Mapping[str, Any]
  effects: Mapping[str, Any]
  refused: list[tuple[Mapping[str, Any], str]]
  data: Callable[[], Any] = groups.batch
  roles: tuple[str, ...] = ('policy',)
  on_policy: Mapping[str, Any] = types.MappingProxyType({})
  elsewhere: Mapping[str, str] = types.MappingProxyType({})
  without: tuple[str, ...] = ()

  def networks(self, transformer=False):
    """Returns the transformers of the roles, or bigrams."""
    return tuple(groups.NETWORKS[role] if transformer else groups.BIGRAM for role in self.roles)

  def run(self, data=None, **changes):
    """(loss, gradients, metrics) on the transformer."""
    start = groups.parameters(self.roles)
    run = groups.runner(self.module, self.networks(True), start, **self.options)
    return run(self.data() if data is None else data, **changes)

  def exactly(self, data=None, start=None, **changes):
    """(loss, gradients, metrics) on the bigram, in float64."""
    return groups.exactly(
        self.module, self.data() if data is None else data, self.networks(),
        groups.tables(self.roles) if start is None else start, **{**self.options, **changes})


def _demonstrations():
  """Four rows of unequal lengths."""
  rng = np.random.default_rng(0)
  tokens, targets = rng.integers(0, 7, (2, 4, 5)).astype(np.int32)
  valid = np.arange(5) < np.array([[5], [3], [4], [2]])
  mask = (valid & (np.arange(5) > 0)).astype(np.float32)
  positions = np.broadcast_to(np.arange(5, dtype=np.int32), tokens.shape)
  return sft_batches.SftBatch(tokens, positions, valid, targets, mask, np.ones(4, np.float32))


def _trajectories():
  rng = np.random.default_rng(0)
  distributions = rng.dirichlet(np.ones(7), (4, 5)).astype(np.float32)
  symbols = rng.integers(0, 7, (4, 6)).astype(np.int32)
  return icl_hmm.Trajectories(symbols=symbols, predictions=distributions)


def _with_values():
  """One sample per prompt, and V*."""
  return dataclasses.replace(
      groups.batch(1), aux={'values': jnp.asarray([0.4, -0.3, 0.8, 0.1])})


def _outcomes():
  """Responses with returns of 0 or 1."""
  data = groups.batch()
  return dataclasses.replace(data, rewards=(data.rewards > 0).astype(jnp.float32))


def _counts(**least):
  """Refusals of counts below their minimum."""
  return [({name: low - 1}, f'{name} must be at least {low}, got {low - 1}')
          for name, low in least.items()]


_OF_STAGE_1 = 'algorithms/a_star_po_test.py::test_fields_of_stage_1_change_the_values'
_CHUNK = _counts(head_chunk=0)
_STEPS = _counts(num_epochs=1, num_minibatches=1, num_micro_batches=1) + _CHUNK
_PENALTY = [
    (dict(kl_coefficient=bad), f'kl_coefficient must be non-negative and finite, got {bad}')
    for bad in (-0.1, NAN, INFINITY)]
_TEMPERATURE = [
    (dict(temperature=bad), f'temperature must be positive and finite, got {bad}')
    for bad in (0.0, -1.0, INFINITY, NAN)]
_ETA = [(dict(eta=bad), f'eta must be positive and finite, got {bad}') for bad in (0.0, NAN)]
_LOSS_FORM = [(dict(loss_form='book'), "loss_form must be one of code, paper, got 'book'")]
_PAIRS = [
    (dict(samples_per_prompt=4), "samples_per_prompt must be 2 with pairs='all', got 4"),
    (dict(samples_per_prompt=1), 'samples_per_prompt must be at least 2, got 1'),
    (dict(pairs='some'), "pairs must be one of all, best_worst, got 'some'")]

ROWS = {
    'a_star_po': Row(
        a_star_po, dict(beta2=0.1, entropy_coefficient=0.05), data=_with_values,
        effects=dict(beta2=1e-3, temperature=0.6, entropy_coefficient=0.1),
        elsewhere=dict(
            beta1=_OF_STAGE_1, value_mode=_OF_STAGE_1,
            samples_per_prompt='experiments/a_star_po/fields_test.py::'
            'test_stage_1_samples_by_the_number_and_temperature_of_the_config',
            filter_all_wrong='experiments/a_star_po/stage1_test.py::'
            'test_A13_the_filter_selects_the_prompts_with_a_success',
            stage1_reward='experiments/a_star_po/fields_test.py::'
            'test_stage1_reward_selects_the_reward_of_stage_1',
            num_minibatches='system/run_test.py::'
            'test_sft_alone_makes_the_same_reference_and_other_runs_start_from_it'),
        without=('initial_ratio',),  # The ratio is to the reference: A9.
        refused=[
            (dict(beta1=0.0), 'beta1 must be positive and finite, got 0.0'),
            (dict(beta2=-1e-3), 'beta2 must be positive and finite, got -0.001'),
            (dict(beta2=NAN), 'beta2 must be positive and finite, got nan'),
            (dict(value_mode='median'),
             "value_mode must be one of softmax, mean, max, zero, got 'median'"),
            (dict(stage1_reward='strict'),
             "stage1_reward must be one of identical, lenient, got 'strict'"),
            (dict(entropy_coefficient=-0.1),
             'entropy_coefficient must be non-negative and finite, got -0.1'),
            *_counts(samples_per_prompt=1, num_minibatches=1, num_micro_batches=1),
            *_TEMPERATURE, *_CHUNK]),
    'rebel': Row(
        rebel, dict(num_epochs=1, temperature=1.0, kl_coefficient=0.3, eta=0.5),
        effects=dict(
            eta=2.0, loss_form='paper', kl_coefficient=0.1, whiten_rewards=True, temperature=0.6,
            num_epochs=2),
        elsewhere=dict(
            pairs='algorithms/rebel_test.py::test_best_and_worst_of_more_samples',
            signal='algorithms/rebel_bandits_test.py::'
            'test_R15_preferences_against_the_policy_itself',
            offline_fraction='algorithms/rebel_test.py::'
            'test_mix_offline_replaces_a_share_of_the_second_samples'),
        refused=[
            (dict(signal='labels'), "signal must be one of rewards, preferences, got 'labels'"),
            (dict(signal='preferences', pairs='best_worst'),
             "signal must be 'rewards' with pairs='best_worst', got 'preferences'"),
            (dict(offline_fraction=0.5, pairs='best_worst'),
             "offline_fraction must be 0 with pairs='best_worst', got 0.5"),
            (dict(offline_fraction=1.5), 'offline_fraction must be in [0, 1], got 1.5'),
            *_ETA, *_LOSS_FORM, *_PAIRS, *_TEMPERATURE, *_PENALTY, *_STEPS]),
    'refuel': Row(
        refuel, dict(num_epochs=1, temperature=1.0, kl_coefficient=0.3, eta=2.0),
        data=groups.two_turns,
        effects=dict(
            eta=3.0, loss_form='paper', kl_coefficient=1.0, whiten_rewards=True, temperature=0.5,
            num_epochs=2),
        refused=[
            (dict(samples_per_prompt=4), 'samples_per_prompt must be 2 for REFUEL, got 4'),
            *_ETA, *_LOSS_FORM, *_TEMPERATURE, *_PENALTY, *_STEPS]),
    'rloo': Row(
        rloo, dict(kl_coefficient=0.3),
        effects=dict(
            kl_coefficient=0.1, temperature=0.6, num_epochs=2, clip=(dict(num_epochs=2), 1e-4)),
        refused=[
            (dict(clip=0.0), 'clip must be in (0, inf], got 0.0'),
            *_counts(samples_per_prompt=2), *_TEMPERATURE, *_PENALTY, *_STEPS]),
    'reinforce': Row(
        reinforce, dict(kl_coefficient=0.3, samples_per_prompt=2),
        effects=dict(baseline='none', kl_coefficient=0.1, temperature=0.6),
        elsewhere=dict(
            baseline_decay='algorithms/reinforce_test.py::'
            'test_the_running_baseline_is_a_mean_of_earlier_batches_only'),
        refused=[
            (dict(baseline='median'),
             "baseline must be one of none, batch_mean, running, got 'median'"),
            (dict(baseline_decay=0.0), 'baseline_decay must be in (0, 1], got 0.0'),
            (dict(baseline_decay=1.1), 'baseline_decay must be in (0, 1], got 1.1'),
            *_counts(samples_per_prompt=1, num_micro_batches=1), *_TEMPERATURE, *_PENALTY,
            *_CHUNK]),
    'grpo': Row(
        grpo, dict(kl_coefficient=0.3, samples_per_prompt=3), data=lambda: groups.batch(3),
        effects=dict(
            advantage_scale='none', normalisation='token', kl_coefficient=0.1, temperature=0.6,
            num_epochs=2, clip_low=(dict(num_epochs=2), 1e-4),
            clip_high=(dict(num_epochs=2), 1e-4)),
        refused=[
            (dict(advantage_scale='batch'),
             "advantage_scale must be one of std, population_std, none, got 'batch'"),
            (dict(normalisation='prompt'),
             "normalisation must be one of response, token, constant, got 'prompt'"),
            (dict(clip_low=1.5), 'clip_low must be in [0, 1], got 1.5'),
            (dict(clip_high=-0.1), 'clip_high must be in [0, inf], got -0.1'),
            *_counts(samples_per_prompt=1), *_TEMPERATURE, *_PENALTY, *_STEPS]),
    'ppo': Row(
        ppo, dict(kl_coefficient=0.3, samples_per_prompt=2, num_epochs=1, temperature=1.0,
                  value_coefficient=0.5),
        roles=('policy', 'value'),
        effects=dict(
            kl_coefficient=0.1, value_coefficient=0.1, discount=0.9, trace=0.5,
            whiten_rewards=False, whiten_advantages=False, compat='released', temperature=0.6,
            num_epochs=2, clip=(dict(num_epochs=2), 1e-4), value_clip=(dict(num_epochs=2), 1e-4)),
        refused=[
            (dict(clip=0.0), 'clip must be in (0, inf], got 0.0'),
            (dict(value_clip=-0.2), 'value_clip must be in (0, inf], got -0.2'),
            (dict(discount=1.01), 'discount must be in [0, 1], got 1.01'),
            (dict(trace=-0.1), 'trace must be in [0, 1], got -0.1'),
            (dict(compat='legacy'), "compat must be one of correct, released, got 'legacy'"),
            (dict(value_coefficient=NAN),
             'value_coefficient must be non-negative and finite, got nan'),
            *_counts(samples_per_prompt=1), *_TEMPERATURE, *_PENALTY, *_STEPS]),
    'dpo': Row(
        dpo, dict(beta=0.3), on_policy=dict(reference='policy'),
        effects=dict(
            loss='ipo', beta=0.9, label_smoothing=(dict(loss='conservative'), 0.2),
            rpo_weight=0.5, reference='policy', temperature=0.6, num_epochs=2),
        elsewhere=dict(
            pairs='algorithms/dpo_test.py::test_the_best_and_the_worst_of_more_samples'),
        refused=[
            (dict(beta=0.0), 'beta must be positive and finite, got 0.0'),
            (dict(loss='kto'),
             "loss must be one of sigmoid, ipo, hinge, conservative, robust, got 'kto'"),
            (dict(reference='none'), "reference must be one of fixed, policy, got 'none'"),
            (dict(loss='robust', label_smoothing=0.5),
             'label_smoothing must be in [0, 0.5), got 0.5'),
            (dict(label_smoothing=0.1), "label_smoothing must be 0 with loss='sigmoid', got 0.1"),
            (dict(rpo_weight=-1.0), 'rpo_weight must be non-negative and finite, got -1.0'),
            *_PAIRS, *_TEMPERATURE, *_STEPS]),
    'reward_model': Row(
        reward_model, {}, roles=('reward',), effects={}, without=('initial_ratio',),
        refused=_counts(num_micro_batches=1)),
    'q_sharp': Row(
        q_sharp, {}, data=_outcomes, roles=('value',), without=('initial_ratio',),
        effects=dict(head='squared_error', positions='first'),
        elsewhere={name: f'algorithms/q_sharp_test.py::test_{test}' for name, test in dict(
            function='C5_the_two_parameterisations_read_the_same_table',
            **dict.fromkeys(
                ('num_atoms', 'low', 'high'), 'a_histogram_is_trained_on_its_range')).items()},
        refused=[
            (dict(head='gaussian'),
             "head must be one of bernoulli, squared_error, histogram, got 'gaussian'"),
            (dict(head='histogram', num_atoms=1), 'Histogram.num_atoms must be at least 2, got 1'),
            (dict(low=-1.0), "low must be 0.0 with head 'bernoulli', got -1.0"),
            (dict(high=2.0), "high must be 1.0 with head 'bernoulli', got 2.0"),
            (dict(function='advantage'),
             "function must be one of value, q_function, got 'advantage'"),
            (dict(positions='last'), "positions must be one of all, first, got 'last'"),
            *_counts(num_micro_batches=1)]),
    'vgs': Row(
        vgs, dict(loss='bernoulli'), data=_outcomes, roles=('value',), without=('initial_ratio',),
        effects=dict(loss='bradley_terry'),
        refused=[
            (dict(loss='mse'),
             "loss must be one of outcome, bernoulli, bradley_terry, got 'mse'"),
            *_counts(num_micro_batches=1)]),
    # Other batches than those of samples.
    'sft': Row(
        sft, {}, data=_demonstrations, effects={},
        without=('initial_ratio', 'padding', 'excluded_rows'),
        refused=_counts(num_micro_batches=1) + _CHUNK),
    'icl_hmm': Row(
        icl_hmm, {}, data=_trajectories, effects=dict(labels='filter'),
        without=('initial_ratio', 'padding', 'excluded_rows', 'one_prompt'),
        refused=[
            (dict(labels='true'), "labels must be one of sampled, filter, got 'true'"),
            *_counts(num_micro_batches=1)]),
}
# Forms of an algorithm whose sums are different ones: they repeat the checks of sums.
_SUMS = ('padding', 'excluded_rows', 'micro_batches')
VARIANTS = {
    'rebel: best_worst': (
        ROWS['rebel']._replace(data=lambda: groups.batch(3)),
        dict(pairs='best_worst', samples_per_prompt=3), (*_SUMS[1:], 'orders', 'other_batches')),
    'grpo: DAPO': (ROWS['grpo'], dict(
        advantage_scale='population_std', normalisation='token', clip_high=0.28), _SUMS),
    'grpo: Dr. GRPO': (ROWS['grpo'], dict(
        advantage_scale='none', normalisation='constant'), _SUMS),
    'ppo: released': (ROWS['ppo'], dict(
        compat='released', discount=0.9, trace=0.5, whiten_advantages=False), _SUMS),
    'dpo: policy': (ROWS['dpo'], dict(reference='policy', rpo_weight=0.5), ('micro_batches',)),
    'q_sharp: Q-function': (
        ROWS['q_sharp']._replace(roles=('q_function',)), dict(function='q_function'), _SUMS),
    'vgs: Bradley-Terry': (
        ROWS['vgs']._replace(data=groups.batch), dict(loss='bradley_terry'), _SUMS),
    'icl_hmm: filter': (ROWS['icl_hmm'], dict(labels='filter'), ('micro_batches',)),
}
