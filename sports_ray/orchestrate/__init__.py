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
plan_sweep  settles all that a sweep needs before anything starts
tune      a sweep with Ray Tune: processes, resources and retries; what comes next is asked of the sweep's folder
hand      what Tune asks for, and what it tells
trial     what each of Tune's processes executes: one trial after the other
jobs      commands as jobs of a cluster
follow    what a job writes, through lost connections
notices   what clouds say of a machine that goes away; no Ray
spot      turns such a notice into a drain of this machine's node
nodes     several Ray nodes on one machine, to be killed; for proofs and measurements
plain     Ray Train as its documentation shows it: what recovery is compared with
"""
