r"""Separates a response's final part from the reasoning before it.

Reasoning models think inside a block and answer after it. The last tag of a response decides:

* It closes a block: the final part is the text after it. The opening tag may be in the prompt, so
  that the response begins inside the block; all text before the last closing tag is reasoning.
* It opens a block that is never closed: the response ended while thinking and has no final part.
* There is no tag: the final part is the whole response.

Only the final part is graded. An answer inside a block is never used, not even if nothing follows
the block: guesses that a tag turns into reasoning must not earn a reward.

Formats, in upper or lower case:

| tags | models |
|---|---|
| `<think>`, `<thinking>`, `<thought>`, `<reasoning>` ... `</...>` | DeepSeek-R1, Qwen3, EXAONE |
| `<seed:think>`, `◁think▷`, `[THINK]`, and with a slash | Seed-OSS, Kimi, Magistral |
| `<\|begin_of_thought\|>`, `<\|START_THINKING\|>`, `<\|inner_prefix\|>` | Sky-T1, Cohere, Apertus |
| `<\|channel\|>analysis<\|message\|>`, `<\|channel\|>final<\|message\|>` | gpt-oss (Harmony) |
| `analysisWe ... assistantfinal` | Harmony decoded without special tokens |
| `<\|channel>thought`, `<channel\|>`; `<\|open\|>think<\|sep\|>` | Gemma 4; Kimi K3 |
"""

import re

_NAME = (
    r'(?:[a-z]{1,10}:)?(?:think(?:ing)?|thoughts?|thought[_ ]process|reason(?:ing)?|rationale'
    r'|scratch_?pad|analysis|cot|chain[_ ]of[_ ]thought|inner[_ ](?:monologue|thoughts?))'
)
# The alternatives begin with fixed characters and are bounded, so that a scan is linear.
_OPENING = re.compile(
    rf'<(?!<)(?:[ \t]{{0,3}}{_NAME}(?:[ \t][^<>\n]{{0,80}})?>'
    r'|\|(?:begin_of_thought\|>|start_thinking\|>|inner_prefix\|>|open\|>think|channel>thought'
    r'|channel\|>\s{0,3}(?:analysis|commentary)))'
    r'|\[think(?:ing)?\]|◁think(?:ing)?▷',
    re.IGNORECASE,
)
_CLOSING = re.compile(
    rf'<(?!<)(?:[ \t]{{0,3}}(?:/[ \t]{{0,3}}{_NAME}[ \t]{{0,3}}|{_NAME}[ \t]{{0,3}}/)>'
    r'|\|(?:end_of_thought\|>|end_thinking\|>|inner_suffix\|>|close\|>think(?:<\|sep\|>)?'
    r'|channel\|>\s{0,3}final[^<\n]{0,40}(?:<\|constrain\|>[^<\n]{0,40})?)'
    r'|channel\|>)'
    r'|\[/think(?:ing)?\]|◁/think(?:ing)?▷|assistantfinal',
    re.IGNORECASE,
)
# Harmony without special tokens begins with the channel's name, glued to the first word.
_GLUED_ANALYSIS = re.compile(r'\s{0,9}analysis[A-Z]')
_CONTROL_TOKENS = re.compile(
    r'<\|(?:message|return|end|sep|im_end|eot_id|endoftext|(?:begin|end)_of_solution'
    r'|(?:start|end)_response|(?:open|close)\|>response<\|sep)\|>',
    re.IGNORECASE,
)


def final_part(response: str) -> str:
  """The part of a response that is meant as its answer.

  Args:
    response: the response without its prompt.

  Returns:
    The text after the last reasoning block, without control tokens: '' if the last block is not
    closed, the whole response if there is no block.
  """
  start = 0
  for closing in _CLOSING.finditer(response):
    start = closing.end()

  if _OPENING.search(response, start) or (not start and _GLUED_ANALYSIS.match(response)):
    return ''
  return _CONTROL_TOKENS.sub(' ', response[start:]) if start else response
