"""Answers that must be words of a language: compiled off the step loop, followed token by token."""
