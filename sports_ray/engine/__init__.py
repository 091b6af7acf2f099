"""Trains one run, knowing nothing of Ray: it meets its surroundings through `link.Link` alone.

link       what the engine asks of whoever runs it (progress out, stop requests in) and the in-process twin
world      ranks of one training and the few collectives they need
schedule   which positions a rank reads, step by step, as a pure function of the plan
learner    model, optimiser, EMA and loss scale; how they become a checkpoint and come back
step       one optimiser step: forward, backward, reduce, finite check, clip, update, EMA
evaluate   scores of raw and EMA weights on the validation split
guard      loss scale, out-of-memory, watchdog
record     metrics, timings, TensorBoard
memory     keeps freed tensors' memory in the process, and the collector away from what stays
session    what one process works with while it trains, from the resume on
save       commits, and the weights of a finished run
run        the loop: step, evaluate, commit, stop
overview   what is known of a run from outside: whose it is, how far, what deaths have cost
"""
