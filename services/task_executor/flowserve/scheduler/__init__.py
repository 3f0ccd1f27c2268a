"""Decides what each step runs: pure, without torch, clocks or threads."""
