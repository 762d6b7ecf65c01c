"""Tests of releases without an engine: strategies, statistics, state, records."""
