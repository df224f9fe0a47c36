"""The digest in results.json, by which a damaged file is noticed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def with_digest(results: Mapping[str, Any]) -> dict[str, Any]:
  """Returns plain results with 'sha256', the digest of the other entries."""
  others = {name: value for name, value in results.items() if name != 'sha256'}
  text = json.dumps(others, sort_keys=True, allow_nan=False)
  return {**others, 'sha256': hashlib.sha256(text.encode()).hexdigest()}


def is_intact(results: Mapping[str, Any]) -> bool:
  """Returns whether results have a digest and it is theirs."""
  try:
    return with_digest(results) == results
  except ValueError:  # NaN or an infinity, which are never written.
    return False
