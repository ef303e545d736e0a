"""Sweeps, statistics and plots: does MLET pay, and how small can a table get?

`config` says what to run, `data` preprocesses the rows once, `trial` trains and measures, `sweep` tunes and
runs in parallel, `store` keeps the records, `statistics` compares them, `frontier` and `results` show them.
"""
