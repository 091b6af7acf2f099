"""What tests share: small real runs, killed processes, gloo ranks, the command line."""
