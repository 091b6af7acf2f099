"""Runs the engine: in this process, or on Ray. The only package that imports Ray, and only in the modules that say so.

plan      settles everything a run needs before anything starts, or says what the user has to mend; no Ray
local     one run inside this process; no Ray
cluster   starts or joins Ray, quietly
train     supervises Ray Train: retries by cause, progress in, stops out
worker    what each Ray worker executes
"""
