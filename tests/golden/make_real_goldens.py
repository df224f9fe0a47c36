"""Makes the goldens of the two fetched models with transformers, from the files in their wheels.

  python -m tests.golden.make_real_goldens FILE.gguf FOLDER_OF_MINILM

It needs the extra `parity` and gguf. transformers reads the GGUF file itself, so that our
conversion is not involved. Writes real_models.json here, and experiments/fetch_models/outputs.json.
"""

import json
import pathlib
import sys

import torch
import transformers

from experiments.fetch_models import small_models
from tests.golden import real_cases, torch_models

# Greedy tokens are the same on each processor if the second best is this much worse, nats.
_LEAST_MARGIN = 0.02


def rounded(values) -> list:
  """Floats of an array with few digits."""
  return [round(float(value), 6) for value in values]


def logits_of(model, ids) -> torch.Tensor:
  """float32 [T, V]."""
  with torch.no_grad():
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def of_prompt(model, tokenizer, text: str) -> dict:
  """Ids of a prompt, and the most probable next tokens."""
  ids = tokenizer(text, add_special_tokens=False)['input_ids']
  top = torch.log_softmax(logits_of(model, ids)[-1], dim=-1).topk(real_cases.NUM_TOP)
  return {'ids': ids, 'top': top.indices.tolist(), 'log_probs': rounded(top.values)}


def of_text(model, tokenizer) -> dict:
  """Ids and perplexity of the text."""
  ids = tokenizer(real_cases.TEXT, add_special_tokens=False)['input_ids']
  loss = torch.nn.functional.cross_entropy(logits_of(model, ids)[:-1], torch.tensor(ids[1:]))
  return {'ids': ids, 'perplexity': round(float(loss.exp()), 5)}


def of_conversation(model, tokenizer, messages: list) -> dict:
  """Ids of a conversation without and with the opening of a reply, and the greedy reply."""
  ids = tokenizer.apply_chat_template(messages).input_ids
  prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True).input_ids
  with torch.no_grad():
    output = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        do_sample=False, max_new_tokens=real_cases.CONTINUATION, eos_token_id=2, pad_token_id=2)
  reply = output[0, len(prompt):].tolist()

  logits = logits_of(model, prompt + reply)[len(prompt) - 1 : -1]
  best = logits.topk(2).values
  margin = float((best[:, 0] - best[:, 1]).min())
  assert logits.argmax(dim=-1).tolist() == reply
  assert margin >= _LEAST_MARGIN, (messages, margin)
  return {'ids': ids, 'prompt_ids': prompt, 'greedy': reply, 'margin': round(margin, 3),
          'reply': tokenizer.decode(reply)}


def of_smollm2(path: pathlib.Path) -> tuple[dict, dict]:
  """Goldens and the outputs that fetch_models checks."""
  source = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
  tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
  model = transformers.AutoModelForCausalLM.from_pretrained(
      **source, dtype=torch.float32, attn_implementation='eager').eval()

  goldens = {
      'prompts': [of_prompt(model, tokenizer, text) for text in real_cases.PROMPTS],
      'text': of_text(model, tokenizer),
      'conversations': [of_conversation(model, tokenizer, messages)
                        for messages in real_cases.CONVERSATIONS],
  }

  ids = goldens['prompts'][0]['ids']
  entries = list(range(0, model.config.vocab_size, model.config.vocab_size // 32))
  logits = rounded(logits_of(model, ids)[-1][entries])
  return goldens, {
      'text': real_cases.PROMPTS[0], 'ids': ids, 'entries': entries, 'logits': logits}


def of_minilm(directory: pathlib.Path) -> tuple[list, dict]:
  """Goldens and the outputs that fetch_models checks."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
  model = torch_models.load(directory)
  rows = [tokenizer(text)['input_ids'] for text in real_cases.SENTENCES]
  embeddings = torch_models.mean_embeddings(model, rows)
  goldens = [
      {'ids': ids, 'embedding': rounded(vector[: real_cases.NUM_ENTRIES]),
       'cosines': rounded(embeddings @ vector)}
      for ids, vector in zip(rows, embeddings)]
  return goldens, {
      'text': real_cases.SENTENCES[0], 'ids': rows[0], 'embedding': rounded(embeddings[0])}


def main() -> None:
  """Writes the goldens."""
  quantised, minilm = map(pathlib.Path, sys.argv[1:])
  goldens, smollm2_outputs = of_smollm2(quantised)
  goldens['sentences'], minilm_outputs = of_minilm(minilm)
  goldens['versions'] = {'torch': torch.__version__, 'transformers': transformers.__version__}

  real_cases.FILE.write_text(
      json.dumps(goldens, ensure_ascii=False, separators=(',', ':')).replace('},', '},\n') + '\n')
  outputs = {'smollm2': smollm2_outputs, 'minilm': minilm_outputs}
  small_models.OUTPUTS.write_text(
      json.dumps(outputs, separators=(',', ':')).replace('},', '},\n') + '\n')


if __name__ == '__main__':
  main()
