"""Users for a dialogue: functions of n dialogues that give n messages, as ids to append.

A user is called with dialogues in which the policy has spoken last (`data.dialogues.Dialogues`
with one leading axis), and returns for each of them the ids that stand before the next reply,
what a chat template puts around the text included. What the policy said is decoded for a user
that reads text, and stays the ids that it was. A user that draws at random does so from
`dialogues.seeds`.

`tasks.dialogue` has a user of its own; `tasks.endpoint_user` asks a server.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.data import chat_templates, dialogue_rows
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.types import STOPPED, TRUNCATED, Example, SampleFn, Tokenizer

Ids = Sequence[int]


class FixedQuestions:
  """Questions that were written beforehand, and do not depend on the replies: setting two."""

  def __init__(self, questions: Mapping[int, Sequence[Ids]]):
    """Takes example id -> the messages behind replies 0, 1, ..., as ids."""
    self._questions = questions

  def num_turns(self, example_ids: np.ndarray) -> np.ndarray:
    """int32 [...]; replies of the dialogue of each example: one more than its questions."""
    ids = np.asarray(example_ids)
    counts = [1 + len(self._of(index)) for index in ids.reshape(-1)]
    return np.array(counts, np.int32).reshape(ids.shape)

  def __call__(self, dialogues: Dialogues) -> list[Ids]:
    """The next question of each; ValueError where there is none."""
    messages = []
    for index, turn in zip(dialogues.example_ids, dialogues.num_replies - 1):
      questions = self._of(index)
      if turn >= len(questions):
        raise ValueError(
            f'example {index} has {len(questions)} questions behind its first, and reply {turn} '
            'is to be answered: num_turns must be at most one more than the questions'
        )
      messages.append(questions[turn])
    return messages

  def _of(self, index: int) -> Sequence[Ids]:
    if int(index) not in self._questions:
      raise ValueError(f'there are no questions for example {index}')
    return self._questions[int(index)]


def questions_of(dialogues: Dialogues) -> FixedQuestions:
  """What the users of some dialogues said, to be asked again whatever is replied."""
  return FixedQuestions({
      int(dialogues.example_ids[row]): dialogues.turns(row)[2::2] for row in range(len(dialogues))
  })


def encode_questions(
    examples: Sequence[Example], template: chat_templates.ChatTemplate, tokenizer: Tokenizer
) -> tuple[list[Example], FixedQuestions]:
  """Questions within a chat template.

  Args:
    examples: with 'id', 'questions' (texts, at least one) and 'system' (a text, or '').
    template: of the conversation.
    tokenizer: of the ids.

  Returns:
    (the examples with 'prompt' and 'prompt_ids', the first question up to where the reply
    begins; the user that asks the others).

  Raises:
    ValueError: as of `dialogue_rows.make_frame`.
  """
  frame = dialogue_rows.make_frame(template, tokenizer)
  first = lambda example: [
      *([{'role': 'system', 'content': example['system']}] if example['system'] else []),
      {'role': 'user', 'content': example['questions'][0]},
  ]
  texts = template.render_many(list(map(first, examples)), add_generation_prompt=True)
  encoded = [
      {**example, 'prompt': text, 'prompt_ids': tokenizer.encode(text)}
      for example, text in zip(examples, texts)
  ]
  return encoded, FixedQuestions({
      example['id']: [frame.write(text) for text in example['questions'][1:]]
      for example in examples
  })


class Marked:
  """What a simulated user says to the policy, out of all that it says.

  It is asked to think first, and to write its question behind a mark. One that forgets the mark is
  taken at its word, and counted. The mark is looked for in the text: as ids it is spelt in as many
  ways as there are words before and behind it.
  """

  def __init__(self, mark: str, write: Callable[[str], Ids]):
    """Takes the mark, and what makes a text ids to append (`dialogue_rows.Frame.write`)."""
    self._mark, self._write = mark, write
    self._said = self._unmarked = 0

  def __call__(self, text: str) -> Ids:
    """The ids of what follows the last mark, of all where there is none."""
    question, found = behind_last(text, self._mark)
    self._said += 1
    self._unmarked += not found
    return self._write(question)

  def pop_unmarked(self) -> float:
    """The share without a mark since the last call; NaN where nothing was said."""
    share = self._unmarked / self._said if self._said else float('nan')
    self._said = self._unmarked = 0
    return share


def behind_last(text: str, mark: str) -> tuple[str, bool]:
  """(what follows the last `mark`, all where there is none; whether there is one).

  Asterisks and underscores right behind the mark go with it: models print it in bold.
  """
  _, found, rest = text.rpartition(mark)
  return (rest.lstrip('*_') if found else rest).strip(), bool(found)


class ModelUser:
  """Another policy, of the same vocabulary, that plays the user: setting one.

  It reads `opening`, the transcript and `request`; what it says, up to its stop token, is handed to
  `write`, which makes the message of it.
  """

  def __init__(
      self,
      sample: SampleFn,
      params: Any,
      key: Any,
      *,
      slots: int,
      rows: int,
      opening: Ids = (),
      request: Ids = (),
      close_ids: Ids = (),
      write: Callable[[list[int]], Ids] = list,
  ):
    """Makes the user.

    Args:
      sample: a jitted sampler with one sample a prompt (in the paper at temperature 0.8).
      params: of the model.
      key: of its noise, together with the dialogues' seeds.
      slots: tokens of its longest prompt; every prompt is padded to them.
      rows: dialogues that are sampled at once; it compiles for this many.
      opening: ids before the transcript.
      request: ids behind it.
      close_ids: what ends the last reply in the transcript where it did not stop.
      write: ids that it said -> ids to append.
    """
    if rows < 1:
      raise ValueError(f'rows must be at least 1, got {rows}')
    self._sample, self._params, self._key = sample, params, key
    self._slots, self._rows, self._write = slots, rows, write
    self._opening, self._request = list(opening), list(request)
    self._close_ids = list(close_ids)

  def __call__(self, dialogues: Dialogues) -> list[Ids]:
    """Samples a message for each dialogue."""
    messages = []
    for start in range(0, len(dialogues), self._rows):
      part = dialogues[start : start + self._rows]
      prompts, lengths = self._prompts(part)
      # Rows that fill up the last part are its first, once more.
      fill = np.resize(np.arange(len(part)), self._rows)
      seeds = (part.seeds >> 1).astype(np.int32)
      said = self._sample(self._params, prompts[fill], lengths[fill], seeds[fill], self._key)
      tokens, lengths, reasons = (
          np.asarray(x)[:, 0] for x in (said.tokens, said.lengths, said.stop_reason))
      messages += [
          self._write(tokens[row, : lengths[row] - (reasons[row] == STOPPED)].tolist())
          for row in range(len(part))
      ]
    return messages

  def _prompts(self, part: Dialogues) -> tuple[np.ndarray, np.ndarray]:
    """What the model reads, left-padded to the fixed slots."""
    prompts = np.full((len(part), self._slots), part.pad_id, np.int32)
    lengths = np.zeros(len(part), np.int32)
    for row in range(len(part)):
      # The transcript has these ids only once the message stands behind them.
      cut = part.stop_reason[row, part.num_replies[row] - 1] == TRUNCATED
      ids = np.concatenate([
          self._opening, *part.turns(row), self._close_ids if cut else [], self._request,
      ]).astype(np.int32)
      if len(ids) > self._slots:
        raise ValueError(
            f'the user that is a model reads at most {self._slots} tokens (slots), got {len(ids)}')
      prompts[row, self._slots - len(ids):], lengths[row] = ids, len(ids)
    return prompts, lengths
