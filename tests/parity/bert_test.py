"""Our encoders against transformers, live: on fresh weights and tokens, and after saving."""

import datetime
import os

import numpy as np
import pytest

from jaxrl_llm.models import encoder
from jaxrl_llm.models.pretrained import sentence_encoder
from tests.golden import draws, jax_models, torch_models

SEED = int(os.environ.get('JAXRL_LLM_PARITY_SEED', datetime.date.today().strftime('%Y%m%d')))
RECORDS = {name: jax_models.reseeded(record, SEED)
           for name, record in jax_models.records(encoders=True).items()}


@pytest.mark.parametrize('name', RECORDS)
def test_hidden_states(name, tmp_path):
  record = RECORDS[name]
  draws.write_checkpoint(tmp_path, record['fields'], jax_models.weights(record))
  checkpoint, params = jax_models.load_encoder(tmp_path)
  tokens, mask, _ = jax_models.batch(record, left=False)
  expected = torch_models.hidden_states(torch_models.load(tmp_path), tokens, mask)
  hidden = np.asarray(encoder.make(checkpoint.config).hidden(params, tokens, mask))
  assert np.max(np.abs(hidden - expected)[mask]) <= 1e-4, SEED


@pytest.mark.parametrize('name', RECORDS)
def test_transformers_loads_what_we_save(name, tmp_path):
  record = RECORDS[name]
  theirs = draws.write_checkpoint(
      tmp_path / 'theirs', record['fields'], jax_models.weights(record))
  checkpoint, params = jax_models.load_encoder(theirs)
  sentence_encoder.save(
      tmp_path / 'ours', checkpoint.config, params, fields=checkpoint.fields)
  # We save no pooler, so that transformers draws a new one.
  model = torch_models.load(tmp_path / 'ours', 'AutoModel', missing=r'pooler\..*')
  assert type(model).__name__ == 'BertModel'
  tokens, mask, _ = jax_models.batch(record, left=False)
  expected = torch_models.hidden_states(torch_models.load(theirs), tokens, mask)
  hidden = torch_models.hidden_states(model, tokens, mask)
  assert np.max(np.abs(hidden - expected)[mask]) <= 1e-6, SEED
