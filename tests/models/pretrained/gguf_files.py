"""Small GGUF files, written by the `gguf` package as llama.cpp's conversion writes them."""

import gguf
import numpy as np

from jaxrl_llm.models.pretrained import weights

TYPES = gguf.GGMLQuantizationType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


def write(path, architecture, metadata, tensors, *, alignment=None):
  """Writes a file.

  Args:
    path: the file.
    architecture: general.architecture; '' for none.
    metadata: values by key; int is uint32 if it fits, list is an array.
    tensors: {name: array}, or {name: (bytes, type)} for quantised ones, in which the last axis
      is bytes.
    alignment: general.alignment; by default absent.
  """
  writer = gguf.GGUFWriter(str(path), architecture)
  if not architecture:
    del writer.kv_data[0]['general.architecture']
  if alignment:
    writer.add_custom_alignment(alignment)

  for key, value in metadata.items():
    if isinstance(value, bool):
      writer.add_bool(key, value)
    elif isinstance(value, int):
      (writer.add_uint32 if 0 <= value < 2**32 else writer.add_int64)(key, value)
    elif isinstance(value, float):
      writer.add_float32(key, value)
    elif isinstance(value, list):
      writer.add_array(key, value)
    else:
      writer.add_string(key, value)

  for name, value in tensors.items():
    array, kind = value if isinstance(value, tuple) else (value, None)
    writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind)

  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def quantise(array, kind):
  """Returns a tensor for `write`."""
  if kind == TYPES.F32:
    return array
  data = gguf.quants.quantize(array, kind)
  return data if kind == TYPES.F16 else (data.view(np.uint8), kind)


def rounded(array, kind):
  """Returns what remains of an array in a type."""
  return gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)


def tensors_of(directory, architecture, fields, *, kind=TYPES.F32):
  """Returns the tensors of a checkpoint for `write`; vectors stay float32."""
  names = gguf.get_tensor_name_map(
      gguf.MODEL_ARCH[architecture.upper()], fields['num_hidden_layers'])
  reader, out = weights.Reader(directory), {}

  for name in reader.tensors:
    array = reader[name].astype(np.float32)
    if architecture == 'llama' and '.q_proj.' in name:
      array = permute(array, fields['num_attention_heads'])
    if architecture == 'llama' and '.k_proj.' in name:
      array = permute(array, fields['num_key_value_heads'])
    if architecture.startswith('gemma') and name.endswith('norm.weight'):
      array = array + 1
    theirs = names.get_name(name, try_suffixes=('.weight', '.bias'))
    out[theirs] = quantise(array, kind) if array.ndim > 1 else array
  return out


def sizes_of(architecture, fields):
  """Returns metadata of a model: the sizes in its config.json."""
  names = {
      'hidden_size': 'embedding_length', 'num_hidden_layers': 'block_count',
      'num_attention_heads': 'attention.head_count', 'rope_theta': 'rope.freq_base',
      'num_key_value_heads': 'attention.head_count_kv', 'intermediate_size': 'feed_forward_length',
      'max_position_embeddings': 'context_length',
      'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
  }
  sizes = {f'{architecture}.{theirs}': fields[ours] for ours, theirs in names.items()}
  return {'general.type': 'model', **sizes}


def permute(rows, num_heads):
  """Interleaves the two halves of each head."""
  halves = rows.reshape(num_heads, 2, len(rows) // num_heads // 2, *rows.shape[1:])
  return halves.swapaxes(1, 2).reshape(rows.shape)


def byte_tokenizer(*, pre='gpt-2', more=(), merges=()):
  """Returns metadata of a tokenizer of bytes: <end> is 0, <start> 1, `more` follow."""
  from tokenizers import pre_tokenizers

  merges = list(merges) or ['Ġ a']
  special = ['<end>', '<start>', *more]
  ordinary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(
      merge.replace(' ', '') for merge in merges)]
  return {
      'tokenizer.ggml.model': 'gpt2', 'tokenizer.ggml.pre': pre,
      'tokenizer.ggml.tokens': special + ordinary, 'tokenizer.ggml.merges': merges,
      'tokenizer.ggml.token_type': [_CONTROL] * len(special) + [_NORMAL] * len(ordinary),
      'tokenizer.ggml.eos_token_id': 0, 'tokenizer.ggml.bos_token_id': 1,
  }


def sentencepiece_tokenizer(path):
  """Returns metadata of a SentencePiece model file."""
  import sentencepiece

  pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
  ids = list(range(pieces.vocab_size()))
  kinds = [
      (pieces.is_unknown, _UNKNOWN), (pieces.is_control, _CONTROL), (pieces.is_unused, _UNUSED),
      (pieces.is_byte, _BYTE),
  ]
  types = [next((kind for has, kind in kinds if has(number)), _NORMAL) for number in ids]
  return {
      'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.token_type': types,
      'tokenizer.ggml.tokens': [pieces.id_to_piece(number) for number in ids],
      'tokenizer.ggml.scores': [pieces.get_score(number) for number in ids],
      'tokenizer.ggml.bos_token_id': pieces.bos_id(),
      'tokenizer.ggml.eos_token_id': pieces.eos_id(),
      'tokenizer.ggml.unknown_token_id': pieces.unk_id(),
  }
