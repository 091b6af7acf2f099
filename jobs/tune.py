"""`sports-ray tune` as a job of a Ray cluster, with the same options:

ray job submit --working-dir . -- python jobs/tune.py --help

The same submission again goes on where the last one stopped; `ray job stop` commits first. Exit codes as in README.md.
"""

from sports_ray.cli.job import run_job

if __name__ == "__main__":
    run_job("tune")
