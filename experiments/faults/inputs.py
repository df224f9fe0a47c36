"""Generated inputs of the targets that need some: tiny checkpoints, conversations, preferences."""

import json
import pathlib
import random
import shutil

import jax
import numpy as np

from jaxrl_llm.models import configs, policy, value
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.training import metrics

_STOP, _START = '<end>', '<start>'
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write(folder: pathlib.Path) -> None:
  """Writes checkpoints, conversations, preferences and problems, unless they are complete."""
  if (folder / 'pairs.json').exists():  # Written last.
    return
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  _write_checkpoints(folder)

  talks = [{'messages': _conversation(i, 1 + i % 3)} for i in range(18)]
  (folder / 'talks.json').write_text(json.dumps(talks))

  rng = random.Random(0)
  word = lambda: ''.join(rng.choice('Say0123Why') for _ in range(rng.randint(2, 8)))
  message = lambda sender: {'from': sender, 'value': word()}
  pairs = [
      {'conversations': [message('human')], 'chosen': message('gpt'), 'rejected': message('gpt')}
      for _ in range(40)]
  sums = [{'id': i, 'prompt': f'{i} + 1 =', 'answer': str(i + 1)} for i in range(8)]
  (folder / 'sums.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in sums))
  metrics.write_json_atomic(folder / 'pairs.json', pairs)


def _conversation(number: int, turns: int) -> list[dict[str, str]]:
  asked = [f'Say {number}.', f'More {number}?', f'Why {number}?'][:turns]
  return [
      {'role': role, 'content': text} for question in asked
      for role, text in (('user', question), ('assistant', f'R{number}'))]


def _write_checkpoints(folder: pathlib.Path) -> None:
  """A policy and a reward model of random numbers, with a tokenizer of bytes."""
  scratch = folder / 'tokenizer'
  config = configs.TransformerConfig(
      vocab_size=_write_tokenizer(scratch), num_layers=1, width=16, num_heads=2, num_kv_heads=1,
      head_dim=8, mlp_width=16, max_length=160, attention_bias=True, tie_embeddings=False)

  for name, seed, make in (('policy', 0, policy.make), ('reward', 1, value.make)):
    rng = np.random.default_rng(seed)
    abstract = jax.eval_shape(make(config).init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf, rng=rng: rng.normal(scale=0.5, size=leaf.shape).astype(leaf.dtype), abstract)
    if name == 'reward':
      params['value_head']['bias'] *= 0  # A sequence classifier of Hugging Face has none.
    role = 'value' if name == 'reward' else 'policy'
    huggingface.save(
        folder / name, config, params, model_type='qwen2', role=role, tokenizer_from=scratch)


def _write_tokenizer(folder: pathlib.Path) -> int:
  """Writes a tokenizer with one token per byte and a chat template; returns its size."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {token: index for index, token in enumerate([_STOP, _START, *alphabet])}
  tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.add_special_tokens([_STOP, _START])

  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps(
      {'eos_token': _STOP, 'bos_token': _START, 'chat_template': _TEMPLATE}))
  return len(vocabulary)
