"""Inputs of the goldens of the two fetched models (`make models`)."""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).parent / 'real_models.json'
# One padded shape per program, so that each is compiled once.
WIDTH, PROMPT_WIDTH, TEXT_WIDTH = 96, 64, 24
CONTINUATION = 32
NUM_TOP, NUM_ENTRIES = 5, 16

PROMPTS = (
    'The capital of France is',
    'Water boils at 100 degrees',
    'def add(a, b):\n    return',
    'Once upon a time, there was a little girl named',
)

# The perplexity is that of all tokens but the first.
TEXT = (
    'The lighthouse keeper climbed the stairs every evening, lit the lamp and wrote the weather '
    'into a small book. In winter the wind shook the tower, and the waves reached the door. '
    'He did not mind: the ships saw his light, and in the morning the sea was often calm again. '
    'When he was old, his daughter read the book and found 11,323 entries, one for each night.'
)

CONVERSATIONS = (
    [{'role': 'user', 'content': 'What is the capital of Italy?'}],
    [{'role': 'system', 'content': 'You answer with one word.'},
     {'role': 'user', 'content': 'Name a color.'},
     {'role': 'assistant', 'content': 'Blue'},
     {'role': 'user', 'content': 'Another one, please.'}],
    [{'role': 'user', 'content': 'Tom has 12 apples and buys 30 more.\nHow many has he now?'}],
    [{'role': 'user', 'content': ' naïve café, 東京 \U0001f600\t1234567  °C '}],
)

# `make test` decodes one reply that ends with a stop token and one that does not.
DECODED = (0, 2)

SENTENCES = (
    'A man is playing a guitar on the street.',
    'Someone performs music outside.',
    'The stock market fell by three percent.',
    'naïve café, 東京 1234567',
)


def load() -> dict:
  """The committed goldens."""
  return json.loads(FILE.read_text())


def right_pad(rows, width, pad_id) -> tuple[np.ndarray, np.ndarray]:
  """(ids int32 [B, width], bool mask)."""
  tokens = np.full((len(rows), width), pad_id, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, ids in enumerate(rows):
    tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
  return tokens, mask
