"""The command line of every program: bad input, workdirs, locks, results.json."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from jaxrl_llm.runs import command_line, launch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# A program and its config, without JAX: each start takes about a tenth of a second.
BINARY = textwrap.dedent('''
    """Adds numbers."""
    import contextlib, errno, pathlib, signal, sys, time, weakref
    from jaxrl_llm.runs import launch
    from jaxrl_llm.training import loop

    def main(run):
      config = run.config
      print('main', config.optimizer.learning_rate, run.workdir, run.setting, run.seed, flush=True)
      if config.fail == 'value':
        raise ValueError('beta1 must be positive,\\n  got -1 (config.beta1)')
      if config.fail == 'missing':
        open('absent/train.jsonl')
      if config.fail == 'full':
        (run.workdir / 'metrics.jsonl').write_text('{}')
        raise OSError(errno.ENOSPC, 'No space left on device', 'metrics.jsonl')
      if config.fail == 'bug':
        raise RuntimeError('a bug')
      if config.fail == 'overflow':
        raise OverflowError('1000 is out of bounds for int8')
      if config.fail == 'pipe':
        while True:
          print('x' * 10_000, flush=True)
      if config.fail == 'memory':
        raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 4000000000000 bytes.')
      if config.fail == 'late':
        (run.workdir / 'metrics.jsonl').write_text('{}')
        raise ValueError('train/loss must be finite, got nan at step 3')
      if config.fail == 'wait':
        time.sleep(60)
      if config.fail.startswith('SIG'):  # Received in a callback, whose exceptions are discarded.
        probe = type('Probe', (), {})()
        watch = weakref.ref(probe, lambda _: signal.raise_signal(signal.Signals[config.fail]))
        del probe
        time.sleep(60)
      if config.fail == 'caught':
        with contextlib.suppress(KeyboardInterrupt):  # As a library might.
          signal.raise_signal(signal.SIGTERM)
        with loop.Stopper() as stopper:
          stopper.check('stopped after step 1')
      run.table_path.write_text('| a | table |\\n')
      launch.finish(run, {'experiment': 'adding', 'seed': config.seed})
      assert 'jax' not in sys.modules

    if __name__ == '__main__':
      launch.run(main, default_config='adding_small.py')
''')

CONFIG = textwrap.dedent('''
    import dataclasses

    @dataclasses.dataclass
    class Optimizer:
      learning_rate: float = 1e-3
      warmup: int = 0

    @dataclasses.dataclass
    class Config:
      seed: int = 0
      data_dir: str = ''
      fail: str = ''
      fast: bool = False
      sizes: tuple[int, ...] = (1, 2)
      limit: int | None = None
      optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)

      def validate(self):
        if self.optimizer.learning_rate <= 0:
          raise ValueError(f'learning_rate must be positive, got {self.optimizer.learning_rate} '
                           '(config.optimizer.learning_rate)')

      def memory(self):
        return {'sizes (config.sizes)': sum(self.sizes)}

    def get_config(variant='small'):
      if variant not in ('small', 'big'):
        raise ValueError(f'variant must be small or big, got {variant!r}')
      return Config()
''')


@pytest.fixture
def binary(tmp_path):
  """Returns a function that runs `adding.py` with arguments and returns the finished process."""
  (tmp_path / 'adding.py').write_text(BINARY)
  (tmp_path / 'adding_small.py').write_text(CONFIG)

  def start(*arguments, process=subprocess.run, **options):
    return process(
        [sys.executable, 'adding.py', *arguments], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(REPOSITORY)}, **options)

  return start


def _assert_one_line(done, *words):
  assert done.returncode == 2, done
  assert done.stderr.startswith('adding: error: ') and done.stderr.count('\n') == 1, done.stderr
  for word in words:
    assert word in done.stderr


def test_all_arguments_have_defaults(binary, tmp_path):
  done = binary()
  assert done.returncode == 0, done.stderr
  assert done.stdout == 'main 0.001 runs/adding_small small 0\n' and done.stderr == ''
  config = json.loads((tmp_path / 'runs/adding_small/config.json').read_text())
  assert config['experiment'] == 'adding' and config['config_file'] == 'adding_small.py'
  assert config['config']['optimizer'] == {'learning_rate': 0.001, 'warmup': 0}
  assert config['config']['sizes'] == [1, 2]


@pytest.mark.parametrize('arguments,line', [
    (['--config.seed=3'], 'main 0.001 runs/adding_small_seed3 small 3'),
    (['--config.optimizer.learning_rate=2e-2'], 'main 0.02 runs/adding_small small 0'),
    (['--config.seed', '4', '--config', 'adding_small.py:big'],
     'main 0.001 runs/adding_small_big_seed4 small_big 4'),
    (['--workdir=a/b', '--config.fast', '--config.sizes=(3,4)', '--config.limit=5'],
     'main 0.001 a/b small 0'),
    (['--noconfig.fast', '--config.fast=true'], 'main 0.001 runs/adding_small small 0'),
])
def test_overrides_and_default_workdir(binary, arguments, line):
  done = binary(*arguments)
  assert done.returncode == 0, done.stderr
  assert done.stdout == line + '\n'


@pytest.mark.parametrize('arguments,words', [
    (['--config.sead=1'], ['unknown field config.sead', 'mean seed?', 'allowed are seed, ']),
    (['--config.optimizer.rate=1'], ['unknown field config.optimizer.rate', 'learning_rate, ']),
    (['--config.seed.x=1'], ['unknown field config.seed.x', 'config.seed is a single value']),
    (['--config.optimizer=1'], ['config.optimizer has fields', '--config.optimizer.learning_rate']),
    (['--config.seed=x'], ["config.seed must be an integer, got 'x'"]),
    (['--config.seed=1.5'], ["config.seed must be an integer, got '1.5'"]),
    (['--config.seed', 'x'], ["config.seed must be an integer, got 'x'"]),
    (['--config.optimizer.learning_rate=fast'],
     ["config.optimizer.learning_rate must be a number, got 'fast'"]),
    (['--config.fast=maybe'], ["config.fast must be true or false, got 'maybe'"]),
    (['--config.sizes=(1,b)'], ['config.sizes must be tuple[int, ...], got']),
    (['--config.optimizer.learning_rate=-1'], ['learning_rate must be positive, got -1.0']),
    (['--config=adding_smal.py'], ["'adding_smal.py' does not exist", "mean 'adding_small.py'?"]),
    (['--config=adding_small.py:huge'], ["variant must be small or big, got 'huge'"]),
    (['--config=adding.py'], ["config file 'adding.py' has no get_config()"]),
    (['--config'], ['Missing value for flag --config']),
    (['--config='], ['Missing value for flag --config']),
    (['--config.seed'], ['Missing value for flag --config.seed']),
    (['--confg=3'], ['unknown flag --confg; did you mean --config?']),
    (['extra'], ["unexpected argument 'extra'"]),
    (['--workdir=adding.py'], ["--workdir: not a directory: 'adding.py'"]),
    (['--workdir=.'], ['. is not the directory of a run: it contains ', ' and no config.json']),
])
def test_bad_command_lines(binary, tmp_path, arguments, words):
  before = sorted(tmp_path.iterdir())
  _assert_one_line(binary(*arguments), *words)
  after = [path for path in sorted(tmp_path.iterdir()) if path.name != '__pycache__']
  assert after == before  # Nothing was written.


@pytest.mark.parametrize('content,words', [
    ('def get_config(:', ['cannot be loaded: SyntaxError']),
    ('import absent_module', ['cannot be loaded: ModuleNotFoundError', 'absent_module']),
    ('def get_config(): return {}', ['must return a dataclass', 'dict']),
    ('def get_config(): raise ValueError("no table")', ['no table']),
    ('def get_config(): return {}["x"]', ['cannot be called: KeyError']),
])
def test_bad_config_files(binary, tmp_path, content, words):
  (tmp_path / 'bad.py').write_text(content)
  _assert_one_line(binary('--config=bad.py'), 'bad.py', *words)


def test_a_variant_that_the_file_does_not_have(binary, tmp_path):
  (tmp_path / 'plain.py').write_text(CONFIG.replace("get_config(variant='small')", 'get_config()')
                                     .replace('if variant not in', 'if "small" not in'))
  assert binary('--config=plain.py').returncode == 0
  _assert_one_line(binary('--config=plain.py:x'), "'plain.py' has no variant 'x'")


@pytest.mark.parametrize('fail,words', [
    ('value', ['adding: error: beta1 must be positive, got -1 (config.beta1)\n']),
    ('missing', ['No such file or directory: absent/train.jsonl']),
    ('full', ['the disk is full; what was complete is kept: metrics.jsonl']),
])
def test_errors_of_the_program(binary, fail, words):
  _assert_one_line(binary(f'--config.fail={fail}'), *words)


def test_a_bug_is_not_hidden(binary):
  done = binary('--config.fail=bug')
  assert done.returncode == 1 and 'Traceback' in done.stderr and 'RuntimeError' in done.stderr


def test_debug_shows_the_traceback(binary):
  done = binary('--config.fail=value', '--debug')
  assert done.returncode == 2 and 'Traceback' in done.stderr


def test_a_workdir_without_output_can_be_reused(binary, tmp_path):
  _assert_one_line(binary('--config.fail=value'))
  assert not (tmp_path / 'runs/adding_small').exists()
  assert binary().returncode == 0


def test_a_workdir_with_output_is_preserved(binary, tmp_path):
  _assert_one_line(binary('--config.fail=late'), 'got nan at step 3')
  assert (tmp_path / 'runs/adding_small/metrics.jsonl').read_text() == '{}'
  _assert_one_line(binary(), "config.fail: 'late' there, '' given")


def test_a_complete_run_is_reported(binary, tmp_path):
  assert binary().returncode == 0
  done = binary()
  assert done.returncode == 0 and 'main' not in done.stdout
  assert done.stdout == (
      'This run is complete: runs/adding_small/results.json\n'
      'Its table, runs/adding_small/table.md:\n\n| a | table |\n\n')


@pytest.mark.parametrize('text, words', [
    ('', 'it is damaged (Expecting value'), ('[' * 100_000, 'it is damaged'),
    ('[]', 'not an object'), ('{}', 'it has no digest'),
    ({'experiment': 'adding', 'seed': 1}, 'its seed must be 0, got 1'),
    ({'experiment': 'other', 'seed': 0}, "its experiment must be 'adding', got 'other'"),
    ({'experiment': 'adding', 'seed': 0, 'sha256': 'a'}, 'does not match its digest')])
def test_damaged_results_are_refused(tmp_path, text, words):
  path = tmp_path / 'results.json'
  if isinstance(text, dict):
    text = json.dumps(launch.with_digest(text) | text)
  path.write_text(text)
  with pytest.raises(launch.UsageError) as error:
    launch.read_results(path, experiment='adding', seed=0)
  assert words in str(error.value) and '\n' not in str(error.value)
  assert 'delete it and run the command again' in str(error.value)


def test_an_edited_config_file_is_read_again_although_its_time_and_size_are_the_same(
    tmp_path, monkeypatch):
  monkeypatch.setattr(sys, 'dont_write_bytecode', False)
  path = tmp_path / 'config.py'
  for number in (1, 2):
    path.write_text(f'def get_config():\n  return {number}\n')
    os.utime(path, (1_000, 1_000))
    assert command_line.load_module(str(path)).get_config() == number
  assert [file.name for file in tmp_path.iterdir()] == ['config.py']


def test_the_digest_of_a_config_leaves_out_the_seed_and_paths():
  @dataclasses.dataclass
  class Config:
    seed: int = 0
    steps: int = 3
    policy_init_from: str = ''
    data_dir: str = ''

  digest = launch.config_digest(Config())
  assert digest == launch.config_digest(Config(seed=1, policy_init_from='a', data_dir='b'))
  assert digest != launch.config_digest(Config(steps=4))


def test_a_damaged_complete_run_is_refused(binary, tmp_path):
  assert binary().returncode == 0
  (tmp_path / 'runs/adding_small/results.json').write_text('{}')
  _assert_one_line(binary(), 'runs/adding_small/results.json cannot be used: it has no digest')


def test_workdir_of_another_config_is_refused_with_the_fields_that_differ(binary):
  assert binary('--workdir=w').returncode == 0
  done = binary('--workdir=w', '--config.seed=2', '--config.optimizer.warmup=7')
  _assert_one_line(done, 'w/config.json is of another config (config.seed: 0 there, 2 given; '
                   'config.optimizer.warmup: 0 there, 7 given)')


def test_data_may_have_moved(binary):
  assert binary('--workdir=w').returncode == 0
  assert 'complete' in binary('--workdir=w', '--config.data_dir=/elsewhere').stdout


def test_workdir_of_another_version_of_the_config(binary, tmp_path):
  assert binary('--workdir=w').returncode == 0
  path = tmp_path / 'adding_small.py'
  path.write_text(CONFIG.replace('  warmup: int = 0', '  rise: int = 3'))
  _assert_one_line(binary('--workdir=w'), "config.optimizer.warmup: 0 there, '(absent)' given",
                   "config.optimizer.rise: '(absent)' there, 3 given")


def test_workdir_of_another_program(binary, tmp_path):
  (tmp_path / 'other.py').write_text(BINARY)
  subprocess.run([sys.executable, 'other.py', '--workdir=w'], cwd=tmp_path, check=True,
                 env=os.environ | {'PYTHONPATH': str(REPOSITORY)}, stdout=subprocess.PIPE)
  _assert_one_line(binary('--workdir=w'), "experiment: 'other' there, 'adding' given")


def test_broken_config_json(binary, tmp_path):
  assert binary('--workdir=w').returncode == 0
  (tmp_path / 'w/config.json').write_text('{"config": ')
  _assert_one_line(binary('--workdir=w'), 'w/config.json is not a config of a run',
                   'give another --workdir')


def test_two_processes_in_one_workdir(binary):
  first = binary('--config.fail=wait', process=subprocess.Popen)
  try:
    assert first.stdout.readline().startswith('main')
    _assert_one_line(binary('--config.fail=wait'),
                     'another process is running in runs/adding_small')
    assert binary('--config.seed=1').returncode == 0
  finally:
    first.send_signal(signal.SIGINT)
    _, error = first.communicate()
  assert first.returncode == 130
  assert error == 'adding: interrupted; run the same command again to resume\n'

  # The lock was released with the process.
  done = binary('--config.fail=wait', process=subprocess.Popen)
  assert done.stdout.readline().startswith('main')

  done.kill()
  done.communicate()


def test_help_shows_the_fields(binary):
  done = binary('--help')
  assert done.returncode == 0 and done.stderr == ''
  for text in ('Adds numbers.', '--config.optimizer.learning_rate=0.001', '--workdir',
               'usage: python -m experiments.adding'):
    assert text in done.stdout


def test_a_config_of_another_program_is_refused(binary, tmp_path):
  other = CONFIG.replace('class Config', 'class Product').replace('Config()', 'Product()')
  (tmp_path / 'multiplying.py').write_text(other)
  _assert_one_line(
      binary('--config=multiplying.py'), 'multiplying.py is a config of another program: it makes '
      'Product, and this one takes Config (--config)')


@pytest.mark.parametrize('text, words', [
    ('import sys\nsys.exit(0)', 'cannot be loaded: SystemExit: 0'),
    ('import sys\ndef get_config():\n  sys.exit(0)', 'cannot be called: SystemExit: 0'),
    ('raise GeneratorExit("over")', 'cannot be loaded: GeneratorExit: over'),
    ('def get_config():\n  raise BaseExceptionGroup("two", [KeyboardInterrupt()])',
     'cannot be called: BaseExceptionGroup: two'),
    ('def get_config():\n  return get_config()', 'cannot be called: RecursionError: '),
    ('def get_config():\n  raise RuntimeError("a bug")', 'cannot be called: RuntimeError: a bug'),
    ('import no_such_module', 'cannot be loaded: ModuleNotFoundError: '),
    ('get_config = 3', 'cannot be called: TypeError'),
])
def test_a_config_file_that_cannot_be_used_is_one_line(binary, tmp_path, text, words):
  (tmp_path / 'odd.py').write_text(text)
  _assert_one_line(binary('--config=odd.py'), words)


def test_an_absent_file_of_flags_is_one_line(binary):
  _assert_one_line(binary('--flagfile=/no/such/file'), '/no/such/file')


def test_what_cannot_fit_is_refused_before_the_program_starts(binary):
  done = binary('--config.sizes=(1,1000000000000000000)')
  _assert_one_line(done, 'the largest contributor, sizes (config.sizes), needs at least 888 PiB, '
                   'and this machine has ')
  assert 'main' not in done.stdout


def test_a_number_that_is_too_large_for_an_array_is_one_line(binary):
  _assert_one_line(binary('--config.fail=overflow'), '1000 is out of bounds for int8')


def test_output_that_nobody_reads_ends_a_program_quietly(binary):
  process = binary('--config.fail=pipe', process=subprocess.Popen)
  process.stdout.close()
  process.stdout = None
  _, error = process.communicate(timeout=60)
  assert (process.returncode, error) == (128 + signal.SIGPIPE, '')


def test_memory_that_runs_out_names_the_function_and_the_bytes(binary):
  _assert_one_line(binary('--config.fail=memory'), 'out of memory in adding.main '
                   '(4000000000000 bytes were asked for)')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_program_as_ctrl_c_does(binary, number):
  process = binary('--config.fail=wait', process=subprocess.Popen)
  assert process.stdout.readline().startswith('main')
  process.send_signal(number)
  _, error = process.communicate(timeout=60)
  assert process.returncode == 130
  assert error == 'adding: interrupted; run the same command again to resume\n'


def test_ctrl_c_while_a_program_imports_ends_it_without_a_traceback(tmp_path):
  (tmp_path / 'absl.py').write_text(
      'import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n')
  done = subprocess.run(
      [sys.executable, '-m', 'experiments.arena'], cwd=REPOSITORY, timeout=50,
      env=os.environ | {'PYTHONPATH': str(tmp_path)}, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (-signal.SIGINT, '')


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_a_signal_during_a_callback_is_not_lost(binary, name):
  done = binary(f'--config.fail={name}')
  assert done.returncode == 130
  assert done.stderr == 'adding: interrupted; run the same command again to resume\n'


def test_a_signal_whose_exception_was_caught_stops_the_run_where_it_can_save(binary):
  done = binary('--config.fail=caught')
  assert done.returncode == 130
  assert done.stderr == 'stopped after step 1; run the same command again to resume\n'


@pytest.mark.parametrize('text, words', [
    ('[' * 100_000, 'is not a config of a run'), ('[]', 'is not a config of a run'),
    ('{"config": {}}', 'is not a config of a run'), ('', 'is not a config of a run'),
])
def test_a_damaged_config_of_a_workdir_is_one_line(binary, tmp_path, text, words):
  assert binary('--workdir=run').returncode == 0
  (tmp_path / 'run' / 'config.json').write_text(text)
  _assert_one_line(binary('--workdir=run'), 'run/config.json', words, 'give another --workdir')


def test_a_changed_config_of_a_workdir_is_named(binary, tmp_path):
  assert binary('--workdir=run').returncode == 0
  path = tmp_path / 'run' / 'config.json'
  content = json.loads(path.read_text())
  content['config']['optimizer']['warmup'] += 1
  path.write_text(json.dumps(content))
  _assert_one_line(binary('--workdir=run'), 'run/config.json was changed since it was written')
