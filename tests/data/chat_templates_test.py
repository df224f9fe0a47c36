"""Chat templates: the format by hand, and strangers' programs held to their limits."""

import time

import pytest

from jaxrl_llm.data import chat_templates

_MESSAGES = [{'role': 'user', 'content': 'Hi é\n'}, {'role': 'assistant', 'content': '{{ 7 }}'}]


def test_qwen2_by_hand():
  texts = chat_templates.render_many(
      chat_templates.QWEN2,
      [_MESSAGES, [{'role': 'system', 'content': 'S'}, {'role': 'user', 'content': 'U'}]],
      add_generation_prompt=True,
  )
  assert texts == [
      '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
      '<|im_start|>user\nHi é\n<|im_end|>\n'
      '<|im_start|>assistant\n{{ 7 }}<|im_end|>\n'
      '<|im_start|>assistant\n',
      '<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n',
  ]
  assert chat_templates.render(chat_templates.QWEN2, _MESSAGES).endswith('{{ 7 }}<|im_end|>\n')
  assert chat_templates.render_many(chat_templates.QWEN2, []) == []


def test_what_templates_of_models_use():
  template = """
  {%- set ns = namespace(count=0) -%}
  {{ bos_token }}
  {%- for message in messages %}
    {%- if message['role'] == 'skip' %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
[{{ loop.index0 }}|{{ message['content'] | trim }}|{{ {'k': message['content']} | tojson }}]
  {%- endfor %}
  {{- ns.count }}{{ eos_token }}{{ strftime_now is defined }}
  """
  messages = [_MESSAGES[0], {'role': 'skip', 'content': 'x'}, {'role': 'user', 'content': '<b>'}]
  text = chat_templates.render(
      template, messages, variables={'bos_token': '<s>', 'eos_token': '</s>'}
  )
  # The last block leaves the line end and the indentation behind it.
  assert text == '<s>[0|Hi é|{"k": "Hi é\\n"}][2|<b>|{"k": "<b>"}]2</s>False\n  '


@pytest.mark.parametrize(
    'template, message',
    [
        ("{{ ''.__class__.__mro__ }}", 'SecurityError'),
        ('{{ cycler.__init__.__globals__ }}', 'SecurityError'),
        ('{{ messages.append(1) }}', 'SecurityError'),
        ("{% include '/etc/passwd' %}", 'no loader'),
        ('{% for a in range(10**9) %}{% endfor %}', 'Range too big'),
        ('{% for %}', 'TemplateSyntaxError'),
        ("{{ raise_exception('roles must\nalternate') }}", 'TemplateError: roles must alternate'),
        ('{{ nothing.of.it }}', "'nothing' is undefined"),
        ('{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', 'RecursionError'),
        ("{{ 'a' * 10**10 }}", 'needs more than 512 MiB'),
        ("{{ '%1000000000d' % 1 }}", 'needs more than 512 MiB'),
        ("{% for a in range(99999) %}{{ 'twenty characters...' }}{% endfor %}", 'writes more than'),
    ],
)
def test_forbidden_and_failing_templates_are_one_line(template, message):
  with pytest.raises(ValueError, match=message) as error:
    chat_templates.render(template, _MESSAGES)
  assert '\n' not in str(error.value)
  assert str(error.value).startswith('chat template, conversation 0: ')


@pytest.mark.parametrize(
    'template',
    [
        # Loops in loops that write nothing, one huge power, one doubly exponential list.
        '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}',
        '{{ 9 ** (9 ** 9) }}',
        '{% set n=namespace(x=[1]) %}{% for i in range(60) %}{% set n.x=[n.x,n.x] %}{% endfor %}'
        '{{ n.x }}',
    ],
)
def test_endless_templates_are_stopped(template):
  start = time.monotonic()
  with pytest.raises(ValueError, match='took longer than 0.4 s|512 MiB'):
    chat_templates.render(template, _MESSAGES, seconds=0.4)
  assert time.monotonic() - start < 10


def test_the_failing_conversation_is_named():
  template = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}ok"
  conversations = [[{'role': 'user', 'content': text}] for text in ('good', 'bad', 'good')]
  with pytest.raises(ValueError, match='chat template, conversation 1: TemplateError: no'):
    chat_templates.render_many(template, conversations)
