"""HMMs learnt in context from scratch: what is drawn, scored, written and resumed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import icl_hmm_report, icl_hmm_scratch, launch
from experiments.configs import icl_hmm as config_file
from jaxrl_llm.rl import hmm_oracles
from jaxrl_llm.training import loop, rng

SIZE, LENGTH, ROWS = 3, 16, 256


def _config(**changes):
  config = config_file.get_config()
  config.model = dataclasses.replace(
      config.model, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=16,
      max_length=LENGTH)
  config.optimizer.warmup_steps = 0
  small = dict(num_states=SIZE, num_symbols=SIZE, length=LENGTH, steps=4, batch_size=4,
               num_evaluation=ROWS, baum_welch_sequences=3, baum_welch_restarts=2,
               baum_welch_steps=5, log_every=1, save_every=2)
  config = dataclasses.replace(config, **{**small, **changes})
  config.validate()
  return config


def _run(config, workdir):
  workdir.mkdir(parents=True, exist_ok=True)
  return launch.Run(config, workdir, 'icl_hmm', '', 'icl_hmm.py', (), '0' * 40)


def _asked_to_stop(stopper):
  stopper.requested = True
  return stopper


def test_draws_are_of_the_seed_and_the_step_and_know_their_laws():
  config = _config()
  models, batch = icl_hmm_scratch.draw(config, rng.Stream.DATA, 3, 5)
  again = icl_hmm_scratch.draw(config, rng.Stream.DATA, 3, 5)
  jax.tree.map(np.testing.assert_array_equal, (models, batch), again)
  for other in ((rng.Stream.DATA, 4), (rng.Stream.SAMPLE_EVAL, 3)):
    assert (icl_hmm_scratch.draw(config, *other, 5)[1].symbols != batch.symbols).any()
  assert batch.symbols.shape == (5, LENGTH + 1) and batch.laws.shape == (5, LENGTH, SIZE)
  # Row t − 1 is the law of symbol t.
  row = 2
  expected = hmm_oracles.predict_next(
      *(np.asarray(x[row], np.float32) for x in models[:3]), batch.symbols[row])
  np.testing.assert_allclose(batch.laws[row], expected[1:-1], atol=1e-6)


def test_bigrams_are_counts_of_what_followed_the_last_symbol():
  symbols = np.random.default_rng(0).integers(0, SIZE, (4, 12)).astype(np.int32)
  got = np.asarray(icl_hmm_scratch.predict_bigrams(symbols, SIZE))
  for row, line in enumerate(symbols):
    for t in range(len(line)):
      counts = np.full(SIZE, 0.1)
      for before, after in zip(line[:t], line[1 : t + 1]):
        counts[after] += before == line[t]
      np.testing.assert_allclose(got[row, t], counts / counts.sum(), rtol=1e-5)


def test_scores_are_expectations_under_the_law_of_the_label():
  laws, predictions = np.array([[.5, .3, .2]]), np.array([[.1, .8, .1]])
  scores = jax.device_get(icl_hmm_scratch.score(
      predictions.astype(np.float32), laws.astype(np.float32)))
  assert scores['accuracy'][0] == pytest.approx(.3)
  assert scores['nll'][0] == pytest.approx(-(laws * np.log(predictions)).sum(), rel=1e-5)
  overlap = np.sqrt(laws * predictions).sum()
  assert scores['hellinger'][0] == pytest.approx(np.sqrt(1 - overlap), rel=1e-4)


@pytest.mark.parametrize('gaps, length', [
    ([.1, .01, .02, .01], 8), ([.01, .01, .03, .01], 32), ([.1, .1, .1, .021], float('inf')),
    ([.0, .0, .0, .0], 4)])
def test_the_length_from_which_on_the_gap_stays_small(gaps, length):
  assert icl_hmm_report.reached([4, 8, 16, 32], gaps) == length


def test_a_run_writes_what_it_measured_and_resumes_bit_for_bit(tmp_path, monkeypatch):
  whole = _run(_config(), tmp_path / 'whole')
  icl_hmm_scratch.main(whole)
  results = json.loads((whole.workdir / 'results.json').read_text())
  for method in ('icl', 'filter', 'bigram', 'baum_welch'):
    for length in (4, 8, 16):
      for score in ('accuracy', 'nll', 'hellinger'):
        assert np.isfinite(results[f'eval/{method}/{score}/T{length}'])
  for length in (4, 8, 16):  # Exactly, as labels are averaged over.
    best = results[f'eval/filter/accuracy/T{length}']
    assert all(results[f'eval/{m}/accuracy/T{length}'] <= best for m in ('icl', 'bigram'))
  assert {'accuracy.png', 'nll.png', 'gap_by_lambda2.png'} <= {
      path.name for path in (whole.workdir / 'figures').iterdir()}
  assert '(a) after 16 symbols' in (whole.workdir / 'table.md').read_text()
  # Stopped after two of four steps, and started again.
  part = _run(_config(), tmp_path / 'part')
  with monkeypatch.context() as patched, pytest.raises(loop.Interrupted):
    patched.setattr(loop.Stopper, '__enter__', _asked_to_stop)
    icl_hmm_scratch.main(part)
  assert not (part.workdir / 'results.json').exists()
  icl_hmm_scratch.main(part)
  same = lambda folder: {
      name: value for name, value in json.loads((folder / 'results.json').read_text()).items()
      if not name.startswith(('wall', 'time/'))}
  assert same(part.workdir) == same(whole.workdir)


@pytest.mark.parametrize('changes, line', [
    (dict(lambda2_low=.9, lambda2_high=.5), 'range within'),
    (dict(length=64), 'config.model.max_length must be at least config.length .64., got 16'),
    (dict(steps=0), 'config.steps must be at least 1, got 0'),
])
def test_bad_settings_are_named_in_one_line(changes, line):
  with pytest.raises(ValueError, match=line) as error:
    _config(**changes)
  assert '\n' not in str(error.value)
