"""Spans of replies in a text, by hand."""

from jaxrl_llm.data import template_process

_USER, _REPLY = {'role': 'user'}, {'role': 'assistant'}


def _replies(messages, texts):
  """Returns the replies of `messages`; renderings are looked up by (message count, prompt)."""
  render = lambda part, prompt: texts[len(part), prompt]
  return template_process._replies(messages, texts[len(messages), False], render)


def test_replies_are_between_their_prompt_and_the_next_message():
  texts = {(1, True): 'u:a:', (2, False): 'u:a:R1.', (3, True): 'u:a:R1.u:a:',
           (4, False): 'u:a:R1.u:a:R2.'}
  messages = [_USER, _REPLY, _USER, _REPLY]
  assert _replies(messages, texts) == [(4, 7, True), (11, 14, True)]
  # The end of the first reply is rendered differently at the end of a conversation.
  assert _replies(messages, {**texts, (2, False): 'u:a:R9!'}) == [(4, 5, False), (11, 14, True)]
  # The start of the first reply is rendered differently there.
  assert _replies(messages, {**texts, (2, False): 'u:a:<t>R1.'}) == [(11, 14, True)]
  # The prompt of the second reply is rendered differently once it has been answered.
  assert _replies(messages, {**texts, (3, True): 'u:R1.u:a:'}) == [(4, 7, True)]


def test_an_assistant_message_without_a_prompt_is_not_a_reply():
  assert _replies([_REPLY], {(1, False): 'R'}) == []
  texts = {(1, False): 'R', (1, True): 'Ra:', (2, False): 'Ra:S'}
  assert _replies([_REPLY, _REPLY], texts) == [(3, 4, True)]
  # A template that renders nothing for a reply.
  assert _replies([_USER, _REPLY], {(1, True): 'u', (2, False): 'u'}) == []
