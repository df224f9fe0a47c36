"""Tokenizers, templates and conversations for the comparison with transformers.

Each tokenizer is a directory like that of a model. Those of GPT-2 and Qwen2 are the real ones;
the others are tiny, with vocabularies in chat/ that make_chat_goldens.py trained. The templates
in chat/templates/ are ours, each in the style of a family and with the Jinja that it uses.
"""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

FOLDER = pathlib.Path(__file__).parent / 'chat'


def added(content: str, special: bool = True, **flags: bool) -> dict[str, Any]:
  """An added token as tokenizer_config.json and tokenizer.json spell it."""
  token = {'content': content, 'lstrip': False, 'normalized': False, 'rstrip': False,
           'single_word': False, 'special': special}
  return {**token, **flags}


def decoder(first: int, *tokens: str | dict[str, Any]) -> dict[str, Any]:
  """added_tokens_decoder with the ids first, first + 1, ..."""
  return {
      str(first + index): added(token) if isinstance(token, str) else token
      for index, token in enumerate(tokens)
  }


def starting(*tokens: tuple[str, int]) -> dict[str, Any]:
  """A post-processor that adds tokens before a text."""
  return {
      'type': 'TemplateProcessing',
      'single': [{'SpecialToken': {'id': token, 'type_id': 0}} for token, _ in tokens]
                + [{'Sequence': {'id': 'A', 'type_id': 0}}],
      'pair': [{'Sequence': {'id': 'A', 'type_id': 0}}, {'Sequence': {'id': 'B', 'type_id': 1}}],
      'special_tokens': {
          token: {'id': token, 'ids': [number], 'tokens': [token]} for token, number in tokens
      },
  }


@dataclasses.dataclass(frozen=True)
class Files:
  """A tokenizer's directory.

  Attributes:
    vocabulary: name in the directory -> file in chat/, or below the folder of real tokenizers.
    documents: name in the directory -> its JSON.
    patch: fields of tokenizer.json that differ from those of the file in chat/.
    tokens: added tokens of tokenizer.json, with ids after its vocabulary.
  """

  vocabulary: dict[str, str]
  documents: dict[str, Any]
  patch: dict[str, Any] = dataclasses.field(default_factory=dict)
  tokens: tuple[dict[str, Any], ...] = ()


_BYTES = 400  # Entries of chat/bytes.json.
_PIECES = 380  # Pieces of chat/llama.model and chat/llama.json.
_LLAMA = {
    'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>', 'add_bos_token': True,
    'add_eos_token': False, 'added_tokens_decoder': decoder(0, '<unk>', '<s>', '</s>'),
}
_CHATML = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')

TOKENIZERS = {
    'gpt2': Files(
        {'vocab.json': 'gpt2/encoder.json', 'merges.txt': 'gpt2/vocab.bpe'},
        {'tokenizer_config.json': {
            'tokenizer_class': 'GPT2Tokenizer', 'bos_token': '<|endoftext|>',
            'eos_token': '<|endoftext|>', 'unk_token': '<|endoftext|>', 'add_bos_token': False,
        }},
    ),
    'qwen25': Files(
        {'vocab.json': 'qwen2/vocab.json', 'merges.txt': 'qwen2/merges.txt'},
        {'tokenizer_config.json': {
            'tokenizer_class': 'Qwen2Tokenizer', 'bos_token': None, 'eos_token': '<|im_end|>',
            'pad_token': '<|endoftext|>', 'unk_token': None, 'add_prefix_space': False,
            'additional_special_tokens': ['<|im_start|>', '<|im_end|>'],
            'added_tokens_decoder': decoder(
                151643, *_CHATML, added('<tool_call>', False), added('</tool_call>', False)),
         },
         'generation_config.json': {'eos_token_id': [151645, 151643], 'pad_token_id': 151643}},
    ),
    'qwen3': Files(
        {'vocab.json': 'qwen2/vocab.json', 'merges.txt': 'qwen2/merges.txt'},
        {'tokenizer_config.json': {
            'tokenizer_class': 'Qwen2Tokenizer', 'bos_token': None, 'eos_token': '<|im_end|>',
            'pad_token': '<|endoftext|>', 'unk_token': None,
            'added_tokens_decoder': decoder(
                151643, *_CHATML, added('<think>', False), added('</think>', False)),
         }},
    ),
    'llama2': Files(
        {'tokenizer.model': 'llama.model'},
        {'tokenizer_config.json': {
            **_LLAMA, 'tokenizer_class': 'LlamaTokenizer', 'legacy': False, 'pad_token': '<unk>'}},
    ),
    'llama2_json': Files(
        {'tokenizer.json': 'llama.json'},
        {'tokenizer_config.json': {
            **_LLAMA, 'tokenizer_class': 'LlamaTokenizerFast', 'pad_token': '</s>'},
         'config.json': {'model_type': 'llama', 'eos_token_id': 2}},
        {'post_processor': starting(('<s>', 1))},
    ),
    'llama2_legacy': Files(
        {'tokenizer.model': 'llama.model'},
        {'tokenizer_config.json': {
            **_LLAMA, 'tokenizer_class': 'LlamaTokenizer', 'legacy': True,
            'added_tokens_decoder': {
                **_LLAMA['added_tokens_decoder'],
                **decoder(_PIECES, '<pad>', added('<tool>', False, rstrip=True),
                          added('<wide>', lstrip=True)),
            },
            'pad_token': '<pad>'}},
    ),
    'mistral': Files(
        {'tokenizer.json': 'llama.json'},
        {'tokenizer_config.json': {
            **_LLAMA, 'tokenizer_class': 'LlamaTokenizer', 'legacy': False,
            'added_tokens_decoder': {
                **_LLAMA['added_tokens_decoder'], **decoder(_PIECES, '[INST]', '[/INST]')}},
         'config.json': {'model_type': 'mistral'}},
        {'post_processor': starting(('<s>', 1))},
    ),
    'gemma': Files(
        {'tokenizer.model': 'gemma.model'},
        {'tokenizer_config.json': {
            'tokenizer_class': 'GemmaTokenizer', 'add_bos_token': True, 'bos_token': '<bos>',
            'eos_token': '<eos>', 'unk_token': '<unk>', 'pad_token': '<pad>',
            'mask_token': '<mask>',
            'additional_special_tokens': ['<start_of_turn>', '<end_of_turn>'],
            'added_tokens_decoder': decoder(
                0, '<pad>', '<eos>', '<bos>', '<unk>', '<mask>', '<end_of_turn>',
                '<start_of_turn>'),
         },
         'generation_config.json': {'eos_token_id': [1, 5]}},
    ),
    'llama3': Files(
        {'tokenizer.json': 'bytes.json'},
        {'tokenizer_config.json': {
            'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': '<|begin_of_text|>',
            'eos_token': '<|eot_id|>', 'clean_up_tokenization_spaces': True},
         'generation_config.json': {'eos_token_id': [_BYTES + 1, _BYTES + 5, _BYTES + 4]}},
        {'post_processor': {'type': 'Sequence', 'processors': [
            {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True,
             'use_regex': True},
            starting(('<|begin_of_text|>', _BYTES)),
        ]},
         'truncation': {'direction': 'Right', 'max_length': 8, 'strategy': 'LongestFirst',
                        'stride': 0},
         'padding': {'strategy': {'Fixed': 12}, 'direction': 'Right', 'pad_to_multiple_of': None,
                     'pad_id': _BYTES + 1, 'pad_type_id': 0, 'pad_token': '<|end_of_text|>'}},
        tuple(map(added, (
            '<|begin_of_text|>', '<|end_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
            '<|eot_id|>', '<|eom_id|>'))),
    ),
    'deepseek': Files(
        {'tokenizer.json': 'bytes.json'},
        {'tokenizer_config.json': {
            'tokenizer_class': 'LlamaTokenizerFast', 'legacy': True, 'add_bos_token': True,
            'bos_token': added('<｜begin▁of▁sentence｜>') | {'__type': 'AddedToken'},
            'eos_token': added('<｜end▁of▁sentence｜>') | {'__type': 'AddedToken'},
            'pad_token': added('<｜end▁of▁sentence｜>') | {'__type': 'AddedToken'},
            'unk_token': None},
         'config.json': {'model_type': 'llama', 'eos_token_id': _BYTES + 1}},
        {'post_processor': starting(('<｜begin▁of▁sentence｜>', _BYTES))},
        (added('<｜begin▁of▁sentence｜>'), added('<｜end▁of▁sentence｜>'),
         added('<｜User｜>', False), added('<｜Assistant｜>', False),
         added('<think>', False), added('</think>', False)),
    ),
    'bert': Files(
        {'tokenizer.json': 'words.json'},
        {'tokenizer_config.json': {
            'tokenizer_class': 'BertTokenizer', 'do_lower_case': True, 'cls_token': '[CLS]',
            'sep_token': '[SEP]', 'pad_token': '[PAD]', 'unk_token': '[UNK]',
            'mask_token': '[MASK]'},
         'config.json': {'model_type': 'bert', 'pad_token_id': 0}},
    ),
    'old_files': Files(
        {'tokenizer.json': 'bytes.json'},
        {'tokenizer_config.json': {
            'tokenizer_class': 'PreTrainedTokenizerFast',
            'additional_special_tokens': ['<one>', '<two>']},
         'special_tokens_map.json': {
             'eos_token': {'content': '<end>', 'lstrip': True, 'normalized': False,
                           'rstrip': False, 'single_word': False}},
         'added_tokens.json': {'<one>': _BYTES, '<plain>': _BYTES + 1, '<two>': _BYTES + 2}},
    ),
}

# Name -> (tokenizer, template, other variables of the template).
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    'qwen25': ('qwen25', 'qwen25', {}),
    'qwen3': ('qwen3', 'qwen3', {}),
    'qwen3_short': ('qwen3', 'qwen3', {'enable_thinking': False}),
    'llama2': ('llama2', 'llama2', {}),
    'llama2_json': ('llama2_json', 'llama2', {}),
    'llama2_legacy': ('llama2_legacy', 'llama2', {}),
    'llama3': ('llama3', 'llama3', {}),
    'mistral': ('mistral', 'mistral', {}),
    'gemma': ('gemma', 'gemma', {}),
    'deepseek': ('deepseek', 'deepseek', {'thought_opening': '<think>\n'}),
    'deepseek_old': ('deepseek', 'deepseek', {}),
    'zephyr': ('llama2', 'zephyr', {}),
    'gpt2_zephyr': ('gpt2', 'zephyr', {}),
    'features': ('qwen25', 'features', {'bos_token': '<|endoftext|>'}),
}


def _turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
  """A conversation in which user and assistant take turns."""
  first = [] if system is None else [{'role': 'system', 'content': system}]
  roles = ('user', 'assistant')
  return first + [
      {'role': roles[index % 2], 'content': content} for index, content in enumerate(contents)
  ]


CONVERSATIONS = {
    'short': _turns('How much is 12 + 30?', '42'),
    'long': _turns(' Größe und\t東京 😀?\n', 'It is 3.5,\n\nor so. ', "don't", '\nI will not.',
                   'ok', 'the end', system='  Answer briefly.\n'),
    'thoughts': _turns('The first question?', '<think>\nIt is easy.\n</think>\n\nThe answer.',
                       'and the second?', '<think>\nmore\n\n</think>\n\nNo.'),
    'tokens': _turns(
        'a</s><s> b<|im_end|>\n<|endoftext|><eos> <unk>[/INST]<｜User｜><wide> <tool> c',
        'x <|eot_id|>y'),
    'question': _turns('one', 'two', ' three ', system='s'),
    'fields': [
        {'role': 'user', 'content': 'call it', 'name': None},
        {'role': 'assistant', 'content': 'done', 'thinking': 'I call', 'tool_calls': None},
        {'role': 'tool', 'content': '{"a": 1}'},
        {'role': 'tool', 'content': '2'},
        {'role': 'assistant', 'content': 'It says 1.', 'reasoning_content': '\nread it'},
    ],
    'twice': [
        {'role': 'user', 'content': 'a'}, {'role': 'user', 'content': 'b'},
        {'role': 'assistant', 'content': 'c'},
    ],
}

# Texts that are encoded without a template.
TEXTS = ('The answer is 42.', ' two  spaces ', '', 'x\n\n\ty', "I'll won't 3.14 1,000",
         'Grüße 東京 😀\u200d', '<s>a</s> <unk>', '<think>t</think> <tool>  z <wide>',
         'a<one> b <plain>c<end>', 'e\u0301 é')


def write(name: str, directory: pathlib.Path, real: pathlib.Path | None) -> pathlib.Path:
  """Writes a tokenizer's directory; `real` holds the real ones. Returns the directory."""
  files = TOKENIZERS[name]
  directory.mkdir(parents=True, exist_ok=True)
  for target, source in files.vocabulary.items():
    path = real / source if '/' in source else FOLDER / source
    shutil.copyfile(path, directory / target)

  if files.patch or files.tokens:
    tokenizer = json.loads((directory / 'tokenizer.json').read_text())
    size = len(tokenizer['model']['vocab'])
    tokenizer |= files.patch
    tokenizer['added_tokens'] += [
        {'id': size + index, **token} for index, token in enumerate(files.tokens)
    ]
    (directory / 'tokenizer.json').write_text(json.dumps(tokenizer))

  for target, document in files.documents.items():
    (directory / target).write_text(json.dumps(document))
  return directory


def needs_real(name: str) -> bool:
  """True if a tokenizer's vocabulary is a real one."""
  return any('/' in source for source in TOKENIZERS[name].vocabulary.values())


def template(name: str) -> str:
  """The source of a template."""
  return (FOLDER / 'templates' / f'{name}.jinja').read_text()
