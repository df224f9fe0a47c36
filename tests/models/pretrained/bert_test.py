"""Encoders against transformers' hidden states, stored in tests/golden/models/bert.*."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxrl_llm.models import encoder
from jaxrl_llm.models.pretrained import bert, huggingface
from tests.golden import draws, jax_models, model_cases

TOLERANCE = 1e-4
RECORDS = jax_models.records(encoders=True)
each_case = pytest.mark.parametrize('record', RECORDS.values(), ids=list(RECORDS))


def _gap(one, other):
  return float(np.max(np.abs(one - other)))


def _write(directory, record, weights=None, **fields):
  weights = jax_models.weights(record) if weights is None else weights
  return draws.write_checkpoint(directory, {**record['fields'], **fields}, weights)


def _check_control(record, control, hidden, mask):
  at = lambda indices: draws.at_tokens(np.asarray(hidden), mask, indices)
  theirs = record['arrays'][control['name']]
  assert _gap(at(model_cases.CONTROL_INDICES), theirs) <= TOLERANCE
  assert _gap(at(model_cases.STORED_INDICES), record['arrays']['']) >= control['least']


def test_the_golden_files_are_those_of_the_cases():
  assert {case.name: case.fields for case in model_cases.ENCODERS} == {
      name: record['fields'] for name, record in RECORDS.items()}
  for case in model_cases.ENCODERS:
    names = [control['name'] for control in RECORDS[case.name]['controls']]
    assert names == ['padding', *(control.name for control in case.controls)]


@each_case
def test_hidden_states_and_both_poolings(record, tmp_path):
  checkpoint, params = jax_models.load_encoder(_write(tmp_path, record))
  hidden = jax_models.compiled(encoder.make(checkpoint.config).hidden)
  for left in (False, True):  # The goldens are right-padded; our result does not depend on it.
    tokens, mask, _ = jax_models.batch(record, left=left)
    states = hidden(params, tokens, mask)
    stored = draws.at_tokens(np.asarray(states), mask, model_cases.STORED_INDICES)
    assert _gap(stored, record['arrays']['']) <= TOLERANCE

    pooled = {pooling: encoder.pool(
        dataclasses.replace(checkpoint.config, pooling=pooling), states, mask)
              for pooling in encoder.POOLINGS}
    for pooling, vectors in pooled.items():
      assert _gap(vectors, record['arrays'][pooling]) <= TOLERANCE
    assert _gap(pooled['cls'], pooled['mean']) > 1e-2

  tokens, mask, _ = jax_models.batch(record, left=False)
  for control in record['controls']:
    if control['name'] == 'padding':
      _check_control(record, control, hidden(params, tokens, np.ones_like(mask)), mask)
    elif control['edit']:
      directory = _write(
          tmp_path / control['name'], record, jax_models.control_weights(record, control))
      _check_control(record, control, hidden(jax_models.load_encoder(directory)[1], tokens, mask),
                     mask)


OF_CONFIG = {f'{record["name"]}-{control["name"]}': (record, control)
             for record in RECORDS.values() for control in record['controls']
             if control.get('fields')}


@pytest.mark.parametrize('record, control', OF_CONFIG.values(), ids=list(OF_CONFIG))
def test_hidden_states_with_an_option_switched_off(record, control, tmp_path):
  config = bert.read_config(record['fields'])
  checkpoint, params = jax_models.load_encoder(_write(tmp_path, record, **control['fields']))
  assert checkpoint.config == dataclasses.replace(config, **control['ours']) != config
  tokens, mask, _ = jax_models.batch(record, left=False)
  hidden = jax_models.compiled(encoder.make(checkpoint.config).hidden)(params, tokens, mask)
  _check_control(record, control, hidden, mask)


@each_case
def test_load_save_load_is_exact(record, tmp_path):
  checkpoint, params = jax_models.load_encoder(_write(tmp_path / 'theirs', record))
  huggingface.save(tmp_path / 'ours', checkpoint.config, params, model_type='bert', role='trunk',
                   fields=checkpoint.fields)
  theirs = {name.removeprefix('bert.'): numbers
            for name, numbers in jax_models.file_bytes(tmp_path / 'theirs').items()
            if not name.startswith(('cls.', 'pooler.'))}
  assert jax_models.file_bytes(tmp_path / 'ours') == theirs
  again, params_again = jax_models.load_encoder(tmp_path / 'ours')
  assert (again.config, again.architecture) == (checkpoint.config, 'BertModel')
  jax.tree.map(np.testing.assert_array_equal, params_again, params)


@each_case
def test_both_spellings_of_config_json_give_the_same_config(record):
  assert bert.read_config(record['fields']) == bert.read_config(record['saved'])


def test_an_old_language_model_gives_the_same_encoder(tmp_path):
  record = RECORDS['mxbai']
  weights = {f'bert.{name}': value for name, value in jax_models.weights(record).items()}
  weights |= {
      'bert.embeddings.position_ids': np.arange(32)[None],
      'cls.predictions.bias': np.zeros(67, np.float32),
      'cls.seq_relationship.weight': np.zeros((2, 48), np.float32),
      'qa_outputs.weight': np.zeros((2, 48), np.float32),
  }
  expected = jax_models.load_encoder(_write(tmp_path / 'new', record))[1]
  directory = _write(tmp_path / 'old', record, weights, architectures=['BertForPreTraining'])
  jax.tree.map(np.testing.assert_array_equal, jax_models.load_encoder(directory)[1], expected)


def test_the_old_names_of_norms_give_the_same_encoder(tmp_path):
  record = RECORDS['bert_language_model']
  rename = lambda name: name.replace('Norm.weight', 'Norm.gamma').replace('Norm.bias', 'Norm.beta')
  weights = {rename(name): value for name, value in jax_models.weights(record).items()}
  assert 'bert.encoder.layer.1.output.LayerNorm.gamma' in weights
  expected = jax_models.load_encoder(_write(tmp_path / 'new', record))[1]
  params = jax_models.load_encoder(_write(tmp_path / 'old', record, weights))[1]
  jax.tree.map(np.testing.assert_array_equal, params, expected)
  del weights['bert.encoder.layer.1.output.LayerNorm.beta']
  with pytest.raises(ValueError, match=r'tensor bert\..*1\.output\.LayerNorm\.beta is missing'):
    jax_models.load_encoder(_write(tmp_path / 'old', record, weights))


@pytest.mark.parametrize('fields, message', [
    ({'position_embedding_type': 'relative_key'},
     "position_embedding_type must be 'absolute', got 'relative_key'"),
    ({'is_decoder': True}, 'is_decoder must be False, got True'),
    ({'add_cross_attention': True}, 'add_cross_attention must be False, got True'),
    ({'hidden_act': 'silu'}, "hidden_act must be one of .*, got 'silu'"),
    ({'embedding_size': 128}, r"unknown field 'embedding_size' \(128\)"),
    ({'num_attention_heads': 5}, r'width must be divisible by num_heads \(5\), got 48'),
    ({'hidden_size': None}, "no field 'hidden_size'"),
])
def test_a_field_that_is_not_supported_is_named(fields, message, tmp_path):
  directory = _write(tmp_path, RECORDS['mxbai'], **fields)
  with pytest.raises(ValueError, match=message):
    huggingface.read_config(directory)


def test_a_tensor_that_is_missing_is_named(tmp_path):
  weights = jax_models.weights(RECORDS['mxbai'])
  del weights['encoder.layer.1.output.LayerNorm.bias']
  with pytest.raises(ValueError, match=r'tensor encoder\.layer\.1\.output\.LayerNorm\.bias is'):
    jax_models.load_encoder(_write(tmp_path, RECORDS['mxbai'], weights))
