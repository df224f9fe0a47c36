"""Users for a dialogue: functions of n dialogues that give n messages, as ids to append.

A user is called with dialogues in which the policy has spoken last (`data.dialogues.Dialogues`
with one leading axis), and returns for each of them the ids that stand before the next reply,
what a chat template puts around the text included. What the policy said is decoded for a user
that reads text, and stays the ids that it was. A user that draws at random does so from
`dialogues.seeds`.

`tasks.dialogue` has a user of its own; `tasks.endpoint_user` asks a server.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.data import chat_templates, conversations, dialogue_rows, jsonl
from jaxrl_llm.data.dialogues import Dialogues
from jaxrl_llm.types import STOPPED, Example, SampleFn, Tokenizer

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


def load_questions(
    data_dir: str | pathlib.Path, *, max_turns: int = 5
) -> tuple[list[Example], int]:
  """Questions in turn, from the files below a folder of data.

  They are those of MT-bench (mt_bench/question.jsonl, two turns each), and what the users of
  preferences/dpo_en_demo.json said where they said more than one thing.

  Args:
    data_dir: the folder.
    max_turns: those with more turns are left out.

  Returns:
    (examples with 'id', 'source', 'questions' (texts, at least two) and 'system' (a text, or
    ''); how many were left out for their turns).

  Raises:
    ValueError: a file is missing or malformed, or `max_turns` is below 2.
  """
  if max_turns < 2:
    raise ValueError(f'max_turns must be at least 2, got {max_turns}')
  folder, found = pathlib.Path(data_dir), []
  path = folder / 'mt_bench' / 'question.jsonl'
  for row in jsonl.read_jsonl(path, required={'turns': list}):
    if not row['turns'] or not all(isinstance(turn, str) and turn for turn in row['turns']):
      raise ValueError(f"{path}: 'turns' must be texts, got {str(row['turns'])[:80]}")
    found.append((path.name, row['turns'], ''))
  path = folder / 'preferences' / 'dpo_en_demo.json'
  for row in conversations.read_preferences(path):
    said = lambda role, row=row: [m['content'] for m in row.messages if m['role'] == role]
    found.append((path.name, said('user'), ''.join(said('system'))))
  several = [row for row in found if len(row[1]) > 1]
  kept = [row for row in several if len(row[1]) <= max_turns]
  names = ('source', 'questions', 'system')
  examples = [{'id': index, **dict(zip(names, row))} for index, row in enumerate(kept)]
  return examples, len(several) - len(kept)


def encode_questions(
    examples: Sequence[Example], template: chat_templates.ChatTemplate, tokenizer: Tokenizer
) -> tuple[list[Example], FixedQuestions]:
  """Questions within a chat template.

  Args:
    examples: as of `load_questions`.
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


class ProgramUser:
  """A user that is a function of one dialogue's ids and a seed."""

  def __init__(self, answer: Callable[[list[np.ndarray], int], Ids]):
    """Takes (ids of [prompt, reply 0, message 0, ...], seed) -> ids to append."""
    self._answer = answer

  def __call__(self, dialogues: Dialogues) -> list[Ids]:
    """Asks the function about each dialogue."""
    return [
        self._answer(dialogues.turns(row), int(dialogues.seeds[row]))
        for row in range(len(dialogues))
    ]


def after_last(sequence: Any, mark: Any) -> Any:
  """What follows the last occurrence of `mark` (texts, or ids); all where there is none.

  A simulated user is asked to think first and then to write its question behind a mark. One that
  forgets the mark is taken at its word.
  """
  if not len(mark):
    return sequence
  if isinstance(sequence, str):
    return sequence.rpartition(mark)[2]
  for start in range(len(sequence) - len(mark), -1, -1):
    if list(sequence[start : start + len(mark)]) == list(mark):
      return sequence[start + len(mark):]
  return sequence


class ModelUser:
  """Another policy, of the same vocabulary, that plays the user: setting one.

  It reads `opening`, the transcript and `request`; what it says, up to its stop token and behind
  the last `mark`, is put between `before` and `after` and appended.
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
      mark: Ids = (),
      before: Ids = (),
      after: Ids = (),
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
      mark: ids behind which the question stands; without them all that it says is kept.
      before: what stands between the policy's reply and the question.
      after: what stands between the question and the next reply.
    """
    if rows < 1:
      raise ValueError(f'rows must be at least 1, got {rows}')
    self._sample, self._params, self._key = sample, params, key
    self._slots, self._rows = slots, rows
    self._opening, self._request, self._mark = list(opening), list(request), list(mark)
    self._before, self._after = list(before), list(after)

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
      for row in range(len(part)):
        ids = tokens[row, : lengths[row] - (reasons[row] == STOPPED)].tolist()
        messages.append([*self._before, *after_last(ids, self._mark), *self._after])
    return messages

  def _prompts(self, part: Dialogues) -> tuple[np.ndarray, np.ndarray]:
    """What the model reads, left-padded to the fixed slots."""
    prompts = np.full((len(part), self._slots), part.pad_id, np.int32)
    lengths = np.zeros(len(part), np.int32)
    for row in range(len(part)):
      ids = np.concatenate([self._opening, *part.turns(row), self._request]).astype(np.int32)
      if len(ids) > self._slots:
        raise ValueError(
            f'the user that is a model reads at most {self._slots} tokens (slots), got {len(ids)}')
      prompts[row, self._slots - len(ids):], lengths[row] = ids, len(ids)
    return prompts, lengths
