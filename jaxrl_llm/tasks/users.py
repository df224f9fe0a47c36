"""Simulated users: functions from n dialogues to n messages, as ids to append.

A user is called with dialogues in which the policy has spoken last (`data.dialogues.Dialogues`
with one leading axis). For each it returns the ids before the next reply, including those that a
chat template puts around the text. For a user that reads text, the policy's replies are decoded;
the dialogue keeps their ids. A user that draws random numbers seeds them with `dialogues.seeds`.

`tasks.dialogue` has its own user; `tasks.endpoint_user` queries a server.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.data import chat_templates, dialogue_rows
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.types import STOPPED, TRUNCATED, Example, SampleFn, Tokenizer

Ids = Sequence[int]


class FixedQuestions:
  """Fixed questions that do not depend on the replies: REFUEL's setting two."""

  def __init__(self, questions: Mapping[int, Sequence[Ids]]):
    """Stores the questions: example id -> the messages after replies 0, 1, ..., as ids."""
    self._questions = questions

  def num_turns(self, example_ids: np.ndarray) -> np.ndarray:
    """Returns the number of replies per dialogue, int32 [...]: one more than its questions."""
    ids = np.asarray(example_ids)
    counts = [1 + len(self._of(index)) for index in ids.reshape(-1)]
    return np.array(counts, np.int32).reshape(ids.shape)

  def __call__(self, dialogues: Dialogues) -> list[Ids]:
    """Returns the next question of each dialogue; raises ValueError if there is none."""
    messages = []
    for index, turn in zip(dialogues.example_ids, dialogues.num_replies - 1):
      questions = self._of(index)
      if turn >= len(questions):
        raise ValueError(
            f'example {index} has {len(questions)} questions after its first, and reply {turn} '
            'needs another one: num_turns must be at most one more than the questions'
        )
      messages.append(questions[turn])
    return messages

  def _of(self, index: int) -> Sequence[Ids]:
    if int(index) not in self._questions:
      raise ValueError(f'there are no questions for example {index}')
    return self._questions[int(index)]


def questions_of(dialogues: Dialogues) -> FixedQuestions:
  """Makes a user that repeats the users' messages of given dialogues, for any replies."""
  return FixedQuestions({
      int(dialogues.example_ids[row]): dialogues.turns(row)[2::2] for row in range(len(dialogues))
  })


def encode_questions(
    examples: Sequence[Example], template: chat_templates.ChatTemplate, tokenizer: Tokenizer
) -> tuple[list[Example], FixedQuestions]:
  """Puts questions into a chat template.

  Args:
    examples: examples with 'id', 'questions' (texts, at least one) and 'system' (a text, or '').
    template: the chat template.
    tokenizer: the tokenizer of the ids.

  Returns:
    (the examples with 'prompt' and 'prompt_ids', which hold the first question up to the start of
    the reply; the user that asks the other questions).

  Raises:
    ValueError: as in `dialogue_rows.make_frame`.
  """
  frame = dialogue_rows.make_frame(template, tokenizer)

  def opening(example: Example) -> list[dict[str, str]]:
    system = [{'role': 'system', 'content': example['system']}] if example['system'] else []
    return [*system, {'role': 'user', 'content': example['questions'][0]}]

  texts = template.render_many(list(map(opening, examples)), add_generation_prompt=True)
  encoded = [
      {**example, 'prompt': text, 'prompt_ids': tokenizer.encode(text)}
      for example, text in zip(examples, texts)
  ]
  return encoded, FixedQuestions({
      example['id']: [frame.write(text) for text in example['questions'][1:]]
      for example in examples
  })


class Marked:
  """Extracts a simulated user's message to the policy from its full answer.

  The user is asked to think first and to write its question after a mark. If the mark is missing,
  the full text is used and counted (`pop_unmarked`). The mark is searched for in the text: its ids
  depend on the words before and after it.
  """

  def __init__(self, mark: str, write: Callable[[str], Ids]):
    """Stores the mark, and the function from text to ids (`dialogue_rows.Frame.write`)."""
    self._mark, self._write = mark, write
    self._messages = self._unmarked = 0

  def __call__(self, text: str) -> Ids:
    """Returns the ids of the text after the last mark, or of the full text if there is none."""
    question, is_marked = after_last(text, self._mark)
    self._messages += 1
    self._unmarked += not is_marked
    return self._write(question)

  def pop_unmarked(self) -> float:
    """Returns the fraction without a mark since the last call; NaN if there were no messages."""
    fraction = self._unmarked / self._messages if self._messages else float('nan')
    self._messages = self._unmarked = 0
    return fraction


def after_last(text: str, mark: str) -> tuple[str, bool]:
  """Returns (the text after the last `mark`, or all if there is none; whether there is one).

  Asterisks and underscores right after the mark are dropped: models print it in bold.
  """
  _, last_mark, rest = text.rpartition(mark)
  return (rest.lstrip('*_') if last_mark else rest).strip(), bool(last_mark)


class ModelUser:
  """Another policy with the same vocabulary that plays the user: REFUEL's setting one.

  It reads `opening`, the transcript and `request`. Its answer, up to the stop token, is passed to
  `write`, which makes the message.
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
      sample: a jitted sampler with one sample per prompt (temperature 0.8 in the paper).
      params: parameters of the model.
      key: PRNG key for sampling noise, combined with the dialogues' seeds.
      slots: maximum prompt length; every prompt is padded to it.
      rows: dialogues per sampler call; the sampler is compiled for this batch size.
      opening: ids before the transcript.
      request: ids after the transcript.
      close_ids: ids that end the last reply in the transcript if it did not stop.
      write: ids of an answer -> ids to append.
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

      # The last part is padded by repeating its rows.
      fill = np.resize(np.arange(len(part)), self._rows)
      seeds = (part.seeds >> 1).astype(np.int32)
      rollouts = self._sample(self._params, prompts[fill], lengths[fill], seeds[fill], self._key)

      tokens, lengths, reasons = (
          np.asarray(x)[:, 0] for x in (rollouts.tokens, rollouts.lengths, rollouts.stop_reason))
      messages += [
          self._write(tokens[row, : lengths[row] - (reasons[row] == STOPPED)].tolist())
          for row in range(len(part))
      ]
    return messages

  def _prompts(self, part: Dialogues) -> tuple[np.ndarray, np.ndarray]:
    """Returns the model's prompts, left-padded to the fixed slots."""
    prompts = np.full((len(part), self._slots), part.pad_id, np.int32)
    lengths = np.zeros(len(part), np.int32)
    for row in range(len(part)):
      # The dialogue gets these ids only when the next message is appended.
      cut = part.stop_reason[row, part.num_replies[row] - 1] == TRUNCATED
      ids = np.concatenate([
          self._opening, *part.turns(row), self._close_ids if cut else [], self._request,
      ]).astype(np.int32)
      if len(ids) > self._slots:
        raise ValueError(
            f'a prompt of the user must have at most {self._slots} tokens (slots), got {len(ids)}')
      prompts[row, self._slots - len(ids):], lengths[row] = ids, len(ids)
    return prompts, lengths
