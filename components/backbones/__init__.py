"""Pretrained decoder-only language models."""
