"""Sweeps, statistics and plots: does MLET pay, and how small can a table get?

`cells` says what to compare, `preparation` preprocesses the rows once, `trial` trains and measures, `sweep` tunes and
runs in parallel, `store` keeps the records, `statistics` compares them, `frontier` and `results` show them.
"""
