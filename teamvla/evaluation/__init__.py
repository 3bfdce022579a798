"""Closed-loop evaluation: suites of initial states, baselines, statistics, pictures."""
