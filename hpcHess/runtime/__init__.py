"""Errors, driver sessions, job files, progress, timing."""
