"""Chat templates: goldens of transformers, marks by hand, and limits on untrusted templates."""

import json
import subprocess
import time

import pytest

from jaxrl_llm.data import chat_templates, tokenizers
from tests.golden import chat_cases

_MESSAGES = [{'role': 'user', 'content': 'Hi é\n'}, {'role': 'assistant', 'content': '{{ 7 }}'}]
_GOLDENS = json.loads((chat_cases.FOLDER / 'goldens.json').read_text())['cases']
# Like Phi-3's: the text ends with another token, unless it is a prompt for a reply.
_WITH_TAIL = """
{%- for m in messages %}{{ m.role[0] ~ sign ~ m.content ~ stop ~ '\n' }}{% endfor %}
{{- ('a' ~ sign) if add_generation_prompt else tail }}"""


def _template(source, **variables):
  return chat_templates.ChatTemplate(source, variables)


def _turns(*contents):
  roles = ('user', 'assistant')
  return [{'role': roles[i % 2], 'content': content} for i, content in enumerate(contents)]


@pytest.fixture(scope='module')
def case(request, tmp_path_factory):
  """Maps the name of a case to (its template, its tokenizer)."""
  folder = tmp_path_factory.mktemp('tokenizers')
  loaded = {}

  def get(name):
    tokenizer, source, variables = chat_cases.CASES[name]
    if tokenizer not in loaded:
      real = None
      if chat_cases.needs_real(tokenizer):
        real = request.getfixturevalue('data_dir') / 'tokenizers'
      directory = chat_cases.write(tokenizer, folder / tokenizer, real)
      loaded[tokenizer] = tokenizers.load_tokenizer(directory)
    path = chat_cases.FOLDER / 'templates' / f'{source}.jinja'
    template = chat_templates.load(folder / tokenizer, file=path)
    return _template(template.source, **{**template.variables, **variables}), loaded[tokenizer]

  return get


def _marked(template, tokenizer, messages):
  """Returns a conversation's text with '|' for each part that is not marked."""
  ids, mask = chat_templates.encode_conversation(template, tokenizer, messages)
  text = template.render(messages)
  assert ids == tokenizer.encode(text)
  assert len(mask) == len(ids) and set(mask) <= {0, 1}
  marked = [False] * len(text)
  for (first, last), mark in zip(tokenizer.encode_with_offsets(text)[1], mask):
    marked[first:last] = [bool(mark)] * (last - first)
  parts = [c if m else '|' for c, m in zip(text, marked)]
  return ''.join(c for i, c in enumerate(parts) if marked[i] or i == 0 or marked[i - 1])


@pytest.mark.parametrize('name', chat_cases.CASES)
def test_texts_and_ids_are_those_of_transformers(name, case):
  template, tokenizer = case(name)
  accepted = {}
  for key, messages in chat_cases.CONVERSATIONS.items():
    golden = _GOLDENS[name][key]
    if 'error' in golden:
      with pytest.raises(ValueError) as error:
        template.render(messages)
      assert str(error.value).endswith(f'TemplateError: {golden["error"]}')
    else:
      accepted[key] = messages
  assert len(accepted) >= 3

  texts = template.render_many(list(accepted.values()))
  prompts = template.render_many(list(accepted.values()), add_generation_prompt=True)
  for key, text, prompt in zip(accepted, texts, prompts):
    golden = _GOLDENS[name][key]
    assert (text, tokenizer.encode(text)) == (golden['text'], golden['ids'])
    count, more = golden['prompt']
    assert prompt == text[:count] + more
    count, more = golden['prompt_ids']
    assert tokenizer.encode(prompt) == golden['ids'][:count] + more


def test_there_is_one_start_token(case):
  for name in ('llama2', 'llama3', 'mistral', 'gemma', 'deepseek'):
    template, tokenizer = case(name)
    ids = tokenizer.encode(template.render(_turns('x'), add_generation_prompt=True))
    (start,) = tokenizer.start_ids
    assert ids[0] == start and ids.count(start) == 1


@pytest.mark.parametrize(
    'name, conversation, expected',
    [
        ('qwen25', 'long', '|It is 3.5,\n\nor so. <|im_end|>|I will not.<|im_end|>'
                           '|the end<|im_end|>|'),
        # The user's message after a reply is not learned.
        ('qwen25', 'question', '|two<|im_end|>|'),
        # Reasoning remains after the last question only: earlier replies are context.
        ('qwen3', 'thoughts', '|<think>\nmore\n</think>\n\nNo.<|im_end|>|'),
        ('qwen3', 'fields', '|<think>\nI call\n</think>\n\ndone<|im_end|>'
                            '|<think>\nread it\n</think>\n\nIt says 1.<|im_end|>|'),
        ('qwen3', 'long', '|<think>\n\n</think>\n\nthe end<|im_end|>|'),
        ('qwen3_short', 'long', '|the end<|im_end|>|'),
        ('llama2', 'long', '| It is 3.5,\n\nor so. </s>| I will not. </s>| the end </s>'),
        ('llama3', 'long', '|It is 3.5,\n\nor so.<|eot_id|>|I will not.<|eot_id|>'
                           '|the end<|eot_id|>'),
        # The model would have stopped in the middle of this reply.
        ('llama3', 'tokens', '|x <|eot_id|>|'),
        # The system message moves to the last question, so that earlier prompts were different.
        ('mistral', 'long', '| the end</s>'),
        ('mistral', 'thoughts', '| <think>\nIt is easy.\n</think>\n\nThe answer.</s>'
                                '| <think>\nmore\n\n</think>\n\nNo.</s>'),
        ('gemma', 'thoughts', '|<think>\nIt is easy.\n</think>\n\nThe answer.<end_of_turn>'
                              '|<think>\nmore\n\n</think>\n\nNo.<end_of_turn>|'),
        ('deepseek_old', 'thoughts', '|\n\nThe answer.<｜end▁of▁sentence｜>'
                                     '|\n\nNo.<｜end▁of▁sentence｜>'),
        ('zephyr', 'short', '|42</s>|'),
        ('gpt2_zephyr', 'long', '|It is 3.5,\n\nor so. <|endoftext|>|\nI will not.<|endoftext|>'
                                '|the end<|endoftext|>|'),
        ('features', 'question', '|two<|im_end|>|'),
    ],
)
def test_learned_tokens(name, conversation, expected, case):
  assert _marked(*case(name), chat_cases.CONVERSATIONS[conversation]) == expected


@pytest.mark.parametrize(
    'name, conversation',
    [
        ('deepseek', 'short'),  # Its prompt ends with <think>, which its replies do not contain.
        ('qwen3_short', 'thoughts'),  # Its prompt ends with empty reasoning.
        ('mistral', 'question'),  # The system message was before the first question then.
    ],
)
def test_nothing_to_learn_is_an_error(name, conversation, case):
  template, tokenizer = case(name)
  messages = chat_cases.CONVERSATIONS[conversation]
  with pytest.raises(ValueError, match='conversation 1: nothing would be learned') as error:
    chat_templates.encode_conversations(template, tokenizer, [_turns('a question'), messages])
  assert '\n' not in str(error.value)


# A template that reads the reasoning under each of the names.
_READS = """
{%- for m in messages %}{{ m.role[0] ~ ':\\n' }}{% if m.NAME and (loop.last or keep) -%}
<think>{{ m.NAME }}</think>{% endif %}{{ m.content ~ '<|im_end|>' }}{% endfor %}
{{- 'a:\\n' if add_generation_prompt }}"""


def _thinks(content, thoughts, key='reasoning_content', **more):
  return {'role': 'assistant', 'content': content, key: thoughts, **more}


@pytest.mark.parametrize('read', ['reasoning_content', 'thinking', 'reasoning'])
@pytest.mark.parametrize('given', ['reasoning_content', 'thinking', 'reasoning'])
def test_reasoning_is_learned_under_any_name(case, read, given):
  tokenizer = case('qwen25')[1]
  template = _template(_READS.replace('NAME', read), keep=True)
  # The second reasoning equals the content; its position is that of the reasoning.
  messages = [*_turns('Q'), _thinks('A', 'why', given), *_turns('Q'), _thinks('B', 'B', given)]
  assert _marked(template, tokenizer, messages) == (
      '|<think>why</think>A<|im_end|>|<think>B</think>B<|im_end|>')


@pytest.mark.parametrize('thoughts', [
    'One and one\n\nmake two.', '\n two ', ' Größe 東京 😀', '2', 'user', 'a\n</think>\n\nb',
])
def test_the_reasoning_of_the_last_turn_is_learned_in_qwen3(case, thoughts):
  template, tokenizer = case('qwen3')
  messages = [*_turns('q', 'r', 'user'), _thinks('2', thoughts)]
  stripped = thoughts.strip('\n')
  assert _marked(template, tokenizer, messages) == f'|<think>\n{stripped}\n</think>\n\n2<|im_end|>|'


@pytest.mark.parametrize('name, messages, words', [
    # A template that reads none of the names, even if the content has the same words.
    ('qwen25', [*_turns('q'), _thinks('r', 'why')], 'message 1 .*does not write reasoning_content'),
    ('qwen25', [*_turns('q'), _thinks('2', '2')], 'message 1 .*does not write reasoning_content'),
    ('qwen25', [*_turns('q'), _thinks('why not', 'why', 'thinking')], '.*make the reasoning part'),
    ('qwen25', chat_cases.CONVERSATIONS['fields'], 'message 1 .*does not write reasoning_content'),
    ('deepseek_old', [*_turns('q'), _thinks('r', 'why', 'reasoning')], '.*choose another template'),
    # One that removes it from past turns.
    ('qwen3', [*_turns('q'), _thinks('r', 'why'), *_turns('q', 'r')],
     r"message 1 .*removes it if the conversation continues: .*\('train': false\)"),
    ('qwen3', [*_turns('q', 'r', 'q'), _thinks('r', 'why'), *_turns('q'), _thinks('r', 'why')],
     'message 3 .*removes it if the conversation continues'),
    # One that opens replies with an empty thought.
    ('qwen3_short', [*_turns('q'), _thinks('r', 'why')], 'message 1 .*opens a reply differently'),
])
def test_reasoning_that_would_be_lost_is_an_error(case, name, messages, words):
  template, tokenizer = case(name)
  with pytest.raises(ValueError, match=f'conversation 1: the reasoning of {words}') as error:
    chat_templates.encode_conversations(template, tokenizer, [_turns('q'), messages])
  assert '\n' not in str(error.value)


def test_messages_that_are_marked_as_context_are_not_learned(case):
  template, tokenizer = case('qwen25')
  messages = _turns('q', 'bad', 'q', 'good', 'q', 'bad too')
  for index in (1, 5):
    messages[index] = {**messages[index], 'train': False}
  assert _marked(template, tokenizer, messages) == '|good<|im_end|>|'
  ids, mask = chat_templates.encode_conversation(template, tokenizer, messages)
  plain = _turns('q', 'bad', 'q', 'good', 'q', 'bad too')
  assert ids == chat_templates.encode_conversation(template, tokenizer, plain)[0]
  assert tokenizer.decode([token for token, mark in zip(ids, mask) if mark]) == 'good'
  # A conversation of context only has no marks and is allowed; the template sees no 'train'.
  messages[3] = {**messages[3], 'train': False}
  assert not any(chat_templates.encode_conversation(template, tokenizer, messages)[1])
  dumps = _template('{% for m in messages %}{{ m | tojson }}{% endfor %}')
  assert dumps.render([{**messages[1], 'train': False}]) == dumps.render([plain[1]])


def test_the_reasoning_of_context_is_rendered_like_that_of_past_turns(case):
  template, tokenizer = case('qwen3')
  messages = [*_turns('q'), _thinks('r', 'why', train=False), *_turns('q'), _thinks('s', 'so')]
  assert _marked(template, tokenizer, messages) == '|<think>\nso\n</think>\n\ns<|im_end|>|'
  assert 'why' not in template.render(messages)


def test_a_conversation_without_a_reply_has_no_marks(case):
  template, tokenizer = case('qwen25')
  for messages in (_turns('x'), [{'role': 'assistant', 'content': 'hello'}, *_turns('x')]):
    ids, mask = chat_templates.encode_conversation(template, tokenizer, messages)
    assert ids and mask == [0] * len(ids)


def test_a_token_across_the_boundary_is_not_learned(case):
  tokenizer = case('llama3')[1]
  template = _template(_WITH_TAIL, sign=': ', stop='<|eot_id|>', tail='')
  ids, mask = chat_templates.encode_conversation(template, tokenizer, _turns('Q', 'the end'))
  # The last space of the prompt and the first word of the reply are one token.
  tokens = [tokenizer.backend.id_to_token(token) for token in ids]
  assert [token for token, mark in zip(tokens, mask) if mark][-1] == '<|eot_id|>'
  assert 'Ġthe' in tokens and mask[tokens.index('Ġthe')] == 0
  assert mask[tokens.index('Ġthe') + 1] == 1


def test_text_after_the_end_of_a_reply_is_not_learned(case):
  tokenizer = case('llama3')[1]
  messages = _turns('Q', 'one', 'Q', 'two')
  template = _template(_WITH_TAIL, sign='>', stop='<|eot_id|>', tail='<|end_of_text|>')
  # The tail changes the text after the first reply, which has ended by then.
  assert _marked(template, tokenizer, messages) == '|one<|eot_id|>|two<|eot_id|>|'
  # The end of the first reply is unknown, because it is rendered differently at the end.
  template = _template(_WITH_TAIL, sign='>', stop='.', tail='END')
  assert _marked(template, tokenizer, messages) == '|two.\nEND'
  # Without a tail a reply is complete, and extends to its trailing white space.
  template = _template(_WITH_TAIL, sign='>', stop='.', tail='')
  assert _marked(template, tokenizer, messages) == '|one.|two.|'


def test_many_conversations_need_one_process(case, monkeypatch):
  started = []
  run = subprocess.run
  monkeypatch.setattr(subprocess, 'run', lambda *a, **k: started.append(a) or run(*a, **k))
  template, tokenizer = case('qwen25')
  # This template writes no reasoning, which 'fields' has.
  conversations = [
      messages for name, messages in chat_cases.CONVERSATIONS.items() if name != 'fields'] * 20
  encoded = chat_templates.encode_conversations(template, tokenizer, conversations)
  assert len(started) == 1
  for messages, both in zip(conversations[:6], encoded[-6:]):
    assert both == chat_templates.encode_conversation(template, tokenizer, messages)
  assert chat_templates.encode_conversations(template, tokenizer, []) == []


def test_any_tokenizer_encodes_conversations():
  tokenizer = tokenizers.CharacterTokenizer('ua: xyz\n')
  template = _template(_WITH_TAIL, sign=': ', stop='', tail='')
  ids, mask = chat_templates.encode_conversation(template, tokenizer, _turns('x', 'yz'))
  assert tokenizer.decode(ids) == 'u: x\na: yz\n'
  assert mask == [0] * 8 + [1, 1, 0]


def test_load_reads_the_template(tmp_path):
  with pytest.raises(ValueError, match='no chat template in .*: it must contain chat_template'):
    chat_templates.load(tmp_path)

  config = tmp_path / 'tokenizer_config.json'
  named = [{'name': 'tool_use', 'template': 'T'}, {'name': 'default', 'template': 'D'}]
  fields = {'bos_token': {'content': '<s>'}, 'eos_token': '</s>', 'pad_token': None,
            'add_bos_token': True}
  variables = {'bos_token': '<s>', 'eos_token': '</s>'}
  for value, source in (('A', 'A'), (named, 'D')):
    config.write_text(json.dumps({**fields, 'chat_template': value}))
    assert chat_templates.load(tmp_path) == chat_templates.ChatTemplate(source, variables)
  for value, message in ((named[:1], "have one named 'default', got 'tool_use'"),
                         (5, 'be a text, got int')):
    config.write_text(json.dumps({'chat_template': value}))
    with pytest.raises(ValueError, match=f'tokenizer_config.json: chat_template must {message}'):
      chat_templates.load(tmp_path)

  config.write_text(json.dumps({**fields, 'chat_template': 'A'}))
  (tmp_path / 'chat_template.jinja').write_text('F{{ eos_token }}')
  assert chat_templates.load(tmp_path).render(_MESSAGES) == 'F</s>'
  (tmp_path / 'other.txt').write_bytes(b'\xff')
  with pytest.raises(ValueError, match='other.txt is not UTF-8'):
    chat_templates.load(tmp_path, file=tmp_path / 'other.txt')
  with pytest.raises(ValueError, match='cannot read the file .*none.jinja'):
    chat_templates.load(tmp_path, file=tmp_path / 'none.jinja')


def test_the_date_is_an_argument():
  source = "{{ strftime_now('%d %b %Y') }}"
  assert chat_templates.ChatTemplate(source, today='2024-07-26').render(_MESSAGES) == '26 Jul 2024'
  with pytest.raises(ValueError, match="'strftime_now' is undefined: it needs a date, as in"):
    _template(source).render(_MESSAGES)
  with pytest.raises(ValueError, match='Invalid isoformat string'):
    chat_templates.ChatTemplate(source, today='yesterday').render(_MESSAGES)


def test_messages_must_be_messages():
  for message in ({'content': 'x'}, {'role': 5}, 'x'):
    with pytest.raises(ValueError, match="conversation 1: a message must have a 'role', got"):
      _template('x').render_many([_MESSAGES, [message]])
  with pytest.raises(ValueError, match='conversation 0 must consist of JSON values: .* set'):
    _template('x').render([{'role': 'user', 'content': {1}}])


def test_different_templates_have_different_fingerprints():
  make = chat_templates.ChatTemplate
  prints = [make('x').fingerprint, make('y').fingerprint, make('x', {'eos_token': 'a'}).fingerprint,
            make('x', {'eos_token': 'b'}).fingerprint, make('x', today='2024-07-26').fingerprint]
  assert len(set(prints)) == 5 and make('x', {}).fingerprint == prints[0]


def test_qwen2_by_hand():
  texts = chat_templates.QWEN2.render_many(
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
  assert chat_templates.QWEN2.render(_MESSAGES).endswith('{{ 7 }}<|im_end|>\n')
  assert chat_templates.QWEN2.render_many([]) == []


def test_features_that_published_templates_use():
  template = """
  {%- set ns = namespace(count=0) -%}
  {{ bos_token }}
  {%- for message in messages %}
    {%- if message['role'] == 'skip' %}{% continue %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
[{{ loop.index0 }}|{{ message['content'] | trim }}|{{ {'k': message['content']} | tojson }}]
  {%- endfor %}
  {{- ns.count }}{{ eos_token }}{{ strftime_now is defined }}{{ tools is none }}
  """
  messages = [_MESSAGES[0], {'role': 'skip', 'content': 'x'}, {'role': 'user', 'content': '<b>'}]
  text = _template(template, bos_token='<s>', eos_token='</s>').render(messages)
  # The last block does not remove the line end and indentation that follow it.
  assert text == '<s>[0|Hi é|{"k": "Hi é\\n"}][2|<b>|{"k": "<b>"}]2</s>FalseTrue\n  '


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
def test_forbidden_and_failing_templates_are_one_line_errors(template, message):
  with pytest.raises(ValueError, match=message) as error:
    _template(template).render(_MESSAGES)
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
    _template(template).render(_MESSAGES, seconds=0.4)
  assert time.monotonic() - start < 10


def test_limits_apply_to_prompts_for_a_reply():
  tokenizer = tokenizers.CharacterTokenizer('x')
  for inner, message in (("{{ ''.__class__.__mro__ }}", 'SecurityError'),
                         ("{{ 'x' * 2000000 }}", 'writes more than 1000000 characters')):
    template = _template('x{% if add_generation_prompt %}' + inner + '{% endif %}')
    with pytest.raises(ValueError, match=f'conversation 1: .*{message}'):
      chat_templates.encode_conversations(template, tokenizer, [_turns('x'), _turns('x', 'y')])


def test_the_failing_conversation_is_named():
  template = "{% if messages[0].content == 'bad' %}{{ raise_exception('no') }}{% endif %}ok"
  conversations = [[{'role': 'user', 'content': text}] for text in ('good', 'bad', 'good')]
  with pytest.raises(ValueError, match='chat template, conversation 1: TemplateError: no'):
    _template(template).render_many(conversations)
