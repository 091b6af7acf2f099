"""Runs the engine: in this process, or on Ray. The only package that imports Ray, and only in the modules that say so.

plan      settles everything a run needs before anything starts, or says what the user has to mend; no Ray
local     one run inside this process; no Ray
cluster   starts or joins Ray, quietly
train     supervises Ray Train: retries by cause, progress in, stops out
watch     decides after the end of an attempt what comes next; no Ray
monitor   the mailbox between driver and workers, and the end of what a fit has left
worker    what each Ray worker executes
predict   one Ray Data pipeline a member; or, without Ray, the same in this process
predict_worker  what its tasks and actors execute
nodes     several Ray nodes on one machine, to be killed; for proofs and measurements
plain     Ray Train as its documentation shows it: what recovery is compared with
"""
