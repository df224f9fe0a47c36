"""HMMs learnt in context from scratch: draws, scores, outputs, resume and errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments.configs import icl_hmm as config_file
from experiments.icl_hmm import report as icl_hmm_report
from experiments.icl_hmm import scratch as icl_hmm_scratch
from jaxrl_llm.hmm import oracles
from jaxrl_llm.runs import launch
from jaxrl_llm.training import loop, rng

SIZE, LENGTH, ROWS = 3, 16, 256


def _config(**changes):
  config = config_file.get_config()
  config.model = dataclasses.replace(
      config.model, num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_width=16,
      max_length=LENGTH)
  config.optimizer.warmup_steps = 0
  small = dict(num_states=SIZE, num_symbols=SIZE, length=LENGTH, steps=4, batch_size=4,
               results_file='',
               num_evaluation=ROWS, baum_welch_sequences=3, baum_welch_restarts=2,
               baum_welch_steps=5, log_every=1, save_every=2)
  config = dataclasses.replace(config, **{**small, **changes})
  config.validate()
  return config


def _run(config, workdir):
  workdir.mkdir(parents=True, exist_ok=True)
  return launch.Run(config, workdir, 'icl_hmm', '', 'icl_hmm.py', (), '0' * 40)


def _request_stop(stopper):
  stopper.requested = True
  return stopper


def test_draws_are_functions_of_seed_and_step_with_their_distributions():
  config = _config()
  models, batch = icl_hmm_scratch.draw(config, rng.Stream.DATA, 3, 5)
  again = icl_hmm_scratch.draw(config, rng.Stream.DATA, 3, 5)
  jax.tree.map(np.testing.assert_array_equal, (models, batch), again)
  for other in ((rng.Stream.DATA, 4), (rng.Stream.SAMPLE_EVAL, 3)):
    assert (icl_hmm_scratch.draw(config, *other, 5)[1].symbols != batch.symbols).any()
  assert batch.symbols.shape == (5, LENGTH + 1) and batch.predictions.shape == (5, LENGTH, SIZE)
  # Row t − 1 is the distribution of symbol t.
  row = 2
  expected = oracles.predict_next(
      *(np.asarray(x[row], np.float32) for x in models[:3]), batch.symbols[row])
  np.testing.assert_allclose(batch.predictions[row], expected[1:-1], atol=1e-6)


def test_bigrams_are_counts_after_the_last_symbol():
  symbols = np.random.default_rng(0).integers(0, SIZE, (4, 12)).astype(np.int32)
  got = np.asarray(icl_hmm_scratch.predict_bigrams(symbols, SIZE))
  for row, line in enumerate(symbols):
    for t in range(len(line)):
      counts = np.full(SIZE, 0.1)
      for before, after in zip(line[:t], line[1 : t + 1]):
        counts[after] += before == line[t]
      np.testing.assert_allclose(got[row, t], counts / counts.sum(), rtol=1e-5)


def test_scores_are_expectations_under_the_distribution_of_the_label():
  distributions, predictions = np.array([[.5, .3, .2]]), np.array([[.1, .8, .1]])
  scores = jax.device_get(icl_hmm_scratch.score(
      predictions.astype(np.float32), distributions.astype(np.float32)))
  assert scores['accuracy'][0] == pytest.approx(.3)
  assert scores['nll'][0] == pytest.approx(-(distributions * np.log(predictions)).sum(), rel=1e-5)
  overlap = np.sqrt(distributions * predictions).sum()
  assert scores['hellinger'][0] == pytest.approx(np.sqrt(1 - overlap), rel=1e-4)


@pytest.mark.parametrize('gaps, length', [
    ([.1, .01, .02, .01], 8), ([.01, .01, .03, .01], 32), ([.1, .1, .1, .021], float('inf')),
    ([.0, .0, .0, .0], 4)])
def test_the_length_from_which_on_the_gap_stays_small(gaps, length):
  assert icl_hmm_report.reached([4, 8, 16, 32], gaps) == length


def test_published_hmms_are_predicted_with_permuted_symbols(data_dir):
  # The filter instead of the network: it does not depend on permutations.
  config = _config(results_file=str(data_dir / 'icl_hmm' / 'entropy_results.csv'), num_symbols=4,
                   recorded_sequences=64)
  models = icl_hmm_scratch.recorded_hmms(config)
  assert [model.emission.shape[1] for model in models] == [4] * 18
  lengths, seen = np.array([4, 8, 16]), []

  def measure(batch):
    seen.append(np.asarray(batch.symbols))
    scores = icl_hmm_scratch.score(batch.predictions, batch.predictions)
    return {'filter': {name: x[:, lengths - 1] for name, x in scores.items()}}

  scores = icl_hmm_scratch.evaluate_recorded(config, measure, models[:2])['filter']
  assert scores['accuracy'].shape == (2, 3) and scores['hellinger'].max() < 1e-3
  for model, symbols, accuracy in zip(models, seen, scores['accuracy']):
    assert symbols.shape == (64, LENGTH + 1)
    # State 0 prefers its own symbol: with 64 permutations each of the four comes first.
    assert model.emission[0].max() > .5
    assert sorted(set(symbols[:, 0])) == [0, 1, 2, 3]
    assert .25 < accuracy.min() <= accuracy.max() < 1
  again = icl_hmm_scratch.evaluate_recorded(config, measure, models[:2])['filter']
  np.testing.assert_array_equal(scores['accuracy'], again['accuracy'])


def test_published_hmms_with_another_number_of_symbols_are_excluded(data_dir):
  file = str(data_dir / 'icl_hmm' / 'entropy_results.csv')
  assert not icl_hmm_scratch.recorded_hmms(_config(results_file=file))
  assert not icl_hmm_scratch.recorded_hmms(_config())
  with pytest.raises(ValueError, match='is not a file'):
    icl_hmm_scratch.recorded_hmms(_config(results_file='/nowhere.csv'))


def test_a_run_writes_its_measurements_and_resumes_bit_for_bit(tmp_path, monkeypatch, data_dir):
  file = str(data_dir / 'icl_hmm' / 'entropy_results.csv')

  def config():
    return _config(num_symbols=4, results_file=file, recorded_sequences=2)

  whole = _run(config(), tmp_path / 'whole')
  write, measured = icl_hmm_report.write, []
  with monkeypatch.context() as patched:
    patched.setattr(icl_hmm_report, 'write', lambda run, held_out: (
        measured.append(held_out), write(run, held_out)))
    icl_hmm_scratch.main(whole)

  # Without the file of published results, the table ends with the held-out HMMs.
  without = _run(_config(num_symbols=4), tmp_path / 'without')
  icl_hmm_report.write(without, measured[0]._replace(recorded=None, recorded_models=()))
  assert 'published HMMs' not in (without.workdir / 'table.md').read_text()

  results = json.loads((whole.workdir / 'results.json').read_text())
  for method in ('icl', 'filter', 'bigram', 'baum_welch'):
    for length in (4, 8, 16):
      for score in ('accuracy', 'nll', 'hellinger'):
        assert np.isfinite(results[f'eval/{method}/{score}/T{length}'])
  for length in (4, 8, 16):  # Exactly, because scores are averages over the label.
    best = results[f'eval/filter/accuracy/T{length}']
    assert all(results[f'eval/{m}/accuracy/T{length}'] <= best for m in ('icl', 'bigram'))
  assert {'accuracy.png', 'nll.png', 'gap_by_lambda2.png'} <= {
      path.name for path in (whole.workdir / 'figures').iterdir()}
  for states in (4, 8, 16):
    assert np.isfinite(results[f'eval/recorded/M{states}/final_gap'])
  text = (whole.workdir / 'table.md').read_text()
  assert '(a) after 16 symbols' in text and 'published HMMs' in text

  # Stopped after two of four steps and resumed.
  part = _run(config(), tmp_path / 'part')
  with monkeypatch.context() as patched, pytest.raises(loop.Interrupted):
    patched.setattr(loop.Stopper, '__enter__', _request_stop)
    icl_hmm_scratch.main(part)
  assert not (part.workdir / 'results.json').exists()
  icl_hmm_scratch.main(part)
  resumed = json.loads((part.workdir / 'results.json').read_text())
  for name in results.keys() | resumed.keys():
    if not name.startswith(('wall', 'time/', 'sha256')):
      assert resumed[name] == results[name], name


@pytest.mark.parametrize('changes, line', [
    (dict(lambda2_low=.9, lambda2_high=.5), r'must be a range in \[0, 1\), got 0.9 and 0.5'),
    (dict(length=64), 'config.model.max_length must be at least config.length .64., got 16'),
    (dict(steps=0), 'config.steps must be at least 1, got 0'),
    (dict(baum_welch_steps=2**31), 'config.baum_welch_steps must be at most 2147483647'),
])
def test_bad_configs_are_one_line_errors(changes, line):
  with pytest.raises(ValueError, match=line) as error:
    _config(**changes)
  assert '\n' not in str(error.value)
