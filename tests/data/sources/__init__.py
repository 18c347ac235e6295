"""Sources: what each format promises."""
