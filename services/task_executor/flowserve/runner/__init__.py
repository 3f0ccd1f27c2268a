"""Where the steps run that the master plans."""
