"""Trains the tiny vocabularies in tests/golden/chat/ and makes its goldens with transformers.

  python -m tests.golden.make_chat_goldens [FOLDER_OF_THE_REAL_TOKENIZERS]

It needs the extra `parity`. Missing vocabularies are trained on the few sentences below.
chat/goldens.json contains, for each tokenizer, the ids and texts of transformers, and for each
case (a template with a tokenizer) the text and ids of every conversation, with and without the
opening of a reply.
"""

import io
import json
import pathlib
import sys
import tempfile

from tests.golden import chat_cases

_SENTENCES = (
    'The user asks a question and the assistant answers it briefly.',
    'What is the answer to the first question? The answer is here.',
    'One and two and three are numbers, and so are 12, 345 and 6789.',
    'It is not the end: there is another question, and then the end of it.',
    'system user assistant model and the second question of the user.',
    'I will answer, I think, when the others have asked what they want to.',
    'Größe und Größe, so is the German word; it is easy to call it done.',
) * 3


def train_bytes(path: pathlib.Path) -> None:
  """Trains a byte-level BPE that splits texts like Llama 3, without added tokens."""
  from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

  tokenizer = Tokenizer(models.BPE(ignore_merges=True))
  pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
             r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(Regex(pattern), behavior='isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=400, show_progress=False,
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
  )
  tokenizer.train_from_iterator(_SENTENCES, trainer)
  path.write_text(tokenizer.to_str())


def train_words(path: pathlib.Path) -> None:
  """Trains a lower-casing WordPiece like BERT's, whose file sets truncation and padding."""
  from tokenizers import (
      Tokenizer,
      decoders,
      models,
      normalizers,
      pre_tokenizers,
      processors,
      trainers,
  )

  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  tokenizer = Tokenizer(models.WordPiece(unk_token='[UNK]'))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece(prefix='##')
  trainer = trainers.WordPieceTrainer(
      vocab_size=150, show_progress=False, special_tokens=special)
  tokenizer.train_from_iterator(_SENTENCES, trainer)
  tokenizer.post_processor = processors.TemplateProcessing(
      single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1',
      special_tokens=[('[CLS]', 2), ('[SEP]', 3)])
  tokenizer.enable_truncation(max_length=6)
  tokenizer.enable_padding(length=6)
  path.write_text(tokenizer.to_str())


def train_pieces(path: pathlib.Path, **options) -> None:
  """Trains a SentencePiece BPE without normalisation, with byte fallback."""
  import sentencepiece

  content = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(_SENTENCES), model_writer=content, model_type='bpe',
      byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False,
      split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2, **options)
  path.write_bytes(content.getvalue())


def convert_pieces(model: pathlib.Path, path: pathlib.Path) -> None:
  """Writes the tokenizer.json that was common for such models: a space before each segment."""
  import sentencepiece
  from tokenizers import Tokenizer, decoders, models, normalizers

  pieces = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())
  vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.vocab_size())}
  merges = [
      (vocabulary[piece], piece[:cut], piece[cut:])
      for piece in vocabulary for cut in range(1, len(piece))
      if piece[:cut] in vocabulary and piece[cut:] in vocabulary
  ]
  tokenizer = Tokenizer(models.BPE(
      vocab=vocabulary, merges=[merge[1:] for merge in sorted(merges)], unk_token='<unk>',
      fuse_unk=True, byte_fallback=True))
  tokenizer.normalizer = normalizers.Sequence(
      [normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')])
  tokenizer.decoder = decoders.Sequence([
      decoders.Replace('\u2581', ' '), decoders.ByteFallback(), decoders.Fuse(),
      decoders.Strip(content=' ', left=1)])
  tokenizer.add_special_tokens(['<unk>', '<s>', '</s>'])
  path.write_text(tokenizer.to_str())


def make_vocabularies(folder: pathlib.Path) -> None:
  """Trains the missing vocabularies."""
  makers = {
      'bytes.json': train_bytes,
      'words.json': train_words,
      'llama.model': lambda path: train_pieces(path, vocab_size=380),
      'gemma.model': lambda path: train_pieces(
          path, vocab_size=380, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
          pad_piece='<pad>', bos_piece='<bos>', eos_piece='<eos>',
          control_symbols=['<mask>', '<end_of_turn>'],
          user_defined_symbols=['<start_of_turn>', '\n', '\n\n']),
      'llama.json': lambda path: convert_pieces(folder / 'llama.model', path),
  }
  for name, make in makers.items():
    if not (folder / name).exists():
      make(folder / name)


def of_tokenizer(tokenizer) -> dict:
  """Ids and decoded texts in transformers, and its special tokens."""
  ids = [tokenizer(text, add_special_tokens=False)['input_ids'] for text in chat_cases.TEXTS]
  first = tokenizer('The', add_special_tokens=False)['input_ids'][0]
  with_start = tokenizer('The')['input_ids']
  return {
      'ids': ids,
      'decoded': [tokenizer.decode(one, skip_special_tokens=True) for one in ids],
      'start': with_start[: with_start.index(first)],
      'eos': tokenizer.eos_token_id,
      'pad': tokenizer.pad_token_id,
      'size': len(tokenizer),
  }


def of_conversation(tokenizer, template: str, variables: dict, messages: list) -> dict:
  """Text and ids; of those with the opening of a reply, only the difference."""
  options = {'chat_template': template, **variables}
  try:
    texts = [
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, **options)
        for prompt in (False, True)
    ]
    ids = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, **options).input_ids
        for prompt in (False, True)
    ]
  except Exception as error:
    return {'error': str(error)}
  return {'text': texts[0], 'ids': ids[0], 'prompt': rest(*texts), 'prompt_ids': rest(*ids)}


def rest(first, second) -> list:
  """[length of the common prefix, the rest of the second]."""
  count = 0
  while count < min(len(first), len(second)) and first[count] == second[count]:
    count += 1
  return [count, second[count:]]


def main() -> None:
  """Writes the goldens."""
  import transformers

  real = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else '../shared/data/tokenizers')
  make_vocabularies(chat_cases.FOLDER)
  goldens = {'versions': {'transformers': transformers.__version__}, 'tokenizers': {}, 'cases': {}}
  loaded = {}
  with tempfile.TemporaryDirectory() as temporary:
    for name in chat_cases.TOKENIZERS:
      directory = chat_cases.write(name, pathlib.Path(temporary) / name, real)
      loaded[name] = transformers.AutoTokenizer.from_pretrained(directory)
      goldens['tokenizers'][name] = of_tokenizer(loaded[name])
  for name, (tokenizer, template, variables) in chat_cases.CASES.items():
    goldens['cases'][name] = {
        key: of_conversation(
            loaded[tokenizer], chat_cases.template(template), variables, messages)
        for key, messages in chat_cases.CONVERSATIONS.items()
    }
  text = json.dumps(goldens, ensure_ascii=False, separators=(',', ':'))
  (chat_cases.FOLDER / 'goldens.json').write_text(text.replace('},"', '},\n"') + '\n')


if __name__ == '__main__':
  main()
