"""Task configs: which tokenizer, stop tokens and vocabulary follow from config and policy."""

import pytest

from jaxrl_llm.tasks import arithmetic, chat, config, countdown, gsm8k, jsonl, preferences

POLICY = config.PolicyTokenizer('policy', stop_tokens=('<a>', '<b>'))
PRETRAINED = config.PolicyTokenizer('policy', pretrained=True)


def test_tasks_of_characters_have_no_other_tokenizer():
  task = arithmetic.Config()
  assert (task.named_tokenizer_dir(), task.named_stop_tokens()) == ('', ())
  assert not task.needs_policy_tokenizer()


@pytest.mark.parametrize('module', [chat, countdown, gsm8k, jsonl, preferences])
def test_the_config_is_preferred_to_the_policy(module):
  named, plain = module.Config(tokenizer_dir='own'), module.Config()
  assert named.named_tokenizer_dir() == named.resolve_tokenizer_dir(POLICY) == 'own'
  assert plain.named_tokenizer_dir() == '' and plain.resolve_tokenizer_dir(POLICY) == 'policy'
  assert plain.needs_policy_tokenizer() and not named.needs_policy_tokenizer()


def test_the_default_tokenizer():
  assert gsm8k.Config().resolve_tokenizer_dir(config.FROM_SCRATCH, 'data/gsm8k') == (
      'data/tokenizers/qwen2')
  assert countdown.Config().resolve_tokenizer_dir(config.FROM_SCRATCH) == ''


@pytest.mark.parametrize('module', [chat, preferences])
def test_stop_tokens(module):
  assert module.Config(stop_tokens='<c>, \n').resolve_stop_tokens(POLICY) == ('<c>', '\n')
  assert module.Config().resolve_stop_tokens(POLICY) == ('<a>', '<b>')
  assert module.Config().resolve_stop_tokens(config.FROM_SCRATCH) is None


@pytest.mark.parametrize('vocabulary, policy, compact', [
    ('full', POLICY, False), ('full', PRETRAINED, False), ('compact', POLICY, True),
    ('auto', POLICY, True), ('auto', PRETRAINED, False)])
def test_vocabularies(vocabulary, policy, compact):
  assert gsm8k.Config(vocabulary=vocabulary).is_compact(policy) == compact


def test_a_compact_vocabulary_of_a_checkpoint_is_an_error():
  with pytest.raises(ValueError, match="'full' or 'auto' for a policy from a Hugging Face"):
    gsm8k.Config(vocabulary='compact').is_compact(PRETRAINED)


@pytest.mark.parametrize('module', [chat, jsonl, preferences])
def test_a_missing_directory_is_named_although_the_file_has_a_path_of_its_own(
    module, data_dir, tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"prompt": "1 + 1", "answer": "2"}\n')
  made = module.Config(
      files=str(tmp_path / 'a.jsonl'), tokenizer_dir=str(data_dir / 'tokenizers' / 'qwen2'))
  with pytest.raises(ValueError, match="config.data_dir: not a directory: '/no/such/folder'"):
    made.make(0, '/no/such/folder')
