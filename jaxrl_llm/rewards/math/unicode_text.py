r"""Spells mathematics in Unicode with ASCII and LaTeX: `√12`, `x²`, `γ`, `½`, `x̄`, `∛8`.

No letter is dropped: what has no LaTeX spelling (Chinese, Cyrillic, accented words) stays.
"""

import re
import unicodedata

_VULGAR = {
    '½': '1/2', '⅓': '1/3', '⅔': '2/3', '¼': '1/4', '¾': '3/4', '⅕': '1/5', '⅖': '2/5',
    '⅗': '3/5', '⅘': '4/5', '⅙': '1/6', '⅚': '5/6', '⅛': '1/8', '⅜': '3/8', '⅝': '5/8',
    '⅞': '7/8', '⅐': '1/7', '⅑': '1/9', '⅒': '1/10',
}  # fmt: skip
_SYMBOLS = str.maketrans({
    '−': '-', '–': '-', '—': '-', '‐': '-', '‑': '-', '×': '*', '⋅': '*', '·': '*', '∙': '*',
    '•': '*', '∗': '*', '÷': '/', '⁄': '/', '∕': '/', '∞': r'\infty ', '≤': r'\le ',
    '⩽': r'\le ', '≦': r'\le ', '≥': r'\ge ', '⩾': r'\ge ', '≧': r'\ge ', '≠': r'\ne ',
    '±': r'\pm ', '∓': r'\mp ', '∪': r'\cup ', '∩': r'\cap ', '∈': r'\in ', '∅': r'\emptyset ',
    '≈': r'\approx ', '≃': r'\approx ', '°': r'^\circ ', '′': "'", '″': "''", '‴': "'''",
    '’': "'", '‘': "'", '“': '"', '”': '"', '∶': ':', '…': r'\ldots ', '⟨': r'\langle ',
    '⟩': r'\rangle ', '〈': r'\langle ', '〉': r'\rangle ', '\ufffd': ' ', 'ϖ': r'\varpi ',
    'ℝ': r'\mathbb{R}', 'ℤ': r'\mathbb{Z}', 'ℕ': r'\mathbb{N}', 'ℚ': r'\mathbb{Q}',
    'ℂ': r'\mathbb{C}', 'ℓ': r'\ell ', 'ℏ': r'\hbar ', '∂': r'\partial ', '∇': r'\nabla ',
    '∑': r'\sum ', '∏': r'\prod ', '∫': r'\int ', '→': r'\to ', '⌊': r'\lfloor ',
    '⌋': r'\rfloor ', '⌈': r'\lceil ', '⌉': r'\rceil ', '†': r'\dagger ', '⊤': r'\top ',
    '⇒': r'\Rightarrow ', '∴': r'\therefore ', '∣': '|', '∖': r'\setminus ', '、': ', ',
    '✓': ' ', '✔': ' ', '✅': ' ', '☑': ' ', '，': ', ', '；': '; ', '。': '. ',
})  # fmt: skip
_VULGAR_AFTER = re.compile(f'([0-9]?)\\s?([{"".join(_VULGAR)}])(?=([a-zA-Z\\\\(])?)')
_MICRO = re.compile(r'(?<=[0-9 ])[µμ](?=(?:m|g|s|l|L)(?![a-zA-Z]))')
_GREEK_RUN = re.compile('[\u0391-\u03a9\u03b1-\u03c9]+')
_MAX_GREEK_RUN = 3  # Longer runs are words.
_MARKS = {
    '\u0304': 'bar', '\u0305': 'bar', '\u0302': 'hat', '\u0303': 'tilde', '\u0307': 'dot',
    '\u0308': 'ddot', '\u20d7': 'vec', '\u20d1': 'vec', '\u030c': 'check', '\u0306': 'breve',
    '\u030a': 'mathring',
}  # fmt: skip
_MARKED = re.compile(
    rf'(?<![^\W\d_])([a-zA-Z]|\\[a-zA-Z]+ )([{"".join(_MARKS)}])(?![^\W\d_])'
)
_OVERLINED_DIGITS = re.compile('(?:[0-9]\u0305)+')
_RAISED_DEGREE = re.compile(r'(?<![\w)}\]])\^\{([0-9]{1,3})\}\s?√')
_RADICALS = {'√': r'\sqrt', '∛': r'\sqrt[3]', '∜': r'\sqrt[4]'}
_RADICAND = re.compile(
    r'-?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|-?[0-9]+(?:\.[0-9]+)?|[^\W\d_]'
)


def _in_indices(text: str) -> str:
  """Raised and lowered characters as `^{...}` and `_{...}`."""
  pieces, opened = [], ''
  for character in text:
    kind, _, codes = unicodedata.decomposition(character).partition(' ')
    mark = {'<super>': '^', '<sub>': '_'}.get(kind, '')
    if mark != opened:
      pieces.append(('}' if opened else '') + (mark + '{' if mark else ''))
      opened = mark
    pieces.append(''.join(chr(int(code, 16)) for code in codes.split()) if mark else character)
  return ''.join(pieces) + ('}' if opened else '')


def _greek(match: re.Match) -> str:
  if len(match[0]) > _MAX_GREEK_RUN:
    return match[0]
  names = []
  for character in match[0]:
    words = unicodedata.name(character).split()
    name = words[-1].lower().replace('lamda', 'lambda')
    names.append('\\' + (name.capitalize() if words[1] == 'CAPITAL' else name) + ' ')
  return ''.join(names)


def _roots(text: str) -> str:
  """Root signs over what follows them: all digits of a number, a letter, another root."""
  text = _RAISED_DEGREE.sub(r'\\sqrt[\1]√', text).replace(']√', ']')

  text = re.sub('(?<=[√∛∜])[\\s\u0305]+', '', text)
  for index in range(len(text) - 1, -1, -1):
    command = _RADICALS.get(text[index])
    if command is None:
      continue
    rest = text[index + 1 :]
    if rest.startswith('\\sqrt'):
      end = _end_of_root(rest)
    else:
      match = _RADICAND.match(rest)
      end = match.end() if match else 0
    text = text[:index] + (
        f'{command}{{{rest[:end]}}}{rest[end:]}' if end else f'{command} {rest}')
  return text


def _end_of_root(text: str) -> int:
  r"""Where `\sqrt{...}` or `\sqrt[3]{...}` at the start of the text ends; 0 if it does not."""
  depth = 0
  for index in range(text.find('{'), len(text)):
    depth += (text[index] == '{') - (text[index] == '}')
    if depth == 0:
      return index + 1
  return 0


def _marked(match: re.Match) -> str:
  return f'\\{_MARKS[match[2]]}{{{match[1]}}}'


def spell_out(text: str) -> str:
  """Spells a text with as few characters beyond ASCII as possible.

  Args:
    text: any text; direction marks, surrogates and unassigned characters are dropped.
  """
  text = _VULGAR_AFTER.sub(
      lambda m: (m[1] + ' ' if m[1] else '') + _VULGAR[m[2]] + (' ' if m[3] else ''), text)
  text = _in_indices(_MICRO.sub('u', text))
  text = unicodedata.normalize('NFKC', text.translate(_SYMBOLS)).translate(_SYMBOLS)

  characters = []
  for character in text:
    category = unicodedata.category(character) if not character.isascii() else ''
    if category == 'Nd':
      characters.append(str(unicodedata.decimal(character)))
    elif category not in ('Cf', 'Cs', 'Cn', 'Co'):
      characters.append(character)

  text = re.sub('(?<=[√∛∜0-9])((?:[0-9]\u0305)+)', lambda m: m[1].replace('\u0305', '')
                if m.string[m.start() - 1] in _RADICALS else m[0], ''.join(characters))
  text = _OVERLINED_DIGITS.sub(
      lambda m: '\\overline{' + m[0].replace('\u0305', '') + '}', text)
  text = _GREEK_RUN.sub(_greek, _roots(text))
  # One accented letter alone is a marked quantity (x̂), within a word it is spelling (é).
  decomposed = _MARKED.sub(_marked, unicodedata.normalize('NFD', text))
  return unicodedata.normalize('NFC', decomposed)
