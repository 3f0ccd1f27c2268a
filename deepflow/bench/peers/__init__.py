"""Engines of others behind one worker protocol. Each script runs in an environment of its own."""
