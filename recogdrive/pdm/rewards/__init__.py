"""What reinforcement learning is rewarded with: scores of rollouts in recorded scenes, and terms beside them."""
