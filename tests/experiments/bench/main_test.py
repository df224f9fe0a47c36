"""The benchmark: what it counts, by which formulas, and what it writes. Never how long it takes."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import workloads
from jaxrl_llm.algorithms import a_star_po, sft
from jaxrl_llm.data import sft_batches
from jaxrl_llm.models import configs, policy
from jaxrl_llm.rl import scoring
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import loop, optim, rng
from jaxrl_llm.types import Batch, Rollouts
from tests import compiler_flags

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
HUGE_PAGES = 'glibc.malloc.hugetlb=1'
FAST_COMPILE = compiler_flags.FAST_COMPILE


def _run(*arguments, **environment):
  environment = {
      **os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': FAST_COMPILE, **environment
  }
  return subprocess.run(
      [sys.executable, '-m', 'experiments.bench', *map(str, arguments)],
      cwd=REPOSITORY, capture_output=True, text=True, env=environment)


def _bench(path, *arguments, **environment):
  done = _run('--scale=tiny', '--repeats=3', f'--json={path}', *arguments, **environment)
  assert done.returncode == 0, done.stderr
  return json.loads(path.read_text()), done.stdout


# What every workload reports.
_WORK = (
    'seconds', 'seconds_min', 'seconds_first_quartile', 'seconds_third_quartile', 'seconds_max',
    'tokens', 'tokens_per_second', 'flops', 'gflops_per_second', 'peak_bytes', 'compile_seconds',
    'ceiling_fraction',
)


def _check_rows(numbers, tokens):
  for row, count in tokens.items():
    values = {name: numbers[f'{row}/{name}'] for name in _WORK}
    assert all(np.isfinite(value) and value > 0 for value in values.values()), (row, values)
    ordered = [values[name] for name in (
        'seconds_min', 'seconds_first_quartile', 'seconds', 'seconds_third_quartile',
        'seconds_max')]
    assert ordered == sorted(ordered)
    assert values['tokens'] == count

    # Three repetitions: the median of the speeds is the speed of the median.
    np.testing.assert_allclose(values['tokens_per_second'], count / values['seconds'])
    np.testing.assert_allclose(
        1e9 * values['gflops_per_second'], values['flops'] / values['seconds'])

    ceiling = numbers[f'{row}/ceiling']
    np.testing.assert_allclose(
        values['ceiling_fraction'],
        values['gflops_per_second'] / numbers[f'{ceiling}/gflops_per_second'])


def test_train_suite_on_one_core(tmp_path):
  numbers, shown = _bench(
      tmp_path / 'bench.json', '--suite=train', '--cores=1', '--seed=3',
      GLIBC_TUNABLES=HUGE_PAGES)
  assert all(isinstance(value, (int, float, str)) for value in numbers.values())
  # 2 x 16 tokens; 2 prompts with 4 new tokens each.
  parts = [f'a_star_po_step{part}' for part in ('', '/sample', '/score', '/update')]
  _check_rows(numbers, {'sft_step': 32, 'sft_step_whole_head': 32, **dict.fromkeys(parts, 8)})
  assert numbers['a_star_po_step/flops'] == sum(numbers[f'{part}/flops'] for part in parts[1:])

  # The state and the reference stay in memory while a part runs that does not use them.
  assert numbers['a_star_po_step/peak_bytes'] >= max(
      numbers[f'{part}/peak_bytes'] for part in parts[1:])
  assert not any(name.startswith('sample_batch') for name in numbers)
  assert (numbers['cores'], numbers['seed'], numbers['repeats']) == (1, 3, 3)
  assert numbers['cores_available'] == len(os.sched_getaffinity(0))
  assert numbers['processor/threads'] == 1 and numbers['processor/model'] == numbers['cpu']

  assert not any('one_core' in name for name in numbers)
  assert numbers['environment/GLIBC_TUNABLES'] == HUGE_PAGES
  assert numbers['environment/XLA_FLAGS'] == FAST_COMPILE
  assert numbers['versions/jax'] == jax.__version__
  assert numbers['sft_step/head_chunk'] == sft.Config().head_chunk
  assert {'commit', 'device', 'platform', 'suite', 'scale', 'load_average_at_start'} <= set(numbers)
  assert '| sft_step ' in shown and '| product_forward ' in shown and HUGE_PAGES in shown
  assert [path.name for path in tmp_path.iterdir()] == ['bench.json']


def test_sample_suites_on_all_cores(tmp_path):
  numbers, shown = _bench(tmp_path / 'bench.json', '--suite=sample,guided')
  _check_rows(numbers, {
      f'{kind}_batch_{size}': size * 8
      for kind in ('sample', 'unguided', 'guided') for size in (2, 4)})
  assert not any(name.startswith(('sft_step/sec', 'a_star_po_step/sec')) for name in numbers)
  assert numbers['cores'] == numbers['cores_available'] == len(os.sched_getaffinity(0))

  ceilings = {name.split('/')[1] for name in numbers if name.startswith('ceiling/')}
  wanted = {'product_forward', 'product_input_gradient', 'product_weight_gradient', 'product_head',
            'product_attention', 'product_decode_2', 'product_decode_4', 'triad'}
  assert wanted <= ceilings
  if numbers['cores'] > 1:
    assert {f'{name}_one_core' for name in wanted} <= ceilings

  # Two floats read and one written for each of 2 ** 16 entries, four times.
  assert numbers['ceiling/triad/traffic_bytes'] == 4 * 3 * 4 * 2**16
  # All parameters and the whole cache, once for each token but the first: 11 slots of 2 x 8
  # keys and as many values, 4 bytes each, for 2 rows.
  weights = 64 * 32 + 32 * (32 + 2 * 16 + 32 + 3 * 64) + 3 * 32
  assert numbers['sample_batch_2/traffic_bytes'] == 7 * 4 * (weights + 2 * 11 * 2 * 16)
  assert '| sample_batch_2 ' in shown and '| triad ' in shown


def test_cores_hold_for_all_threads(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(
      'import os\n'
      'from experiments.bench import __main__ as bench\n'
      'bench._choose_cores(1)\n'
      'import jax\n'
      'jax.jit(lambda x: x @ x)(jax.numpy.ones((256, 256))).block_until_ready()\n'
      'threads = os.listdir("/proc/self/task")\n'
      'print(len(threads), {len(os.sched_getaffinity(int(t))) for t in threads})\n')
  done = subprocess.run(
      [sys.executable, script], cwd=REPOSITORY, capture_output=True, text=True,
      env={**os.environ, 'PYTHONPATH': str(REPOSITORY)})
  threads, cores = done.stdout.split(maxsplit=1)
  assert int(threads) > 1 and cores.strip() == '{1}', done.stdout + done.stderr


@pytest.mark.parametrize('argument, words', [
    ('--suite=train,trian', "suite must be some of train, sample, guided, got 'trian' (--suite)"),
    ('--suite=', 'suite must be'),
    ('--repeats=0', 'repeats must be at least 1, got 0'),
    ('--repeats=many', 'many'),
    ('--cores=4096', 'cores must be 1 to'),
    ('--cores=-1', 'got -1 (--cores)'),
    ('--seed=-1', 'seed must be in'),
    ('--scale=huge', 'reference|tiny'),
    ('--json=no/such/folder/bench.json', 'json must be a file in an existing directory'),
    ('--jsno=bench.json', 'unknown flag --jsno; did you mean --json?'),
    ('extra', "unexpected argument 'extra'"),
])
def test_bad_flags_are_one_line_with_status_2(argument, words):
  done = _run(argument)
  assert done.returncode == 2
  assert done.stderr.startswith('bench: error: ') and done.stderr.count('\n') == 1
  assert words in done.stderr


def _setup(scale):
  network = policy.make(scale.model)
  return workloads.Setup(scale, 0, network, jax.jit(network.init)(rng.base_key(0)))


def test_tokens_are_counted_in_the_samples():
  setup = _setup(workloads.SCALES['tiny']())
  timers = loop.Timers()
  workload = workloads.sampling(setup, 'all', 3)
  assert workload.run(1, timers) == {'all': 3 * 8}
  # Where every token of the vocabulary ends a response, each has one token.
  workload = workloads.sampling(setup, 'one', 3, stop_ids=range(64))
  assert workload.run(1, timers) == {'one': 3}
  assert set(timers.pop()) == {'time/all_seconds', 'time/one_seconds'}


def test_reference_scale_is_the_stated_workload():
  scale = workloads.SCALES['reference']()
  assert (scale.sft, scale.rollouts) == ((8, 256), (16, 32, 64))
  assert (scale.sampling, scale.batches) == ((32, 128), (16, 64))
  shapes = jax.eval_shape(policy.make(scale.model).init, rng.base_key(0))
  count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
  assert round(count / 1e6, 1) == 6.8
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  assert scale.model.scan_unroll == 0 and scale.model.remat == 'none'
  # Where the flop formulas hold.
  assert max(scale.sft[1], sum(scale.rollouts[1:])) <= scale.model.attention_block


# Wide enough that products are nearly all of the work. Attention, the head and the layers each
# stand for more than a tenth of it, so that an error in any of them is seen.
_MODEL = configs.TransformerConfig(
    vocab_size=640, num_layers=2, width=256, num_heads=8, num_kv_heads=2, head_dim=48,
    mlp_width=384, max_length=512,
)
_ROWS, _PROMPT, _NEW = 4, 96, 160


def _xla_flops(function, *arguments):
  """As XLA counts them, without compiling; element-wise operations count one each."""
  return jax.jit(function).lower(*arguments).cost_analysis()['flops']


def _shape(*dims, dtype=jnp.int32):
  return jax.ShapeDtypeStruct(dims, dtype)


def _abstract_state(make):
  network = policy.make(_MODEL)
  algorithm = make(network, optim.make_optimizer(optim.OptimizerConfig()))
  params = jax.eval_shape(network.init, rng.base_key(0))
  init = lambda params: algorithm.init(rng.base_key(0), {'policy': params})
  return algorithm, jax.eval_shape(init, params)


def _abstract_rollouts(rows, prompt, new):
  float_ = lambda *dims: _shape(*dims, dtype=jnp.float32)
  return Rollouts(
      _shape(rows, prompt), _shape(rows), _shape(rows, 1, new), _shape(rows, 1),
      float_(rows, 1, new), float_(rows, 1, new), _shape(rows, 1, dtype=jnp.int8))


def test_sft_flops_agree_with_xla():
  algorithm, state = _abstract_state(lambda *args: sft.make(sft.Config(head_chunk=0), *args))
  length = _PROMPT + _NEW
  tokens, mask = _shape(_ROWS, length), _shape(_ROWS, length, dtype=jnp.float32)
  batch = sft_batches.SftBatch(
      tokens=tokens, positions=tokens, valid=_shape(_ROWS, length, dtype=bool), targets=tokens,
      loss_mask=mask, weight=_shape(_ROWS, dtype=jnp.float32))
  counted = _xla_flops(algorithm.train_step, state, batch)
  formula = workloads.sft_flops(_MODEL, _ROWS, length)
  assert 0.975 * counted < formula < counted


def test_scoring_and_update_flops_agree_with_xla():
  config = a_star_po.Config(head_chunk=0)
  algorithm, state = _abstract_state(lambda *args: a_star_po.make(config, *args))
  rollouts = _abstract_rollouts(_ROWS, _PROMPT, _NEW)
  one = _shape(_ROWS, dtype=jnp.float32)
  batch = Batch(
      rollouts, _shape(_ROWS, 1, dtype=jnp.float32), rollouts.log_probs, {'values': one}, one)
  sizes = (_MODEL, _ROWS, _PROMPT, _NEW)
  counted = _xla_flops(algorithm.train_step, state, batch)
  assert 0.975 * counted < workloads.update_flops(*sizes) < counted
  score = lambda params, rollouts: scoring.score(policy.make(_MODEL), params, rollouts)[0]
  counted = _xla_flops(score, state.params['policy'], rollouts)
  assert 0.975 * counted < workloads.score_flops(*sizes) < counted


@pytest.mark.parametrize('prompt, new', [(128, 1), (1, 129)])
def test_sampling_flops_agree_with_xla(prompt, new):
  # The noise of a token costs some fifty operations for each entry of the vocabulary, so it is
  # small here. Attention to 129 slots is a fifth of decoding a token.
  model = dataclasses.replace(_MODEL, vocab_size=32)
  network = policy.make(model)
  sampler = decode.make_sampler(
      network, num_samples=1, max_tokens=new, stop_ids=(32,), pad_id=0)
  params = jax.eval_shape(network.init, rng.base_key(0))
  counted = _xla_flops(
      sampler, params, _shape(_ROWS, prompt), _shape(_ROWS), _shape(_ROWS), rng.base_key(0))
  # XLA counts the body of a loop once, however often it will run.
  prefill = workloads.sampling_flops(model, _ROWS, prompt, 1)
  decoding = workloads.sampling_flops(model, _ROWS, prompt, new) - prefill
  formula = prefill + decoding / max(new - 1, 1)
  assert 0.975 * counted < formula < counted
