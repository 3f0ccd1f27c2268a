"""Runs tasks: the shell that makes an engine a member of the cluster, and the engine."""
