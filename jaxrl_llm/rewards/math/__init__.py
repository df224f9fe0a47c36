"""The verifier of mathematical answers; `rewards.math_answer` is its entry."""
