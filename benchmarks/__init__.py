"""Measures this project against what else could be used: `python -m benchmarks [NAME...]`.

Each benchmark compares its candidates in one run, in interleaved rounds, so that whatever else the machine does weighs
on all alike. What is judged are ratios within a round, never figures of different runs.
"""
