"""What to do next, decided without I/O: state and time in, actions out."""
