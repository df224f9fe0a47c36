r"""Removes LaTeX that changes the look of mathematics and not its meaning.

Colours, sizes, fonts, spaces, tags and phantoms. One scan from left to right with the braces
matched beforehand, so that nesting costs linear time.
"""

import re

# Command -> which of its arguments stay; the others are dropped with their content.
_ARGUMENTS: dict[str, tuple[bool, ...]] = {
    **dict.fromkeys(
        ['text', 'textbf', 'textit', 'textrm', 'textsf', 'texttt', 'textsc', 'textnormal',
         'textup', 'textmd', 'textsl', 'mbox', 'hbox', 'mathrm', 'mathbf', 'mathit', 'mathsf',
         'mathtt', 'mathnormal', 'operatorname', 'boldsymbol', 'boxed', 'fbox', 'emph',
         'underline', 'bm', 'pmb', 'bold', 'ensuremath', 'mathop', 'mathord', 'mathrel',
         'mathbin', 'mathopen', 'mathclose', 'mathinner', 'mathstrut', 'smash', 'mathclap',
         'mathllap', 'mathrlap', 'rlap', 'llap', 'clap', 'framebox', 'uline', 'bbox', 'Bbb'],
        (True,)),
    **dict.fromkeys(['textcolor', 'colorbox', 'scalebox', 'raisebox', 'href', 'style', 'class',
                     'cssId'],
                    (False, True)),
    'fcolorbox': (False, False, True),
    **dict.fromkeys(['phantom', 'hphantom', 'vphantom', 'tag', 'label', 'ref', 'hspace', 'vspace',
                     'fontsize', 'selectfont', 'mathversion', 'footnote', 'hskip', 'color',
                     'require'],
                    (False,)),
}  # fmt: skip
# Dropped alone; they have no arguments.
_SWITCHES = frozenset([
    'tiny', 'scriptsize', 'footnotesize', 'small', 'normalsize', 'large', 'Large', 'LARGE', 'huge',
    'Huge', 'bf', 'it', 'rm', 'sf', 'tt', 'sc', 'em', 'bfseries', 'itshape', 'mdseries', 'rmfamily',
    'sffamily', 'ttfamily', 'upshape', 'boldmath', 'unboldmath', 'cal', 'displaystyle',
    'textstyle', 'scriptstyle', 'scriptscriptstyle', 'limits', 'nolimits', 'nonumber', 'notag',
    'strut', 'null', 'relax', 'centering', 'noindent', 'par', 'hfill', 'hfil', 'vfill', 'newline',
    'left', 'right', 'middle', 'bigl', 'bigr', 'bigm', 'Bigl', 'Bigr', 'Bigm', 'big', 'Big',
    'biggl', 'biggr', 'bigg', 'Biggl', 'Biggr', 'Bigg', 'allowbreak', 'nobreak', 'linebreak',
    'protect', 'hline', 'quad', 'qquad', 'thinspace', 'enspace', 'enskip', 'medspace',
    'thickspace', 'negthinspace', 'negmedspace', 'negthickspace', 'space', 'nobreakspace',
])  # fmt: skip
_DELIMITER_SIZES = frozenset([
    'left', 'right', 'middle', 'bigl', 'bigr', 'Bigl', 'Bigr', 'big', 'Big', 'biggl', 'biggr',
])  # fmt: skip
_COMMAND = re.compile(r'\\([a-zA-Z]+)(\*?)')
_LENGTH = re.compile(r'\s?\[[^\[\]]{0,40}\]')
_WORD = re.compile(r'\s*(?:\\[a-zA-Z]+|[^\s{}\\])')


def _matching_braces(text: str) -> dict[int, int]:
  """Index of the closing brace by that of each opening one; escaped braces are ignored."""
  stack, closing, index = [], {}, 0
  while index < len(text):
    if text[index] == '\\':
      index += 1
    elif text[index] == '{':
      stack.append(index)
    elif text[index] == '}' and stack:
      closing[stack.pop()] = index
    index += 1
  return closing


def remove(text: str) -> str:
  r"""`text` without formatting commands: `\textcolor{red}{\large 15}` is `15`.

  An argument that stays loses its braces, except in an index or exponent (`x_\text{max}`).
  A command whose braces do not close stays as it is.
  """
  closing = _matching_braces(text)
  deleted = bytearray(len(text))  # 1: becomes nothing, 2: becomes a space.
  position = 0
  while (match := _COMMAND.search(text, position)) is not None:
    name, start, position = match[1], match.start(), match.end()
    if start and text[start - 1] == '\\' and not (start > 1 and text[start - 2] == '\\'):
      position = start + 1  # The second backslash of a row's end.
      continue

    if name in _SWITCHES:
      end = match.end(1)
      if name in _DELIMITER_SIZES and text[end : end + 1] == '.':
        end += 1
      _mark(deleted, start, end, 2)
    elif name in _ARGUMENTS:
      _arguments(text, closing, deleted, start, match.end(), _ARGUMENTS[name])

  return ''.join('' if mark == 1 else ' ' if mark == 2 else character
                 for character, mark in zip(text, deleted))


def _mark(deleted: bytearray, start: int, end: int, last: int) -> None:
  for index in range(start, end):
    deleted[index] = 1
  deleted[end - 1] = last


def _arguments(text: str, closing: dict[int, int], deleted: bytearray, start: int, end: int,
               keeps: tuple[bool, ...]) -> None:
  """Deletes a command from `start` to `end`, and those of its arguments that do not stay."""
  spans, position = [], end
  while match := _LENGTH.match(text, position):  # Options such as \colorbox[rgb]{..}.
    position = match.end()

  for _ in keeps:
    while position < len(text) and text[position].isspace():
      position += 1
    if position >= len(text):
      break
    if text[position] == '{':
      if position not in closing:
        return
      spans.append((position, closing[position]))
      position = closing[position] + 1
    elif (match := _WORD.match(text, position)) and len(keeps) > 1:
      spans.append((position, match.end() - 1))
      position = match.end()
    else:
      break

  # Colours do not part a number; words do: `5\text{cm}`.
  parts = len(keeps) == 1 or not (start and text[start - 1] in '0123456789.}')
  _mark(deleted, start, spans[0][0] if spans else end, 1 + parts)
  in_index = text[:start].rstrip()[-1:] in ('_', '^')
  for keep, (left, right) in zip(keeps, spans):
    if not keep:
      _mark(deleted, left, right + 1, 1 + parts)
    elif text[left] == '{' and not in_index:
      deleted[left] = 1 + parts
      deleted[right] = 1 + (len(keeps) == 1 or text[right - 1] not in '0123456789.')
