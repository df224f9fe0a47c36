"""BERT-style encoders. Their pooler, language-model and classifier heads are not read."""

from collections.abc import Mapping
from typing import Any

from jaxrl_llm.models import encoder
from jaxrl_llm.models.pretrained import config_fields
from jaxrl_llm.models.pretrained.mapping import Entry, same, transposed

MODEL_TYPES = ('bert',)
ARCHITECTURES = dict.fromkeys((
    'BertModel', 'BertForMaskedLM', 'BertForPreTraining', 'BertForSequenceClassification',
    'BertForNextSentencePrediction', 'BertForTokenClassification', 'BertForQuestionAnswering',
), 'trunk')
PREFIX = 'bert.'
# Names of norms in checkpoints converted from TensorFlow.
OLD_NAMES = {'LayerNorm.weight': 'LayerNorm.gamma', 'LayerNorm.bias': 'LayerNorm.beta'}
IGNORED = (
    r'pooler\..*', r'cls\..*', r'classifier\..*', r'qa_outputs\..*', r'embeddings\.position_ids',
)

# Fields about training, heads or the pooler, and metadata.
_INERT = (
    'attention_probs_dropout_prob', 'hidden_dropout_prob', 'tie_word_embeddings',
    'directionality', 'pooler_fc_size', 'pooler_num_attention_heads', 'pooler_num_fc_layers',
    'pooler_size_per_head', 'pooler_type', 'sentence_transformers',
    'sbert_ce_default_activation_function', 'language', 'name',
)


def read_config(fields: Mapping[str, Any]) -> encoder.EncoderConfig:
  """Converts a config.json to an encoder config; raises ValueError naming an unsupported field.

  Pooling is defined in other files: see sentence_encoder.py.
  """
  given = config_fields.Fields(fields)
  given.only('position_embedding_type', 'absolute')
  given.only('is_decoder', False)
  width = given.take('hidden_size', kind=int)
  num_heads = given.take('num_attention_heads', kind=int)
  head_dim = width // max(num_heads, 1)
  given.only('head_dim', head_dim, f'hidden_size / num_attention_heads is {head_dim}')
  config = encoder.EncoderConfig(
      vocab_size=given.take('vocab_size', kind=int),
      num_layers=given.take('num_hidden_layers', kind=int),
      width=width,
      num_heads=num_heads,
      mlp_width=given.take('intermediate_size', kind=int),
      max_length=given.take('max_position_embeddings', kind=int),
      type_vocab_size=given.take('type_vocab_size', 2),
      norm_epsilon=given.take('layer_norm_eps', 1e-12),
      activation=given.choose('hidden_act', 'gelu', config_fields.PLAIN_ACTIVATIONS),
  )
  given.finish(inert=_INERT)
  config.validate()

  return config


def write_config(config: encoder.EncoderConfig, model_type: str) -> dict[str, Any]:
  """Converts an encoder config to a config.json."""
  return {
      'model_type': model_type,
      'vocab_size': config.vocab_size,
      'num_hidden_layers': config.num_layers,
      'hidden_size': config.width,
      'num_attention_heads': config.num_heads,
      'intermediate_size': config.mlp_width,
      'max_position_embeddings': config.max_length,
      'type_vocab_size': config.type_vocab_size,
      'layer_norm_eps': config.norm_epsilon,
      'hidden_act': config_fields.WRITTEN_ACTIVATIONS[config.activation],
      'position_embedding_type': 'absolute',
  }


def entries(config: encoder.EncoderConfig) -> list[Entry]:
  """Returns the name map."""
  del config
  out = [
      same(f'embeddings.{theirs}_embeddings.weight', f'embedder/{ours}')
      for theirs, ours in (('word', 'embedding'), ('position', 'position_embedding'),
                           ('token_type', 'type_embedding'))
  ]
  layer = 'encoder.layer.{i}'
  linear = {f'attention.self.{name}': f'attention/{name}' for name in ('query', 'key', 'value')}
  linear |= {'attention.output.dense': 'attention/output', 'intermediate.dense': 'mlp/up',
             'output.dense': 'mlp/down'}

  for theirs, ours in linear.items():
    out += [transposed(f'{layer}.{theirs}.weight', f'layers/{ours}/kernel'),
            same(f'{layer}.{theirs}.bias', f'layers/{ours}/bias')]

  norms = {
      'embeddings': 'embedding_norm', f'{layer}.attention.output': 'layers/attention_post_norm',
      f'{layer}.output': 'layers/mlp_post_norm',
  }
  for theirs, ours in norms.items():
    out += [same(f'{theirs}.LayerNorm.weight', f'{ours}/scale'),
            same(f'{theirs}.LayerNorm.bias', f'{ours}/bias')]

  return out
