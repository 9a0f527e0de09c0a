"""What stands in the way of a good training, looked for before it. Each fault is one function and one line of FAULTS."""
