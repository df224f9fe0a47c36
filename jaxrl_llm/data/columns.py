"""Decides whether unread columns of a row, and keys of a message, are ignored or rejected.

A row is more than its prompt and its response: a system text, a verdict or an image in another
column changes what a model should learn from it. A reader therefore lists the columns that it
read, and `check` examines the others. A column is ignored only if

  - it is empty: null, NaN, blank text, [] or {} (or an object of such values);
  - it is in `HARMLESS`, or its name ends like one (`_ENDINGS`); scores and counts must be numbers
    (`rating: "bad"` is rejected);
  - it is a favourable verdict: a `GOOD` column is true, or a `BAD` column is false;
  - it is a `METADATA` object without columns that change the meaning.

Anything else, including an unknown column, is a one-line error. If the user names the columns to
read (`check_named`), only columns that are known to change the meaning are rejected.

Names are compared in lower case with underscores: createdAt, created-at and created_at are equal.
A prefix or suffix `chosen` or `rejected` is ignored: score_chosen, rejected-model.
"""

import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

# Columns that never change the conversation. The groups in `NUMERIC` must be numbers, flags true
# or false.
HARMLESS: dict[str, tuple[str, ...]] = {
    'identifiers': (
        'id', 'ids', 'idx', 'index', 'uid', 'uuid', 'guid', 'qid', 'hash', 'sha', 'index_level_0',
        'conversation_hash', 'prompt_hash', 'content_hash', 'md5', 'sha256', 'line_number',
        'row_id', 'example_id', 'sample_id', 'item_id', 'data_id', 'record_id', 'unique_id',
        'prompt_id', 'question_id', 'query_id', 'problem_id', 'instruction_id', 'task_id',
        'completion_id', 'response_id', 'answer_id', 'conversation_id', 'conv_id', 'dialogue_id',
        'dialog_id', 'session_id', 'thread_id', 'message_id', 'message_tree_id', 'parent_id',
        'turn_id', 'turn_identifier', 'group_id', 'user_id', 'annotator_id', 'worker_id',
        'hashed_ip', 'doc_id', 'text_id', 'source_id', 'original_id', 'original_index',
        'raw_index',
    ),
    'sources': (
        'source', 'sources', 'data_source', 'dataset', 'dataset_name', 'dataset_id', 'data_set',
        'subset', 'origin', 'original_source', 'provenance', 'url', 'urls', 'link', 'links',
        'filename', 'file_name', 'repo', 'license', 'licence', 'author', 'username',
        'avatar_url', 'annotator', 'contributor', 'country', 'state', 'subreddit', 'creator',
    ),
    'times': (
        'timestamp', 'time', 'date', 'datetime', 'year', 'created', 'created_at', 'created_utc',
        'created_date', 'create_time', 'updated_at', 'update_time', 'last_modified', 'modified',
        'published_at', 'submitted_at', 'duration', 'latency',
    ),
    'languages': ('lang', 'language', 'languages', 'locale'),
    'groups': (
        'split', 'subsplit', 'fold', 'category', 'categories', 'subcategory', 'type',
        'subtype', 'kind', 'domain', 'subdomain', 'field', 'subject', 'topic', 'topics', 'tag',
        'tags', 'level', 'difficulty', 'task_type', 'task_name', 'task_category', 'problem_type',
        'question_type', 'prompt_type', 'ability', 'skill', 'skills', 'intent', 'cluster',
        'version',
    ),
    'flags': (
        'in_gsm8k_train', 'custom_instruction', 'skip_prompt_formatting', 'redacted', 'synthetic',
        'parallel_tool_calls',
    ),
    'models': (
        'model', 'models', 'model_name', 'model_id', 'model_version', 'generator', 'generated_by',
        'generation_model', 'response_model', 'reward_model', 'labelling_model', 'teacher', 'judge',
        'judge_model', 'engine', 'temperature', 'top_p', 'top_k', 'seed', 'max_tokens',
        'max_new_tokens',
    ),
    'scores': (
        'score', 'scores', 'rating', 'ratings', 'avg_rating', 'average_rating', 'overall_score',
        'overall_rating', 'reward', 'rewards', 'rank', 'quality', 'quality_score', 'helpfulness',
        'correctness', 'coherence', 'complexity', 'verbosity', 'honesty', 'truthfulness',
        'instruction_following', 'toxicity', 'confidence', 'perplexity', 'similarity', 'int_score',
        'edu_score', 'ifd', 'votes', 'upvotes', 'downvotes', 'likes', 'views', 'num_votes',
        'review_count', 'correctness_count', 'min_neighbor_distance', 'pass_rate', 'solve_rate',
        'accuracy', 'mean_reward',
    ),
    'counts': (
        'length', 'len', 'tokens', 'usage', 'cost', 'num_tokens', 'n_tokens', 'token_count',
        'tokens_count', 'token_length', 'repeat_count', 'num_turns', 'n_turns', 'turn',
        'turn_count', 'num_messages', 'num_words', 'word_count', 'num_chars', 'char_count',
        'prompt_tokens', 'completion_tokens', 'response_tokens', 'total_tokens', 'input_tokens',
        'output_tokens', 'reasoning_tokens', 'prompt_length', 'input_length', 'context_length',
        'response_length', 'completion_length', 'instruction_length', 'output_length',
        'reference_response_token_len',
    ),
}
NUMERIC = ('scores', 'counts')
METADATA = (
    'meta', 'metadata', 'meta_data', 'extra_info', 'info', 'distilabel_metadata',
    'gen_input_configs', 'gen_response_configs', 'generation_config',
)

# Last words of other names in these groups: min_similar_uuid, instruct_reward, code_generator.
# Words that may be part of a question are excluded (car_model, box_length), and so is id, which
# may be a verdict (better_response_id).
_ENDINGS = {
    'identifiers': ('uuid', 'hash'),
    'times': ('timestamp', 'at'),
    'models': ('generator',),
    'scores': ('score', 'scores', 'rating', 'ratings', 'reward', 'rewards'),
    'counts': ('len', 'tokens'),
}

# Verdicts on a row or a message: only good ones are learned.
GOOD = (
    'label', 'labels', 'kto_tag', 'kto_label', 'completion_label', 'is_correct', 'correct',
    'is_good', 'good', 'is_accepted', 'accepted', 'accept', 'approved', 'is_valid', 'valid',
    'passed', 'is_passed', 'success', 'successful', 'is_success', 'solved', 'is_solved', 'verified',
    'is_verified', 'is_chosen', 'chosen', 'preferred', 'is_preferred', 'desirable', 'is_desirable',
    'is_safe', 'safe', 'is_helpful', 'thumbs_up', 'review_result', 'is_positive', 'is_complete',
    'is_reasoning_complete', 'keep',
)
BAD = (
    'rejected', 'is_rejected', 'reject', 'is_bad', 'bad', 'is_wrong', 'wrong', 'incorrect',
    'is_incorrect', 'is_negative', 'negative', 'undesirable', 'flagged', 'is_flagged', 'toxic',
    'is_toxic', 'harmful', 'is_harmful', 'unsafe', 'is_unsafe', 'deleted', 'is_deleted', 'removed',
    'failed', 'is_failed', 'error', 'is_error', 'has_error', 'truncated', 'is_truncated', 'refusal',
    'is_refusal', 'hallucination', 'is_hallucination', 'spam', 'is_spam', 'thumbs_down', 'ignore',
    'exclude', 'skip',
)
_YES = (True, 1, 'true', 'yes', 'good', 'correct', '1')
_NO = (False, 0, 'false', 'no', '0')
FINISHED = ('stop', 'stop_sequence', 'end_turn', 'eos', 'eos_token', 'complete', 'completed')
_FINISH = ('finish_reason', 'stop_reason')

# Weight of a row: only 1 and true, the weight of all rows, are accepted. A margin of 0 is none.
_WEIGHTS = ('weight', 'weights', 'loss_weight', 'sample_weight', 'importance')
TRAIN = ('train', 'trainable', 'training', 'is_trainable', 'loss', 'compute_loss', 'learn')

# Columns that no reader supports.
UNSUPPORTED = (
    'tools', 'tool', 'functions', 'function', 'available_tools', 'tool_choice', 'tool_calls',
    'tool_call', 'tool_call_id', 'function_call', 'image', 'images', 'image_url', 'image_path',
    'video', 'videos', 'audio', 'audios', 'documents', 'document', 'attachments', 'files',
)

# Parts of a conversation that several forms store in separate columns.
SYSTEM = ('system', 'system_prompt', 'system_message')
EXTRA = ('input', 'context')
REASONING = ('reasoning_content', 'reasoning', 'thinking')
_CONVERSATION = (*SYSTEM, *EXTRA, *REASONING, 'history')

_DEPTH = 20  # Objects and lists that are nested more deeply are not examined.
_AFFIX = re.compile(r'^(chosen|rejected)_|_(chosen|rejected)$')
_GROUPS = {name: group for group, names in HARMLESS.items() for name in names}
_ENDING_GROUPS = {ending: group for group, endings in _ENDINGS.items() for ending in endings}


def is_empty(value: Any, depth: int = 0) -> bool:
  """True for an empty value: null, NaN, blank text, [], {} or an object of such values."""
  if isinstance(value, str):
    return not value.strip()
  if isinstance(value, Mapping):
    return depth < _DEPTH and all(is_empty(part, depth + 1) for part in value.values())
  return value is None or value == [] or isinstance(value, float) and math.isnan(value)


def shown(value: Any) -> str:
  """Formats a value for an error, on one line and shortened."""
  try:
    text = repr(value)
  except RecursionError:
    text = f'a nested {type(value).__name__}'
  return text if len(text) <= 60 else f'{text[:60]}...'


def check(
    row: Mapping[str, Any], used: Collection[str], *, where: str = '', texts: Collection[str] = ()
) -> None:
  """Rejects columns that are neither used nor known to be harmless.

  Args:
    row: a row of a file, or a message.
    used: columns that the caller reads or checks itself.
    where: the message, such as 'messages[1]'; '' for a row.
    texts: stripped texts that an unknown column may repeat.

  Raises:
    ValueError: one line with the column, its value and the rule; it names all unknown columns.
  """
  unknown = [
      key for key, value in row.items() if key not in used and not _is_ignored(key, value, where)
  ]
  for key in unknown:
    _check_conversation(key, row[key], where)

  unknown = [
      key for key in unknown if not isinstance(row[key], str) or row[key].strip() not in texts
  ]
  if unknown:
    first, *others = unknown
    also = f'; also unknown: {names(others)}' if others else ''
    raise ValueError(
        f'unknown column {_field(first, where)!r}, got {shown(row[first])}: an unused column must '
        'be empty or harmless (HARMLESS in jaxrl_llm/data/columns.py); remove it from the file if '
        f'it does not change the conversation{also}'
    )


def names(keys: Iterable[str]) -> str:
  """Formats column names for an error, on one line and shortened."""
  text = ', '.join(key if key.isprintable() else repr(key) for key in keys)
  return text if len(text) <= 300 else f'{text[:300]}...'


def check_named(row: Mapping[str, Any], used: Collection[str], *, where: str = '') -> None:
  """Rejects columns that are not used and are known to change the meaning; see `check`."""
  for key, value in row.items():
    if key not in used and not _is_ignored(key, value, where):
      _check_conversation(key, value, where)


def check_prompt(row: Mapping[str, Any], used: Collection[str]) -> None:
  """Rejects unused columns that would be part of a prompt, for rows that are not learned from."""
  for key, value in row.items():
    if key in used or _says_nothing(_name(key), value):
      continue
    if _name(key) in UNSUPPORTED:
      _check_known(key, _name(key), value, '')
    _check_conversation(key, value, '')


def _check_conversation(key: str, value: Any, where: str) -> None:
  """Raises ValueError if an unread column is part of the conversation."""
  if is_conversation(key):
    raise ValueError(
        f'the column {_field(key, where)!r} would be lost, got {shown(value)}: make it part of the '
        'messages, or remove it from the file if it does not change the conversation'
    )


def _says_nothing(name: str, value: Any) -> bool:
  """True if a value is empty; for unsupported columns such as tools, the text '[]' is empty too."""
  return is_empty(value) or name in UNSUPPORTED and value in ('[]', '{}', 'null')


def is_conversation(key: str) -> bool:
  """True if a column is part of the conversation: a system text, input, context, history ..."""
  return _name(key) in _CONVERSATION


def _is_ignored(key: str, value: Any, where: str) -> bool:
  """True if an unread column may be ignored; False if it is unknown.

  Raises:
    ValueError: the column is known to change the meaning.
  """
  name = _name(key)
  if _says_nothing(name, value):
    return True
  if name in METADATA and isinstance(value, Mapping):
    if where.count('.') > _DEPTH:
      raise ValueError(f'{where[:60]!r} is nested too deeply')
    check_named(value, (), where=_field(key, where))
    return True
  if name in ('chosen', 'rejected') and not isinstance(value, (bool, int, float)):
    return False  # A reply, not a verdict.

  _check_known(_field(key, where), name, value, where)
  if name in (*GOOD, *BAD, *_FINISH, *_WEIGHTS, *TRAIN, 'margin'):
    return True

  group = _group(name)
  if group in NUMERIC and not _is_numeric(value):
    raise ValueError(
        f'{_field(key, where)!r} must be numbers, which are ignored, got {shown(value)}: remove '
        'the column from the file if it does not change the conversation'
    )
  if group == 'flags' and not isinstance(value, (bool, int)):
    raise ValueError(f'{_field(key, where)!r} must be true or false, got {shown(value)}')

  return group is not None


def _group(name: str) -> str | None:
  """Returns the group of a harmless column, by its whole name or its last word."""
  without_affix = _AFFIX.sub('', name)
  stem, _, ending = without_affix.rpartition('_')
  if stem in ('', *GOOD, *BAD, *UNSUPPORTED, *_CONVERSATION):  # label_score, image_tokens
    ending = ''
  return _GROUPS.get(name) or _GROUPS.get(without_affix) or _ENDING_GROUPS.get(ending)


def _check_known(field: str, name: str, value: Any, where: str) -> None:
  """Raises ValueError if a value of a known column changes the meaning."""
  if name in UNSUPPORTED:
    are = 'are' if name.endswith('s') and not where else 'is'
    raise ValueError(f'{field!r} {are} not supported, got {shown(value)}')

  allowed = ''
  verdict = value.strip().lower() if isinstance(value, str) else value
  if name in GOOD and verdict not in _YES:
    allowed = 'true or 1'
  elif name in BAD and verdict not in _NO:
    allowed = 'false or 0'
  elif name in _FINISH and value not in FINISHED:
    allowed = f'one of {", ".join(FINISHED)}'

  if allowed:
    raise ValueError(
        f'{field!r} must be {allowed}, got {shown(value)}: responses marked as bad are not '
        "learned; remove such rows, or convert them to preferences ('chosen' and 'rejected')"
    )

  if name in (*_WEIGHTS, *TRAIN) and value not in (True, 1):
    raise ValueError(
        f'{field!r} must be 1 or true (other weights are not supported), got {shown(value)}: '
        'remove the row from the file if it is not to be learned'
    )
  if name == 'margin' and value != 0:
    raise ValueError(f'{field!r} must be 0 (margins are not supported), got {shown(value)}')


@functools.lru_cache(maxsize=1000)
def _name(key: str) -> str:
  """Normalises a column name to the spelling of the lists above."""
  name = re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', key).lower()
  return re.sub(r'[\W_]+', '_', name).strip('_')


def _field(key: str, where: str) -> str:
  return f'{where}.{key}' if where else key


def _is_numeric(value: Any, depth: int = 0) -> bool:
  """True if a value is a number, possibly as text, or contains only such values."""
  if isinstance(value, (list, Mapping)):
    parts = value.values() if isinstance(value, Mapping) else value
    return depth < _DEPTH and all(_is_numeric(part, depth + 1) for part in parts)
  if isinstance(value, str) and value.strip().upper() not in ('', 'N/A', 'NA', 'NAN', 'NONE'):
    try:
      return math.isfinite(float(value))
    except ValueError:
      return False
  return not isinstance(value, bool)
