"""Sweeps: which settings are tried, what came of them, and what comes next. No Ray here, and no clock.

space      what `--space` says, checked; settings as a function of (seed, backbone, index)
suggest    the same from what was found so far, by optuna
spec       all that a sweep is: backbones, space, scheduler, resources; the config of each trial
halving    which trials go on at a rung, compared with their own backbone's alone
resources  what a trial gets, and how many fit at once
patience   storage that fails for a moment is tried again
folder     the sweep's folder: what is written once, what is decided line by line, what is read
conduct    what comes next: which trial starts, goes on, stops, has ended; every answer is in the folder before it is given
board      the leaderboard and the best settings as recipes

A trial is a run in the sweep's folder, which is a store of its own. The folder and its runs are all that a sweep is: after
any death they say which trials have work left.
"""
