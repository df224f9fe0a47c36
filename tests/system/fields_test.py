"""Every field of a config has a visible effect or is refused.

Fields of the algorithm, the model and the optimizers are perturbed in their own tests.
"""

import dataclasses

import pytest

from experiments.a_star_po import config as a_star_po_config
from jaxrl_llm.training import metrics
from tests import named_tests
from tests.system import running, tiny_config

# Changed in a single run; each leaves its own trace.
_CHANGED = {
    'note': 'a note', 'scale_note': 'scaled', 'steps': 9, 'batch_size': 16,
    'stage1_batch_size': 16, 'eval_every': 5,
    'save_every': 4, 'sft.steps': 30, 'sft.batch_size': 16, 'sft.save_every': 7,
    'sft.log_every': 4, 'evaluation.num_samples': 2, 'evaluation.batch_size': 5,
    'evaluation.control_temperature': 0.7, 'evaluation.num_shown': 3,
    'evaluation.diagnosed_prompts': 6, 'evaluation.diagnosed_samples': 5,
}
# Field -> the test that covers it, as file::test.
_ELSEWHERE = {
    'seed': 'system/damage_test.py::'
            'test_samples_and_checkpoints_of_another_reference_are_refused',
    'data_dir': 'system/real_data_test.py::test_the_program_runs_on_the_real_files',
    'policy_init_from': 'system/pretrained_test.py::'
                        'test_a_hugging_face_checkpoint_and_our_own_directory_give_the_same_run',
    'reference_init_from': 'system/pretrained_test.py::'
                           'test_the_reference_can_have_its_own_directory',
    'chat_template': 'runs/prompt_formats_test.py::test_one_line_says_which_format_it_is',
    'system': 'runs/prompt_formats_test.py::test_prompts_are_those_of_generate',
    'train_last_layers': 'system/pretrained_test.py::'
                         'test_only_the_last_layers_are_trained_and_a_tied_head_is_untied',
    'token_budget': 'system/run_test.py::'
                    'test_a_token_budget_ends_stage_2_and_a_restart_ends_the_same',
    'wandb_project': 'training/metrics_test.py::test_wandb_offline',
    'sft.loss_on': 'data/sft_batches_test.py::'
                   'test_loss_on_all_includes_everything_except_padding',
    'sft.packed_length': 'system/round_trip_test.py::test_fine_tune_convert_load_and_evaluate',
    'sft.mixture': 'data/sft_batches_test.py::test_sources_are_drawn_by_weight',
    'evaluation.head_chunk': 'runs/config_test.py::test_the_chunk_of_the_evaluator',
}


@pytest.fixture(scope='module')
def changed(runner, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('changed') / 'run'
  done = runner.finish(workdir, *(f'--config.{name}={value}' for name, value in _CHANGED.items()))
  assert done.returncode == 0, done.stderr
  return workdir, done


def test_every_field_is_in_one_of_the_lists():
  names = set()
  for field in dataclasses.fields(a_star_po_config.AStarPo):
    value = getattr(tiny_config.get_config(), field.name)
    if field.name in ('sft', 'evaluation'):
      names |= {f'{field.name}.{inner.name}' for inner in dataclasses.fields(value)}
    elif not dataclasses.is_dataclass(value):
      names.add(field.name)
  assert names - {'sft.algorithm', 'sft.optimizer'} == {*_CHANGED, *_ELSEWHERE}
  assert not named_tests.missing(_ELSEWHERE.values())


def test_steps_batches_and_intervals_show_in_the_files(changed):
  workdir, _ = changed
  records = metrics.read_jsonl(workdir / 'metrics.jsonl')
  fine_tuning = [r['step'] for r in records if 'rollout/reward' not in r and 'train/loss' in r]
  assert fine_tuning == [0, 4, 8, 12, 16, 20, 24, 28, 29]
  assert [r['step'] for r in records if 'rollout/reward' in r] == list(range(30, 39))
  assert [r['step'] for r in records if 'eval/pass@1' in r] == [30, 35, 39]
  saved = lambda name: {int(p.name) for p in (workdir / 'checkpoints' / name).iterdir()}
  assert saved('sft') == {28, 30}
  assert saved('a_star_po') == {8, 9}
  stage1 = metrics.read_jsonl(workdir / 'stage1.jsonl')[1:]
  assert [len(line['ids']) for line in stage1] == [16, 16]
  lengths = [r['rollout/length'] * 16 for r in records if 'rollout/length' in r]
  assert sum(lengths) == pytest.approx(running.results(workdir)['sampled_tokens/stage2'])


def test_evaluation_fields_show_in_the_results(changed, whole):
  workdir, done = changed
  results = running.results(workdir)
  assert 'eval/trained/pass@2' in results and 'eval/trained/pass@4' not in results
  assert '| reference at temperature 0.7 ' in (workdir / 'table.md').read_text()
  shown = metrics.read_jsonl(workdir / 'samples.jsonl')
  assert len({line['id'] for line in shown}) == 3
  rows = running.read_csv(workdir / 'figures' / 'v_star.csv')
  assert len(rows) == 6
  assert all((5 * row['success_rate']) == pytest.approx(round(5 * row['success_rate']))
             for row in rows)
  assert 'a note' in done.stdout and 'a note' not in whole.stdout
  assert 'scaled' in done.stdout and 'scaled' not in whole.stdout


def test_the_batch_size_of_an_evaluation_does_not_change_results(runner, whole, tmp_path):
  done = runner.finish(tmp_path / 'run', '--config.evaluation.batch_size=5')
  assert done.returncode == 0, done.stderr
  changed, expected = running.results(tmp_path / 'run'), running.results(whole.workdir)
  for name in ('eval/trained/pass@1', 'eval/trained/greedy_accuracy', 'sampled_tokens/stage2'):
    assert changed[name] == expected[name]
  done = runner.finish(tmp_path / 'bad', '--config.evaluation.batch_size=0')
  running.assert_one_line(done, 'evaluation.batch_size must be at least 1', '0')


@pytest.mark.parametrize('axis', ['data', 'fsdp', 'tensor'])
def test_a_mesh_of_another_size_than_the_devices_is_refused(runner, tmp_path, axis):
  done = runner.finish(tmp_path / 'run', f'--config.mesh.{axis}=2')
  running.assert_one_line(done, 'must use all 1 devices')


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('digits', 2), ('num_demonstrations', 20), ('num_train', 20), ('num_evaluation', 12),
        ('carry_drop_rate', 1.0), ('carry_free_fraction', 0.6), ('answer_format', 'plain'),
        ('padding', 'zeros'),
    ],
)
def test_every_field_of_the_arithmetic_task_changes_the_problems(name, value):
  base = tiny_config.get_config().task
  assert getattr(base, name) != value
  problems = lambda task: (task.demonstrations, task.train, task.evaluation)
  make = lambda task: problems(task.make(0, ''))
  assert make(dataclasses.replace(base, **{name: value})) != make(base)
  assert problems(base.make(1, '')) != make(base)
