"""Hidden Markov models: filtering, oracles, learners, and learning them in context."""
