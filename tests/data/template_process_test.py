"""Where replies lie in a text, by hand."""

from jaxrl_llm.data import template_process

_USER, _REPLY = {'role': 'user'}, {'role': 'assistant'}


def _replies(messages, texts):
  """The replies among `messages`, of which renderings are looked up by (how many, prompt)."""
  render = lambda part, prompt: texts[len(part), prompt]
  return template_process._replies(messages, texts[len(messages), False], render)


def test_replies_lie_between_their_prompt_and_what_follows():
  texts = {(1, True): 'u:a:', (2, False): 'u:a:R1.', (3, True): 'u:a:R1.u:a:',
           (4, False): 'u:a:R1.u:a:R2.'}
  messages = [_USER, _REPLY, _USER, _REPLY]
  assert _replies(messages, texts) == [(4, 7, True), (11, 14, True)]
  # The first is written in another way at the end of a conversation.
  assert _replies(messages, {**texts, (2, False): 'u:a:R9!'}) == [(4, 5, False), (11, 14, True)]
  # It begins in another way there; nothing of it is the same.
  assert _replies(messages, {**texts, (2, False): 'u:a:<t>R1.'}) == [(11, 14, True)]
  # The prompt of the second is written in another way when it has been answered.
  assert _replies(messages, {**texts, (3, True): 'u:R1.u:a:'}) == [(4, 7, True)]


def test_a_reply_to_nothing_is_none():
  assert _replies([_REPLY], {(1, False): 'R'}) == []
  texts = {(1, False): 'R', (1, True): 'Ra:', (2, False): 'Ra:S'}
  assert _replies([_REPLY, _REPLY], texts) == [(3, 4, True)]
  # A template that writes nothing for it leaves nothing to say.
  assert _replies([_USER, _REPLY], {(1, True): 'u', (2, False): 'u'}) == []
