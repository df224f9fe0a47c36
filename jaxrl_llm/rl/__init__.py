"""Pure maths of RL for language models: arrays in, arrays out."""

from jaxrl_llm import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__, {
    'advantages': ['grpo', 'leave_one_out_mean', 'rloo', 'whiten'],
    'batches': [
        'best_and_worst', 'check_reference', 'check_samples', 'drop_invalid', 'iteration_metrics',
        'kl_shaped_rewards', 'mean_over_prompts', 'regression_metrics', 'regression_rewards',
        'sampler_gap',
    ],
    'divergences': ['exact_kl', 'k1', 'k2', 'k3', 'sequence_kl', 'token_kl'],
    'log_probs': [
        'cross_entropy', 'log_probs_from_logits', 'response_log_probs',
        'response_log_probs_and_entropy', 'token_log_probs', 'token_log_probs_and_entropy',
    ],
    'masking': [
        'masked_mean', 'masked_sum', 'replace_scores_without_stop', 'response_mask',
        'shape_rewards', 'truncate_after_stop',
    ],
    'policy_losses': ['clipped_surrogate', 'mean_over_tokens', 'reinforce_loss'],
    'preference_losses': [
        'bradley_terry_loss', 'conservative_dpo_loss', 'dpo_loss', 'hinge_loss', 'ipo_loss',
        'robust_dpo_loss',
    ],
    'process_rewards': ['implicit_values', 'response_score', 'rollout_labels'],
    'q_learning': [
        'bellman_means', 'conservative_penalty', 'expectile_loss', 'temporal_difference_loss',
    ],
    'regression_losses': ['a_star_po_loss', 'preference_rewards', 'rebel_loss'],
    'returns': ['discounted_returns', 'generalized_advantages'],
    'scoring': ['score', 'sequence_loss'],
    'sequence_scores': ['token_values'],
    'soft_q_losses': ['multi_step_residuals', 'one_step_residuals'],
    'soft_values': ['any_success', 'binary_v_star', 'log_mean_exp', 'v_star'],
    'value_losses': ['clipped_value_loss'],
})
