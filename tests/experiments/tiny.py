"""Small checkpoints with a tokenizer, and binaries run inside the test's own process."""

import functools
import json
import pathlib

import jax
import numpy as np

from jaxrl_llm.data import tokenizers
from jaxrl_llm.models import configs, policy
from jaxrl_llm.models.pretrained import huggingface
from jaxrl_llm.runs import checkpoint_sources, command_line, launch
from jaxrl_llm.training import checkpoints

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STOP, START = '<end>', '<start>'
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_tokenizer(
    directory, *, template=None, characters=None, start=False, more=(), merges=()):
  """Every byte, or only `characters`, is a token; a stop token, and a start token if asked.

  `more` are further special tokens, `merges` pairs of tokens that become one.
  """
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

  alphabet = characters or sorted(pre_tokenizers.ByteLevel.alphabet())
  names = [STOP, START, *more] if start or template else [STOP, *more]
  merged = [''.join(pair) for pair in merges]
  vocabulary = {token: index for index, token in enumerate([*names, *alphabet, *merged])}
  backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(names)
  if start:
    backend.post_processor = processors.TemplateProcessing(
        single=f'{START} $A', special_tokens=[(START, vocabulary[START])])
  pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
  backend.save(str(directory / 'tokenizer.json'))
  settings = {'eos_token': STOP, 'bos_token': START} if START in names else {'eos_token': STOP}
  settings |= {'chat_template': template} if template else {}
  (directory / 'tokenizer_config.json').write_text(json.dumps(settings))
  return len(vocabulary)


def shape(vocab_size, **options):
  """The smallest model with two layers, computed at the level of the processor."""
  fields = {'num_layers': 2, 'width': 16, 'num_heads': 2, 'num_kv_heads': 1, 'head_dim': 8,
            'mlp_width': 32, 'max_length': 128, 'attention_bias': True} | options
  return configs.TransformerConfig(vocab_size=vocab_size, **fields)


@functools.cache
def _drawn(items):
  config = configs.TransformerConfig(**dict(items))
  generator = np.random.default_rng(0)
  abstract = jax.eval_shape(policy.make(config).init, jax.random.key(0))
  return jax.tree.map(
      lambda leaf: generator.normal(scale=0.5, size=leaf.shape).astype(leaf.dtype), abstract)


def params(config):
  """Parameters large enough that tokens are far from equally likely; the same every time."""
  return _drawn(tuple(sorted(vars(config).items())))


def write_checkpoint(directory, *, template=None, characters=None, start=False, more=(),
                     dtype='float32', **options):
  """A Qwen2 checkpoint with its tokenizer; returns the model's config."""
  scratch = directory.with_name(f'{directory.name}_tokenizer')
  size = write_tokenizer(
      scratch, template=template, characters=characters, start=start, more=more)
  config = shape(size, **options)
  huggingface.save(
      directory, config, params(config), model_type='qwen2', dtype=dtype, tokenizer_from=scratch)
  return config


def write_ours(directory, alphabet, **options):
  """A folder of this project's for a tokenizer of characters; returns the model's config."""
  tokenizer = tokenizers.CharacterTokenizer(alphabet)
  config = shape(tokenizer.vocab_size, **options)
  checkpoints.save_params(
      directory, params(config), checkpoint_sources.identity(tokenizer.fingerprint, config))
  return config


def write_reduced(directory, base, **options):
  """The same for a part of a tokenizer of bytes that is written to `base`; returns the config."""
  write_tokenizer(base, merges=(('t', 'h'), ('th', 'e'), ('a', 'n')))
  tokenizer = tokenizers.compact(tokenizers.load_tokenizer(base), ['the the'])  # Not 'an'.
  config = shape(tokenizer.vocab_size, **options)
  checkpoints.save_params(
      directory, params(config),
      {**checkpoint_sources.identity(
          tokenizer.fingerprint, config), **checkpoint_sources.tokenizer_metadata(tokenizer)})
  return config


def run(main, *arguments, experiment, default_config=''):
  """Runs a program with a config, which may also be its default; returns its exit status."""
  argv = [experiment, *map(str, arguments)]
  given = command_line.split_config(argv[1:])[0]
  try:
    launch.run(main, default_config=default_config or given, experiment=experiment, argv=argv)
  except SystemExit as end:
    return end.code
