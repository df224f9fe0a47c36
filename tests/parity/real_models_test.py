"""The two fetched models against transformers, live and in float32."""

import numpy as np
import transformers

from jaxrl_llm.data import chat_templates, tokenizers
from tests.golden import real_cases, real_models, torch_models


def test_logits_of_smollm2(model_dir):
  directory = model_dir('smollm2-135m-instruct')
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  texts = [*real_cases.PROMPTS, real_cases.TEXT]
  rows = [tokenizer(text, add_special_tokens=False)['input_ids'] for text in texts]
  ours = np.asarray(real_models.logits(real_models.load_policy(directory), rows))

  tokens, mask = real_cases.right_pad(rows, real_cases.WIDTH, 2)
  positions = np.broadcast_to(np.arange(real_cases.WIDTH), tokens.shape)
  theirs = torch_models.logits(torch_models.load(directory), tokens, mask, positions)
  assert np.max(np.abs(ours - theirs)[mask]) <= 1e-3


def test_all_greedy_continuations(model_dir):
  goldens = real_cases.load()['conversations']
  loaded = real_models.load_policy(model_dir('smollm2-135m-instruct'))
  rollouts = real_models.greedy(loaded, [golden['prompt_ids'] for golden in goldens])
  for row, golden in enumerate(goldens):
    length = int(rollouts.lengths[row, 0])
    assert rollouts.tokens[row, 0, :length].tolist() == golden['greedy']


def test_embeddings_of_minilm(model_dir):
  directory = model_dir('all-minilm-l6-v2')
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  rows = [tokenizer(text)['input_ids'] for text in real_cases.SENTENCES]
  ours = real_models.embeddings(directory, rows)
  theirs = torch_models.mean_embeddings(torch_models.load(directory), rows)
  assert np.max(np.abs(ours - theirs)) <= 1e-4


def test_chat_template_of_smollm2(model_dir):
  directory = model_dir('smollm2-135m-instruct')
  theirs = transformers.AutoTokenizer.from_pretrained(directory)
  ours, template = tokenizers.load_tokenizer(directory), chat_templates.load(directory)
  for prompt in (False, True):
    texts = template.render_many(real_cases.CONVERSATIONS, add_generation_prompt=prompt)
    for text, messages in zip(texts, real_cases.CONVERSATIONS):
      expected = theirs.apply_chat_template(messages, add_generation_prompt=prompt)
      assert ours.encode(text) == expected.input_ids
  assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.stop_ids[0], ours.pad_id)
