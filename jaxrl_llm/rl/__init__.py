"""Pure RL maths: arrays in, arrays out."""
