"""Agents and scenes in, rows, tables and reports out."""
