"""`sports-ray tune` as a job of a Ray cluster, with the same options:

ray job submit --working-dir . -- python jobs/tune.py --help

The same submission again goes on from its last commit. `ray job stop` makes one if it takes less than 3 s, or as long as
RAY_JOB_STOP_WAIT_TIME_S says (docs/clusters.md). Exit codes as in README.md.
"""

from sports_ray.cli.job import run_job

if __name__ == "__main__":
    run_job("tune")
