"""Words, phrases and paragraphs that docs/style.md rules out, in sources, tests and pages.

Prose is comments, docstrings, strings of three or more words, and the words of function names.
"""

import ast
import dataclasses
import functools
import io
import pathlib
import re
import tokenize

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]

# Pattern -> what to write; matched in prose, in any case.
PHRASES = {
    r'laws?\b(?! of large numbers)': 'distribution',
    r'(?:stands|stood)\b': 'is in, is written to',
    r'(?:there stand|stand apart)\b': 'there is, is separate',
    r'behind\b': 'after, below',
    r'whoever\b': 'anyone who',
    r'anew\b': 'again',
    r'besides\b': 'also, except',
    r'beside\b': 'next to',
    r'alike\b': 'equally, both',
    r'whatever\b': 'any, regardless of',
    r'(?:must|may|can) (?:not )?lie\b': 'must be in',
    r'lies? (?:in|within|outside|between|beyond|at)\b': 'is in',
    r'(?<!there\s)(?:is|are) no (?!longer|more|less|better|worse|larger|smaller)\w+': 'is not a',
    r'(?:must|may) not be negative\b': 'must be non-negative',
    r'must be divided by\b': 'must be divisible by',
    r'has no part\b': 'is excluded from',
    r'counts? for nothing\b': 'is ignored',
    r'seeds? apart\b': 'held-out seed',
}

# Docstrings begin with a verb or a noun phrase, and so do descriptions of arguments.
OPENINGS = re.compile(r'(?:What|Who|How|Whether|Of)\b')
ARGUMENT_OF = re.compile(r'^ +\w+: of ', re.MULTILINE)

# Names of variables, arguments, attributes, functions and classes that do not describe them.
NAMES = frozenset({
    'said', 'told', 'found', 'kept', 'place', 'places', 'law', 'laws', 'whoever',
    'Ground', 'World', 'Maker', 'Talk', 'Judge', 'Watch', 'Stages', 'Reader',
})

# (file, word) -> why it is right there.
EXCEPTIONS = {
    ('experiments/refuel/config.py', 'law'): 'a config field',
    ('tests/experiments/refuel/config_test.py', 'law'): 'a config field',
    ('jaxrl_llm/models/pretrained/weights.py', 'Reader'): 'reads files',
    ('jaxrl_llm/rewards/math/hedges.py', 'beside'): 'a word in responses',
    ('tests/rewards/math/answer_extraction_test.py', 'is no solution'): 'a response',
}

LONG_BODY = 15  # Lines; a longer body has paragraphs.

FILES = sorted(
    path for folder in ('jaxrl_llm', 'experiments', 'tests', 'colabs')
    for path in (REPOSITORY / folder).rglob('*.py') if path != pathlib.Path(__file__).resolve())
PAGES = [REPOSITORY / 'README.md', *sorted((REPOSITORY / 'docs').rglob('*.md'))]

_PATTERN = re.compile(
    '|'.join(rf'(?P<p{i}>\b{phrase})' for i, phrase in enumerate(PHRASES)).replace(' ', r'\s+'),
    re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Offence:
  """A word in a line, and what to write."""

  line: int
  word: str
  advice: str


def _in_prose(line, text):
  """Yields the forbidden phrases of a text that begins in `line`."""
  for match in _PATTERN.finditer(text):
    advice = list(PHRASES.values())[int(match.lastgroup[1:])]
    word = ' '.join(match.group().lower().split())
    yield Offence(line + text.count('\n', 0, match.start()), word, advice)


def _docstring(node):
  """Returns the constant that documents a module, class or function, or None."""
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
  if not isinstance(node, documented) or ast.get_docstring(node, clean=False) is None:
    return None
  return node.body[0].value


def _in_docstring(line, text):
  """Yields a wrong opening, and descriptions of arguments that begin with 'of'."""
  if opening := OPENINGS.match(text):
    yield Offence(line, opening.group(), 'begin with a verb or a noun phrase')
  for match in ARGUMENT_OF.finditer(text):
    yield Offence(line + text.count('\n', 0, match.start()), match.group().strip(),
                  'begin with the thing itself')


def _defined_names(node):
  """Yields the names that a node introduces."""
  if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
    yield node.id
  elif isinstance(node, ast.arg):
    yield node.arg
  elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
    yield node.attr
  elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
    yield node.name


def _is_unbroken(node, lines):
  """Returns whether a function has a long body without a blank line."""
  body = node.body[1:] if _docstring(node) else node.body
  if not body or len(body) == 1 and isinstance(body[0], ast.Return):
    return False
  text = lines[body[0].lineno - 1 : node.end_lineno]
  return len(text) > LONG_BODY and all(line.strip() for line in text)


def source_offences(source):
  """Yields the offences in the text of a Python file."""
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      yield from _in_prose(token.start[0], token.string)

  lines = source.splitlines()
  for node in ast.walk(ast.parse(source)):
    if docstring := _docstring(node):
      yield from _in_docstring(docstring.lineno, docstring.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(' ') > 1:
      yield from _in_prose(node.lineno, node.value)
    for name in NAMES.intersection(_defined_names(node)):
      yield Offence(node.lineno, name, 'choose a name that describes it')

    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
      yield from _in_prose(node.lineno, node.name.replace('_', ' '))
      if _is_unbroken(node, lines):
        yield Offence(node.lineno, node.name, f'over {LONG_BODY} lines without a blank line')


def page_offences(text):
  """Yields the offences in a Markdown page, outside its code blocks."""
  is_code = False
  for line, content in enumerate(text.splitlines(), 1):
    if content.startswith('```'):
      is_code = not is_code
    elif not is_code:
      yield from _in_prose(line, content)


@functools.cache
def offences(path):
  """Returns the offences in a file, one line each."""
  text = path.read_text(encoding='utf-8')
  name = path.relative_to(REPOSITORY).as_posix()
  everything = page_offences(text) if path.suffix == '.md' else source_offences(text)
  return [f'{name}:{offence.line}: {offence.word!r}: {offence.advice}'
          for offence in sorted(set(everything), key=lambda offence: offence.line)
          if (name, offence.word) not in EXCEPTIONS]


def test_sources_and_pages_use_plain_words():
  lines = [line for path in FILES + PAGES for line in offences(path)]
  assert not lines, '\n'.join(lines)


def test_exceptions_are_needed():
  found = {(name, word) for name, word in EXCEPTIONS
           for offence in source_offences((REPOSITORY / name).read_text(encoding='utf-8'))
           if offence.word == word}
  assert found == set(EXCEPTIONS)


@pytest.mark.parametrize('source, line, word', [
    ('x = 1\n# The law of h.', 2, 'law'),
    ('"""Reads rows that stand\n    apart."""', 1, 'stand apart'),
    ('"""One.\n\nTwo lies in x."""', 3, 'lies in'),
    ("raise ValueError(f'{x} must not be negative, got {y}')", 1, 'must not be negative'),
    ("raise ValueError(f'{x} is no folder')", 1, 'is no folder'),
    ('def test_stops_behind_the_end():\n  pass', 1, 'behind'),
    ('"""Whether it is one."""', 1, 'Whether'),
    ('def f(x):\n  """Adds.\n\n  Args:\n    x: of the run.\n  """', 5, 'x: of'),
    ('for found in x:\n  pass', 1, 'found'),
    ('class World:\n  pass', 1, 'World'),
    ('def f():' + '\n  x = 1' * 16, 1, 'f'),
])
def test_the_check_catches(source, line, word):
  assert [(o.line, o.word) for o in source_offences(source)] == [(line, word)]


@pytest.mark.parametrize('source', [
    '# The law of large numbers.', "x = 'behind'", "laws['law'] = 1", '"""There is no file."""',
    '"""Whole rows, found in x."""', 'def f():' + '\n  x = 1' * 8 + '\n' + '\n  x = 1' * 8,
    'def f():\n  """' + 'One.\n' * 20 + '"""\n  return 1',
    'def f():\n  return [' + '\n    1,' * 20 + ']',
])
def test_the_check_allows(source):
  assert not list(source_offences(source))


def test_code_in_a_page_is_not_checked():
  assert not list(page_offences('One.\n```\nbehind\n```\nTwo.'))
  assert [o.line for o in page_offences('One.\n```\nbehind\n```\nis behind.')] == [5]
