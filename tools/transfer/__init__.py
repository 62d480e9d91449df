"""Agents as NDJSON: read and saved, woken and written."""
