"""Formulas against XLA's count and the traced train steps; bytes against real arrays; the tool."""

import dataclasses
import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from experiments.configs import cost as published
from experiments.cost import __main__ as cost_main
from experiments.cost import model as cost_model
from experiments.cost import programs as cost_programs
from experiments.cost import report as cost_report
from jaxrl_llm.models import configs, policy, value
from jaxrl_llm.rl import log_probs, scoring, sequence_scores
from jaxrl_llm.sampling import decode
from jaxrl_llm.training import optim
from tests.experiments import tiny

WORKLOAD = cost_model.Workload(
    prompts=4, minibatch_prompts=2, prompt_tokens=16, response_tokens=48, stage1_epochs=5,
    devices=1)
SLOTS = 64
# Wide enough that norms and softmax are small next to the products, and unrolled: XLA counts the
# body of a loop once.
WIDE = configs.TransformerConfig(
    vocab_size=2048, num_layers=2, width=512, num_heads=4, num_kv_heads=2, head_dim=128,
    mlp_width=1024, max_length=64, scan_unroll=2)
TINY = published.get_config('tiny')
UNOPTIMISED = {'xla_backend_optimization_level': 0}  # Of machine code alone: quicker.
OPTIMIZER = optim.make_optimizer(optim.OptimizerConfig())


def _shape(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def _rollouts(samples):
  recipe = dataclasses.replace(TINY.recipes['grpo'], samples=samples)
  return cost_programs.abstract_batch(recipe, WORKLOAD, WORKLOAD.prompts).rollouts


def _xla_flops(function, *arguments):
  compiled = jax.jit(function).lower(*arguments).compile(compiler_options=UNOPTIMISED)
  return compiled.cost_analysis()['flops']


def _scored(model):
  network = policy.make(model)
  total = lambda params, rollouts: jnp.sum(
      scoring.score(network, params, rollouts, chunk_size=0)[0])
  return total, jax.eval_shape(network.init, jax.random.key(0))


# --- Flops.


def test_scoring_is_what_xla_counts():
  function, params = _scored(WIDE)
  expected = cost_model.score(WIDE, 8, WORKLOAD)
  assert _xla_flops(function, params, _rollouts(2)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_a_gradient_is_what_xla_counts(remat):
  model = dataclasses.replace(WIDE, remat=remat)
  function, params = _scored(model)
  expected = cost_model.train(model, 8, WORKLOAD)
  assert _xla_flops(jax.grad(function), params, _rollouts(2)) == pytest.approx(expected, rel=0.02)


def test_a_critics_gradient_is_what_xla_counts():
  network = value.make(WIDE)
  function = jax.grad(lambda params, rollouts: jnp.sum(jnp.square(
      sequence_scores.token_values(network, params, rollouts))))
  params = jax.eval_shape(network.init, jax.random.key(0))
  expected = cost_model.forward_backward(WIDE, 8, SLOTS)
  assert _xla_flops(function, params, _rollouts(2)) == pytest.approx(expected, rel=0.02)


def test_a_decoding_step_is_what_xla_counts():
  network, rows, slots = policy.make(WIDE), 8, cost_model.cache_slots(WORKLOAD)

  def step(params, tokens, positions, valid, cache, index):
    output = network.apply(
        params, tokens, positions=positions, valid=valid, cache=cache, cache_index=index)
    return log_probs.head_logits(output.hidden[:, 0], output.head), output.cache

  integers = functools.partial(_shape, dtype=jnp.int32)
  got = _xla_flops(
      step, jax.eval_shape(network.init, jax.random.key(0)), integers(rows, 1), integers(rows, 1),
      _shape(rows, slots, dtype=bool), jax.eval_shape(lambda: network.init_cache(rows, slots)),
      integers())
  expected = cost_model.forward(WIDE, rows, 1, slots=slots) + cost_model.head(WIDE, rows)
  assert got == pytest.approx(expected, rel=0.02)


def test_sampling_is_a_prefill_and_steps():
  # The loop of the real sampler has no fixed length: traced, its body counts once.
  sample = decode.make_sampler(
      policy.make(WIDE), num_samples=2, max_tokens=48, stop_ids=(0,), pad_id=0)
  integers = functools.partial(_shape, dtype=jnp.int32)
  params = jax.eval_shape(policy.make(WIDE).init, jax.random.key(0))
  got = cost_programs.count_products(
      lambda *arguments: sample(*arguments, jax.random.key(0)),
      params, integers(4, 16), integers(4), integers(4))
  step = (cost_model.forward(WIDE, 8, 1, slots=63) + cost_model.head(WIDE, 8))
  assert cost_model.sample(WIDE, 4, 2, WORKLOAD) == got + 46 * step


@pytest.mark.parametrize('name', list(TINY.recipes))
def test_the_traced_train_step_agrees_with_the_formulas(name):
  # Two blocks of queries, of which the second is not full; scans over layers.
  recipe, workload = TINY.recipes[name], TINY.workload
  for layout in TINY.layouts.values():
    model = layout.apply_to(TINY.models['tiny'])
    parts = cost_model.iteration(model, recipe, workload)
    expected = (parts['old'] + parts['critic'] + parts['update']) / 2  # Two mini-batches.
    assert cost_programs.traced_step(recipe, model, OPTIMIZER, workload) == expected


def test_an_incomplete_recipe_is_rejected():
  recipe = dataclasses.replace(TINY.recipes['rebel'], old=False)
  study = dataclasses.replace(TINY, recipes={'rebel': recipe})
  with pytest.raises(ValueError, match='the train step of rebel has .* by formula'):
    cost_main._count(study, 'rebel', 'tiny', OPTIMIZER)


def test_the_count_of_products_goes_through_loops():
  x = _shape(3, 5)

  def function(x, w):
    x, _ = jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=7)
    return jax.checkpoint(lambda y: y @ w.T)(x)

  assert cost_programs.count_products(function, x, _shape(5, 5)) == 8 * 2 * 3 * 5 * 5


def test_more_work_costs_more():
  study = published.get_config()
  model, workload = study.models['qwen2.5_1.5b'], study.workload
  total = lambda model=model, workload=workload, **changes: cost_model.iteration(
      model, dataclasses.replace(study.recipes['grpo'], **changes), workload)['total']
  assert total(samples=2) < total(samples=4) < total(samples=8)
  assert total(reference=False) < total() < total(critic=True)
  assert total(old=False) < total()
  assert total(dataclasses.replace(model, remat='none')) < total()
  longer = dataclasses.replace(workload, prompt_tokens=512, response_tokens=2048)
  assert 2 * total() < total(workload=longer)  # Attention grows with the square.
  totals = [total(model) for model in study.models.values()]
  assert totals == sorted(totals)


@pytest.mark.parametrize('size', list(published.get_config().models))
def test_a_token_costs_two_operations_per_weight(size):
  model = dataclasses.replace(published.get_config().models[size], attention_block=1)
  attention = 4 * model.num_layers * model.num_heads * model.head_dim
  blocks = jax.eval_shape(policy.make(model).init, jax.random.key(0))['layers']
  kernels = sum(
      leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(blocks)
      if 'kernel' in jax.tree_util.keystr(path))
  assert cost_model.forward(model, 1, 1) == 2 * kernels + attention


def test_stage_1_is_spread_over_its_epochs():
  parts = cost_model.iteration(TINY.models['tiny'], TINY.recipes['a_star_po'], TINY.workload)
  assert parts['stage1'] * 5 == cost_model.sample(TINY.models['tiny'], 8, 8, TINY.workload)
  assert parts['total'] == sum(parts[part] for part in cost_model.PARTS)


# --- Bytes.


def test_bytes_are_those_of_real_arrays():
  recipe, model = TINY.recipes['ppo'], TINY.models['tiny']
  algorithm = cost_programs.make(recipe, model, OPTIMIZER)

  def start(key):
    return algorithm.init(
        key, {'policy': policy.make(model).init(key), 'value': value.make(model).init(key)})

  state = jax.jit(start, compiler_options=UNOPTIMISED)(jax.random.key(0))
  size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  got = cost_programs.state_bytes(
      recipe, cost_programs.abstract_state(recipe, model, algorithm))
  assert got == {
      'policy': size(state.params['policy']), 'critic': size(state.params['value']),
      'optimizer': size(state.opt_state), 'reference': size(state.params['policy'])}
  # Two moments each, and the optimizer's counts.
  assert 0 <= got['optimizer'] - 2 * (got['policy'] + got['critic']) <= 16


def test_without_a_critic_its_bytes_are_0():
  recipe, model = TINY.recipes['a_star_po'], TINY.models['tiny']
  algorithm = cost_programs.make(recipe, model, OPTIMIZER)
  got = cost_programs.state_bytes(
      recipe, cost_programs.abstract_state(recipe, model, algorithm))
  assert got['critic'] == 0 and 0 <= got['optimizer'] - 2 * got['policy'] <= 16


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_cache_bytes_are_those_of_a_real_cache(dtype):
  model = dataclasses.replace(TINY.models['tiny'], compute_dtype=dtype)
  cache = policy.make(model).init_cache(6, cost_model.cache_slots(TINY.workload))
  expected = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
  assert cost_model.cache_bytes(model, 6, TINY.workload) == expected


# --- The tool.

_ONE_LAYOUT = '''
import dataclasses
from experiments.configs import cost

def get_config():
  study = cost.get_config('tiny')
  model = dataclasses.replace(study.models['tiny'], num_layers=1)
  layouts = {'one_prompt': study.layouts['one_prompt']}
  return dataclasses.replace(study, models={'tiny': model}, layouts=layouts)
'''


def _values(*arguments):
  values = flags.FlagValues()
  cost_main.define_flags(values)
  values(['cost', *map(str, arguments)])
  return values


def test_a_tiny_study_end_to_end(tmp_path, capsys):
  (tmp_path / 'study.py').write_text(_ONE_LAYOUT)
  cost_main.main(_values(f'--config={tmp_path / "study.py"}', '--algorithms=rebel,a_star_po',
                    f'--out={tmp_path / "out"}'))
  numbers = json.loads((tmp_path / 'out' / 'cost.json').read_text())
  at = lambda name, key: numbers[f'tiny/{name}/{key}']

  for name in ('a_star_po', 'rebel'):
    used = {key: at(name, f'bytes_per_device/one_prompt/{key}')
            for key in ('arguments', 'temporaries', 'total')}
    state = sum(at(name, f'bytes/{key}') for key in ('policy', 'critic', 'optimizer'))
    # The batch is added; norms and counts are on both devices.
    assert state / 2 < used['arguments'] < 0.6 * state
    assert used['total'] == (
        used['arguments'] + used['temporaries'] + at(name, 'bytes/reference') // 2)
    assert used['temporaries'] > 0

  # A pair is two sequences in one micro-batch; networks and optimizer are the same.
  key = 'bytes_per_device/one_prompt/temporaries'
  assert at('rebel', key) > at('a_star_po', key)
  assert at('rebel', 'bytes/optimizer') == at('a_star_po', 'bytes/optimizer')
  assert at('rebel', 'flops/update') == 2 * at('a_star_po', 'flops/update')

  text = (tmp_path / 'out' / 'cost.md').read_text()
  assert text in capsys.readouterr().out
  assert 'REBEL' in text and 'PPO' not in text
  rows = (tmp_path / 'out' / 'cost.csv').read_text().splitlines()
  assert [row.split(',')[1] for row in rows] == ['algorithm', 'a_star_po', 'rebel']
  assert (tmp_path / 'out' / 'cost.png').stat().st_size > 10_000


def _invented(**temporaries):
  """Numbers of the published sizes, with temporaries in place of compiled ones."""
  study = published.get_config()
  numbers = {}
  for size, model in study.models.items():
    for name, recipe in study.recipes.items():
      prefix = f'{size}/{name}'
      resident = {
          'policy': 4e9, 'critic': 4e9 * recipe.critic, 'optimizer': 8e9 * (1 + recipe.critic),
          'reference': 4e9, 'kv_cache': 1e9}
      numbers |= {f'{prefix}/bytes/{key}': number for key, number in resident.items()}
      numbers |= {f'{prefix}/flops/{key}': number for key, number in cost_model.iteration(
          model, recipe, study.workload).items()}
      numbers |= {f'{prefix}/parameters': 1, f'{prefix}/samples_per_prompt': recipe.samples,
                  f'{prefix}/flops/traced_over_formula': 1.0}

      for layout in study.layouts:
        used = temporaries.get(name, 1e9)
        total = (sum(resident.values()) - 1e9) / 4 + used
        numbers |= {f'{prefix}/bytes_per_device/{layout}/temporaries': used,
                    f'{prefix}/bytes_per_device/{layout}/total': total}
  return study, numbers


def test_the_published_columns_are_next_to_ours():
  study, numbers = _invented(rebel=6e9)
  text = cost_report.markdown(study, numbers)
  rows = text.partition('## Comparison')[2].splitlines()
  row = next(row for row in rows if row.startswith('| qwen2.5_1.5b | REBEL'))
  cells = [cell.strip() for cell in row.split('|')][3:-1]
  # 1 - 41.59 / 63.34 and 6.92 / 10.33 of the published table; 1 - (4 + 1) / (4 + 6) of ours.
  assert cells[:4] == ['34.3 %', '50.0 %', '50.0 %', '0.67']
  work = [numbers[f'qwen2.5_1.5b/{name}/flops/total'] for name in ('a_star_po', 'rebel')]
  assert cells[4] == f'{work[0] / work[1]:.2f}' and float(cells[5]) > float(cells[4])
  assert '**Memory against REBEL.** Published: 22.5 to 34.3 % less. Here: 50.0 %' in text
  assert '**Memory against GRPO.** Published: 0.9 to 1.6 % less. Here: 0.0 %' in text
  assert 'assets/evaluations.png' in text


def test_the_group_size_implied_by_published_times():
  study, numbers = _invented()
  costs = cost_report.Costs(study, numbers)
  sentence = cost_report._group_sentence(study, costs, ['qwen2.5_7b'])
  samples = float(sentence.split('operations of ')[1].split()[0])
  model = study.layouts['equal_rows'].apply_to(study.models['qwen2.5_7b'])
  at = lambda k: cost_model.iteration(
      model, dataclasses.replace(study.recipes['grpo'], samples=k), study.workload)['total']
  between = at(1) + (samples - 1) * (at(2) - at(1))
  ours = numbers['qwen2.5_7b/a_star_po/flops/total'] + numbers[
      'qwen2.5_7b/a_star_po/flops/stage1']
  assert ours / between == pytest.approx(11.01 / 20.15, rel=0.01)


def test_committed_numbers_agree_with_the_formulas_and_the_table():
  study = published.get_config()
  folder = tiny.REPOSITORY / 'results' / 'cost'
  numbers = json.loads((folder / 'cost.json').read_text())
  for size in study.models:
    for name, recipe in study.recipes.items():
      model = study.layouts['equal_rows'].apply_to(study.models[size])
      for part, count in cost_model.iteration(model, recipe, study.workload).items():
        assert numbers[f'{size}/{name}/flops/{part}'] == count

  # The same numbers; the wording of the committed table is older.
  both = (folder / 'cost.md').read_text(), cost_report.markdown(study, numbers)
  committed, current = ([re.findall(r'\d+(?:\.\d+)?', line) for line in text.splitlines()
                         if line.startswith('|')] for text in both)
  assert committed == current


# --- Bad input.


@pytest.mark.parametrize('arguments, message', [
    (['--sizes=qwen2.5_1b'], r"sizes must be of .*, got 'qwen2.5_1b' \(--sizes\); did you mean"),
    (['--algorithms=a_star_po,sarsa'], "algorithms must be of .*, got 'sarsa'"),
    (['--config=nowhere.py'], "config file 'nowhere.py' does not exist"),
    (['--config=experiments/configs/cost.py:huge'], "variant must be tiny or none, got 'huge'"),
    (['--config=experiments/configs/sft_arithmetic.py'], 'config must be a cost_model.Study, got'),
    (['--out=setup.py'], "out: not a directory: 'setup.py'"),
])
def test_invalid_flags_are_rejected(arguments, message, monkeypatch):
  monkeypatch.chdir(tiny.REPOSITORY)
  with pytest.raises(ValueError, match=message):
    cost_main.main(_values(*arguments))


@pytest.mark.parametrize('changes, message', [
    (dict(prompts=0), 'prompts must be at least 1, got 0'),
    (dict(minibatch_prompts=3), r'prompts must be divisible by minibatch_prompts \(3\), got 8'),
    (dict(devices=3), r'minibatch_prompts must be divisible by devices \(3\), got 4'),
    (dict(response_tokens=40), r'prompt_tokens \+ response_tokens must be at most 32'),
])
def test_a_workload_that_does_not_fit_is_rejected(changes, message):
  workload = dataclasses.replace(TINY.workload, **changes)
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, workload=workload).validate()


def test_models_that_cannot_be_counted_are_rejected():
  layouts = {'odd': cost_model.Layout('', 'full', sequences=3)}
  with pytest.raises(ValueError, match='must be whole prompts .* got 3 sequences per device'):
    dataclasses.replace(TINY, layouts=layouts).validate()
  model = dataclasses.replace(TINY.models['tiny'], parallel_residual=True)
  with pytest.raises(ValueError, match='parallel_residual must be False to be counted, got True'):
    dataclasses.replace(TINY, models={'tiny': model}).validate()


def test_the_command_ends_with_one_line_and_status_2():
  result = subprocess.run(
      [sys.executable, '-m', 'experiments.cost', '--sizes=none'], cwd=tiny.REPOSITORY,
      capture_output=True, text=True, check=False, timeout=120)
  assert result.returncode == 2
  assert result.stderr.startswith('cost: error: sizes must be of ')
  assert result.stderr.count('\n') == 1
