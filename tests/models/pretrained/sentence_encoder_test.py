"""Directories of sentence-transformers: reading and writing the pooling."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxrl_llm.models import encoder
from jaxrl_llm.models.pretrained import huggingface, sentence_encoder
from tests.golden import draws, jax_models

RECORD = jax_models.records(encoders=True)['mxbai']
MODES = ('cls_token', 'mean_tokens', 'max_tokens', 'mean_sqrt_len_tokens', 'lasttoken')


def _pooling(*modes, **more):
  """A 1_Pooling/config.json."""
  switches = {f'pooling_mode_{mode}': mode in modes for mode in MODES}
  return {'word_embedding_dimension': 48, **switches, 'include_prompt': True, **more}


def _write(directory, pooling, *kinds, weights_in='', weights=None):
  """A directory as written by sentence-transformers."""
  draws.write_checkpoint(
      directory / weights_in, RECORD['fields'],
      jax_models.weights(RECORD) if weights is None else weights)
  folders = {'Transformer': weights_in, 'Pooling': '1_Pooling', 'Normalize': '2_Normalize'}
  modules = [
      {'idx': i, 'name': str(i), 'path': folders.get(kind, kind),
       'type': f'sentence_transformers.models.{kind}'}
      for i, kind in enumerate(('Transformer', 'Pooling', *kinds))]
  (directory / 'modules.json').write_text(json.dumps(modules))
  (directory / '1_Pooling').mkdir()
  (directory / '1_Pooling' / 'config.json').write_text(json.dumps(pooling))
  return directory


@pytest.mark.parametrize('pooling, kinds, expected', [
    (_pooling('cls_token'), (), {'pooling': 'cls'}),
    (_pooling('mean_tokens'), (), {'pooling': 'mean'}),
    (_pooling('mean_tokens'), ('Normalize',), {'pooling': 'mean', 'normalize': True}),
    ({'word_embedding_dimension': 48, 'pooling_mode': 'cls'}, (), {'pooling': 'cls'}),
    ({'embedding_dimension': 48, 'pooling_mode': 'mean'}, (), {'pooling': 'mean'}),
    ({'pooling_mode': 'mean'}, (), {'pooling': 'mean'}),
])
@pytest.mark.parametrize('weights_in', ['', '0_Transformer'])
def test_pooling_is_read(pooling, kinds, expected, weights_in, tmp_path):
  directory = _write(tmp_path, pooling, *kinds, weights_in=weights_in, weights={})
  checkpoint = sentence_encoder.read_config(directory)
  plain = huggingface.read_config(tmp_path / weights_in).config
  assert checkpoint.config == dataclasses.replace(plain, **{'normalize': False, **expected})


def test_a_plain_checkpoint_is_pooled_by_the_mean(tmp_path):
  draws.write_checkpoint(tmp_path, RECORD['fields'], {})
  assert sentence_encoder.read_config(tmp_path).config.pooling == 'mean'


def test_vectors_equal_those_of_transformers_before_and_after_saving(tmp_path):
  tokens, mask, _ = jax_models.batch(RECORD, left=False)
  theirs = RECORD['arrays']['mean']
  theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
  directory = _write(tmp_path / 'theirs', _pooling('mean_tokens'), 'Normalize')
  for _ in range(2):
    checkpoint = sentence_encoder.read_config(directory)
    fns = encoder.make(checkpoint.config)
    params = huggingface.load_params(checkpoint, jax.eval_shape(fns.init, jax_models.KEY))
    vectors = jax_models.compiled(fns.embed)(params, tokens, mask)
    assert np.max(np.abs(vectors - theirs)) <= 1e-4
    directory = tmp_path / 'ours'
    if not directory.exists():
      sentence_encoder.save(directory, checkpoint.config, params, fields=checkpoint.fields)

  assert sorted(path.relative_to(directory).as_posix() for path in directory.rglob('*')) == [
      '1_Pooling', '1_Pooling/config.json', '2_Normalize', 'config.json', 'model.safetensors',
      'modules.json']


def test_a_directory_in_use_is_not_changed(tmp_path):
  directory = _write(tmp_path, _pooling('cls_token'))
  checkpoint = sentence_encoder.read_config(directory)
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  with pytest.raises(ValueError, match='new or empty directory'):
    sentence_encoder.save(tmp_path, checkpoint.config, {})
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_a_save_that_fails_leaves_no_files(tmp_path):
  directory = _write(tmp_path / 'theirs', _pooling('cls_token'))
  checkpoint = sentence_encoder.read_config(directory)
  with pytest.raises(ValueError, match='parameter unknown is not part of'):
    sentence_encoder.save(tmp_path / 'ours', checkpoint.config, {'unknown': np.zeros(2)})
  assert [path.name for path in tmp_path.iterdir()] == ['theirs']


@pytest.mark.parametrize('pooling, kinds, message', [
    (_pooling('max_tokens'), (), 'pooling must be one of cls, mean, got max_tokens'),
    (_pooling('cls_token', 'mean_tokens'), (), 'cls, mean, got cls and mean'),
    (_pooling(), (), 'cls, mean, got none'),
    (_pooling('cls_token', word_embedding_dimension=64), (),
     r'1_Pooling/config\.json: word_embedding_dimension must be hidden_size \(48\), got 64'),
    (_pooling('cls_token', embedding_dimension=64), (),
     'embedding_dimension must be 48, got 64: word_embedding_dimension is 48'),
    (_pooling('cls_token', include_prompt=False), (), 'include_prompt must be True, got False'),
    (_pooling('cls_token', other=1), (), r"unknown field 'other' \(1\)"),
    (_pooling('cls_token', pooling_mode_cls_token='yes'), (), 'must be of type bool'),
    ([], (), r'1_Pooling/config\.json must contain a JSON dict, got a list'),
    (_pooling('cls_token'), ('Dense',), 'modules.json must list .*got Transformer, Pooling, Dense'),
])
def test_unsupported_features_are_named(pooling, kinds, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    sentence_encoder.read_config(_write(tmp_path, pooling, *kinds, weights={}))


@pytest.mark.parametrize('name, content, message', [
    ('1_Pooling/config.json', None, r'1_Pooling/config\.json is missing'),
    ('1_Pooling/config.json', '{', r'1_Pooling/config\.json is damaged'),
    ('modules.json', '{}', r'modules\.json must contain a JSON list, got a dict'),
    ('modules.json', '[1]', r'modules\.json must list modules with a type and a path each'),
    ('modules.json', '[]', 'got nothing'),
])
def test_a_damaged_file_is_named(name, content, message, tmp_path):
  directory = _write(tmp_path, _pooling('cls_token'), weights={})
  (directory / name).unlink()
  if content is not None:
    (directory / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    sentence_encoder.read_config(directory)


def test_a_decoder_is_not_an_encoder(tmp_path):
  record = jax_models.records()['gpt2']
  draws.write_checkpoint(tmp_path, record['fields'], {})
  with pytest.raises(ValueError, match="an encoder must be of model_type bert, got 'gpt2'"):
    sentence_encoder.read_config(tmp_path)
