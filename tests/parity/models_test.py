"""Our decoders against transformers, live: on fresh weights and tokens, and after saving.

The cases are those of tests/golden/model_cases.py. The seed of the weights is
JAXRL_LLM_PARITY_SEED, by default the date; the names of the tests contain it.
"""

import datetime
import json
import os

import jax
import numpy as np
import pytest

from jaxrl_llm.models.pretrained import huggingface
from tests.golden import draws, jax_models, model_cases, torch_models

SEED = int(os.environ.get('JAXRL_LLM_PARITY_SEED', datetime.date.today().strftime('%Y%m%d')))
TOLERANCE = 1e-4
RECORDS = {name: jax_models.reseeded(record, SEED)
           for name, record in jax_models.records().items()}
CONTROLS = [(record, control) for record in RECORDS.values() for control in record['controls']
            if control.get('fields')]

each_case = pytest.mark.parametrize(
    'record', RECORDS.values(), ids=[f'{name}-seed{SEED}' for name in RECORDS])


def _write(directory, record, **fields):
  return draws.write_checkpoint(
      directory, {**record['fields'], **fields}, jax_models.weights(record))


def _gap(record, one, other, mask):
  """The largest difference at a real token."""
  real = slice(None) if record['classifier'] else mask
  return float(np.max(np.abs(one[real] - other[real])))


@each_case
def test_logits(record, tmp_path):
  directory = _write(tmp_path, record)
  theirs = torch_models.load(directory)
  ours = jax_models.Model(*jax_models.load(directory))
  for left in (True, False):
    batch = jax_models.batch(record, left=left)
    expected = torch_models.logits(theirs, *batch)
    assert _gap(record, ours.logits(*batch), expected, batch[1]) <= TOLERANCE
    if left and not record['classifier']:
      prefill = model_cases.WIDTH - model_cases.DECODED
      for scan_unroll in (0, 1):  # The cache is a tuple of layers, or a stack.
        model = jax_models.Model(*jax_models.load(directory), scan_unroll=scan_unroll)
        decoded = model.decoded_logits(*batch, prefill=prefill)
        assert _gap(record, decoded, expected, batch[1]) <= TOLERANCE
        their_decoded = torch_models.decoded_logits(theirs, *batch)
        assert _gap(record, decoded, their_decoded, batch[1]) <= TOLERANCE


@pytest.mark.parametrize(
    'record, control', CONTROLS,
    ids=[f'{record["name"]}-{control["name"]}-seed{SEED}' for record, control in CONTROLS])
def test_logits_with_an_option_switched_off(record, control, tmp_path):
  directory = draws.write_checkpoint(
      tmp_path, {**record['fields'], **control['fields']},
      jax_models.control_weights(record, control))
  batch = jax_models.batch(record, left=False)
  expected = torch_models.logits(torch_models.load(directory), *batch)
  logits = jax_models.Model(*jax_models.load(directory), scan_unroll=1).logits(*batch)
  assert _gap(record, logits, expected, batch[1]) <= TOLERANCE


@each_case
@pytest.mark.parametrize('with_fields', [True, False])
def test_transformers_loads_what_we_save(record, with_fields, tmp_path):
  checkpoint, params = jax_models.load(_write(tmp_path / 'theirs', record))
  if record['classifier'] and not with_fields:
    pytest.skip('transformers needs the pad id of the fields to find the last token')
  huggingface.save(
      tmp_path / 'ours', checkpoint.config, params, model_type=checkpoint.model_type,
      role=checkpoint.role, fields=checkpoint.fields if with_fields else None)
  kind = 'SequenceClassification' if record['classifier'] else 'CausalLM'
  batch = jax_models.batch(record, left=False)
  expected = torch_models.logits(torch_models.load(tmp_path / 'theirs'), *batch)
  # By the class in config.json and by the automatic one; `load` fails if tensors are missing or
  # unknown.
  for architecture in (None, f'AutoModelFor{kind}'):
    model = torch_models.load(tmp_path / 'ours', architecture)
    assert type(model).__name__ == record['fields']['architectures'][0]
    assert _gap(record, torch_models.logits(model, *batch), expected, batch[1]) <= 1e-6


@each_case
def test_a_checkpoint_of_transformers_gives_the_same_parameters(record, tmp_path):
  theirs = torch_models.load(_write(tmp_path / 'ours', record))
  theirs.save_pretrained(tmp_path / 'theirs')
  one, other = (jax_models.load(tmp_path / name) for name in ('ours', 'theirs'))
  assert one[0].config == other[0].config
  jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


# --- Every field of config.json.

FIRST = {record['fields']['model_type']: record for record in reversed(RECORDS.values())
         if not record['classifier']}


def _other(value):
  """Another value of the same type; None if there is no obvious one."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, (int, float)):
    return value + 1 if isinstance(value, int) else 1.5 * value + 0.1
  return None


def _reads(directory, fields):
  """Our config, or None if the fields are rejected."""
  (directory / 'config.json').write_text(json.dumps(fields))
  try:
    return huggingface.read_config(directory).config
  except ValueError:
    return None


@pytest.mark.parametrize('model_type', FIRST)
def test_fields_treated_as_inert_are_inert(model_type, tmp_path):
  record = FIRST[model_type]
  batch = jax_models.batch(record, left=False)
  _write(tmp_path, record)
  config = torch_models.transformers.AutoConfig.from_pretrained(tmp_path)
  fields = json.loads(json.dumps({**config.to_dict(), **record['saved']}))
  meaning = _reads(tmp_path, fields)
  assert meaning is not None
  expected = torch_models.logits(torch_models.load(tmp_path), *batch)

  inert, offences = [], []
  for field, value in fields.items():
    other = None if field == 'return_dict' else _other(value)  # How a call returns its results.
    if other is not None and _reads(tmp_path, {**fields, field: other}) == meaning:
      inert.append(field)
      try:
        logits = torch_models.logits(torch_models.load(tmp_path), *batch)
      except Exception as error:
        offences.append((field, other, error))
        continue
      # This field changes the rounding of attention.
      bound = 1e-4 if field == 'reorder_and_upcast_attn' else 1e-6
      if _gap(record, logits, expected, batch[1]) > bound:
        offences.append((field, other))

  assert 'initializer_range' in inert
  assert not offences


@pytest.mark.parametrize('model_type', FIRST)
def test_a_default_config_of_transformers_is_read(model_type, tmp_path):
  sizes = {key: value for key, value in FIRST[model_type]['fields'].items()
           if key in model_cases.SIZES}
  torch_models.transformers.AutoConfig.for_model(model_type, **sizes).save_pretrained(tmp_path)
  config = huggingface.read_config(tmp_path).config
  assert config.num_layers == FIRST[model_type]['fields'].get('num_hidden_layers', 2)
