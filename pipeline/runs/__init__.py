"""Runs: what a config asks for, the record of what was done, and the stages."""
