"""From a request and rows to a Model: planning, the one loop over stages, checkpoints, epoch log."""
