"""Rewards for the use of tools: by rules, by a judge, by what plans agree on. No answer is read."""
