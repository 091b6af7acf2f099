"""`python -m sports_ray` is `sports-ray`."""

from sports_ray.cli import main

main()
