"""Durable saves, beside Redis, PostgreSQL and the disk itself."""
